"""Slides to score on: simulated ones with known truth, and how parts of them are held back."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from spatialdata import SpatialData
from spatialdata.models import PointsModel
from spatialdata.transformations import get_transformation

import pixel2gene as p2g
from pixel2gene.spatial.embedded import Embedded, open_embedding
from pixel2gene.spatial.geometry import affine, raster_levels
from pixel2gene.spatial.measured import Measured, measure
from pixel2gene.spatial.overlap import point_overlap
from pixel2gene.spatial.units import Units, measured_units, select_genes

# As `pixel2gene.tl.fit` has it: every method is scored on the genes that it would model.
MIN_COUNTS = 20
HELD_BACK = "held_back"
# Superpixels along a side of the blocks of "fill blocks".
BLOCK = 16
PAINTED_MPP, PICTURE_MPP = 0.5, 0.688
# A slide over a real H&E is tested on the other H&E: over its own, only what no H&E shows would be new.
OTHER_PICTURE = {"C2": "C3", "C3": "C2"}
NEW_SLIDE_SEED = 100
TRANSCRIPTOME_GENES, TRANSCRIPTOME_COUNTS = 18_000, 200.0
PANEL_COUNTS = 40.0
# Every so many pixels of a picture are looked at to find its tissue, which is darker than this share of its brightest.
STRIDE, GLASS = 16, 0.85

# Of `pixel2gene.tl.embed`.
type Options = Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large the simulated slides are: sides in pixels of 0.5 µm, and genes.

    Visium has its own side, because 1536 pixels hold some 60 spots only.
    """

    side: int = 1536
    visium_side: int = 4096
    genes: int = 300
    transcriptome_genes: int = 2000


@dataclass(frozen=True)
class Source:
    """A kind of slide to simulate, painted or over the H&E of a section of her2st (`picture`), and how to embed it."""

    kind: str
    platform: str = "visium_hd"
    rotation: float = 0.0
    profile: str = "panel"
    picture: str | None = None
    embedding: Options = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind if self.picture is None else f"{self.kind}/{self.picture}"

    @property
    def key(self) -> str:
        """Element that is fitted."""
        return "transcripts" if self.platform == "xenium" else "counts"

    @property
    def super_resolved(self) -> bool:
        """Whether units are larger than what is predicted."""
        return self.platform == "visium"

    def slide(self, sizes: Sizes, seed: int) -> Slide:
        """Simulate, measured everywhere; the genes and what they answer to are those of the seed."""
        return self._slide(sizes, seed, biology=seed)

    def new_slide(self, sizes: Sizes, seed: int) -> Slide:
        """Simulate another slide of the same biology, over another H&E."""
        other = None if self.picture is None else OTHER_PICTURE[self.picture]
        return replace(self, picture=other)._slide(sizes, seed + NEW_SLIDE_SEED, biology=seed)

    def _slide(self, sizes: Sizes, seed: int, biology: int) -> Slide:
        transcriptome = self.profile == "transcriptome"
        genes = sizes.transcriptome_genes if transcriptome else sizes.genes
        counts = TRANSCRIPTOME_COUNTS * genes / TRANSCRIPTOME_GENES if transcriptome else PANEL_COUNTS
        side = sizes.visium_side if self.super_resolved else sizes.side
        image = None if self.picture is None else crop(self.picture, round(side * PAINTED_MPP / PICTURE_MPP))
        sdata = p2g.datasets.simulate(
            self.platform,
            size=(side, side),
            mpp=PAINTED_MPP if image is None else PICTURE_MPP,
            n_genes=genes,
            profile=self.profile,
            counts_per_superpixel=counts,
            measured=1.0,
            rotation=self.rotation,
            image=image,
            seed=seed,
            biology=biology,
        )
        return Slide(embed(sdata, **self.embedding), self.key)


PAINTED = (
    Source("hd"),
    Source("hd-rotated", rotation=7),
    Source("hd-transcriptome", rotation=7, profile="transcriptome"),
    Source("xenium", platform="xenium"),
    Source("visium", platform="visium"),
)
SOURCES = {
    source.name: source
    for picture in (None, "C2", "C3")
    for source in (replace(one, picture=picture) for one in PAINTED)
}


@dataclass(frozen=True)
class Slide:
    """A simulated slide with its embedding read in."""

    sdata: SpatialData
    key: str
    embedded: Embedded = field(init=False)
    superpixels: NDArray[np.int64] = field(init=False)
    features: NDArray[np.float16] = field(init=False)

    def __post_init__(self) -> None:
        embedded = open_embedding(self.sdata, "he")
        superpixels, features = embedded.tissue()
        for name, value in {"embedded": embedded, "superpixels": superpixels, "features": features}.items():
            object.__setattr__(self, name, value)

    def truth(self, genes: list[str]) -> NDArray[np.float32]:
        """(superpixels of the whole grid, genes) true rate."""
        rates: NDArray[np.float32] = self.sdata["truth"].sel(c=genes).values.reshape(len(genes), -1).T
        return rates

    def without_results(self) -> SpatialData:
        """A SpatialData with the image and its embedding only, for a verb to write to."""
        images = {key: self.sdata.images[key] for key in ("he", "he_embedding")}
        return SpatialData(images=images, attrs=dict(self.sdata.attrs))


@dataclass(frozen=True)
class Training:
    """What a method may see of a slide.

    Attributes
    ----------
    slide
        Where the units lie.
    sdata
        The slide with the measured part under ``slide.key`` and the rest under ``"held_back"``.
    held
        (superpixels of the tissue,) those on which filling is scored: unmeasured.
    genes
        To model and score.
    measured
        Units on tissue, as `pixel2gene.tl.fit` sees them.
    units
        All measured units.
    seed
        Of whatever a method draws.
    """

    slide: Slide
    sdata: SpatialData
    held: NDArray[np.bool_]
    genes: list[str]
    measured: Measured
    units: Units
    seed: int

    @property
    def overlap(self) -> csr_array:
        """(units on tissue, superpixels of the tissue)."""
        return csr_array(self.units.overlap[self.measured.rows][:, self.slide.superpixels])

    def true_counts(self) -> NDArray[np.float32]:
        """(units on tissue, genes) expected counts."""
        counts: NDArray[np.float32] = self.units.overlap[self.measured.rows] @ self.slide.truth(self.genes)
        return counts


def training(slide: Slide, held: NDArray[np.bool_], seed: int, min_counts: int = MIN_COUNTS) -> Training:
    """Hold the units whose centre lies in `held` (rows, columns of the grid) back."""
    sdata = slide.without_results()
    (_split_points if slide.key in slide.sdata.points else _split_table)(slide, sdata, held)
    units = measured_units(sdata, slide.key, "he", slide.embedded.grid)
    chosen = select_genes(units, None, min_counts)
    measured = measure(slide.embedded, units, chosen, slide.key)
    made = Training(slide, sdata, held.ravel()[slide.superpixels], units.genes[chosen].tolist(), measured, units, seed)
    if units.superpixels is not None:
        return made
    # A unit at the border reaches over it.
    return replace(made, held=made.held & (np.asarray(made.overlap.sum(axis=0)).ravel() == 0))


def half(slide: Slide) -> NDArray[np.bool_]:
    """(rows, columns) the right half."""
    held = np.zeros(slide.embedded.grid.shape, bool)
    held[:, held.shape[1] // 2 :] = True
    return held


def blocks(slide: Slide, seed: int) -> NDArray[np.bool_]:
    """(rows, columns) a random half of the blocks."""
    rows, columns = slide.embedded.grid.shape
    coarse = np.zeros((-(-rows // BLOCK), -(-columns // BLOCK)), bool)
    coarse.flat[np.random.default_rng([seed, 7]).permutation(coarse.size)[: coarse.size // 2]] = True
    held: NDArray[np.bool_] = coarse.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:rows, :columns]
    return held


def nothing(slide: Slide) -> NDArray[np.bool_]:
    """(rows, columns) all measured."""
    return np.zeros(slide.embedded.grid.shape, bool)


def embed(sdata: SpatialData, **options: Any) -> SpatialData:
    """Add tissue and embedding."""
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False, **options)
    return sdata


@functools.cache
def crop(section: str, side: int) -> NDArray[np.uint8]:
    """Cut the square with the most tissue out of the H&E of a section, (3, side, side)."""
    picture = np.asarray(raster_levels(p2g.datasets.her2st(section)["he"])[0].data)
    light = picture[:, ::STRIDE, ::STRIDE].mean(axis=0)
    dark = light < GLASS * np.quantile(light, 0.99)
    window = side // STRIDE
    sums = np.pad(dark.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    tissue = sums[window:, window:] - sums[window:, :-window] - sums[:-window, window:] + sums[:-window, :-window]
    rows, columns = ((n - side) // STRIDE + 1 for n in picture.shape[1:])
    tissue = tissue[:rows, :columns]
    y, x = (int(i) * STRIDE for i in np.unravel_index(tissue.argmax(), tissue.shape))
    return np.ascontiguousarray(picture[:, y : y + side, x : x + side])


@functools.cache
def why_missing(section: str) -> str | None:
    """Why a section of her2st is not to be had; None where it is."""
    try:
        p2g.datasets.her2st(section)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _split_table(slide: Slide, target: SpatialData, held: NDArray[np.bool_]) -> None:
    grid, table = slide.embedded.grid, slide.sdata[slide.key]
    region = table.uns["spatialdata_attrs"]["region"]
    for name in [region] if isinstance(region, str) else region:
        target[name] = slide.sdata[name]
    centres = measured_units(slide.sdata, slide.key, "he", grid).centres(grid)
    on_grid = np.isfinite(centres).all(axis=1)
    column, row = np.where(on_grid[:, None], centres, 0).astype(int).T
    target[slide.key] = table[on_grid & ~held[row, column]].copy()
    if held.any():
        target[HELD_BACK] = table[on_grid & held[row, column]].copy()


def _split_points(slide: Slide, target: SpatialData, held: NDArray[np.bool_]) -> None:
    grid, points = slide.embedded.grid, slide.sdata[slide.key]
    feature = points.attrs["spatialdata_attrs"]["feature_key"]
    frame = points[["x", "y", feature]].compute()
    where = point_overlap(
        frame[["x", "y"]].to_numpy(), grid.from_pixels @ affine(slide.sdata, slide.key, "he"), grid.shape
    )
    on_grid = np.diff(where.indptr) > 0
    frame = frame[on_grid].reset_index(drop=True)
    in_held = held.ravel()[where.indices]
    parts = {slide.key: ~in_held} | ({HELD_BACK: in_held} if held.any() else {})
    for name, chosen in parts.items():
        target[name] = PointsModel.parse(
            frame[chosen].reset_index(drop=True),
            coordinates={"x": "x", "y": "y"},
            feature_key=feature,
            transformations=get_transformation(points, get_all=True),
        )
