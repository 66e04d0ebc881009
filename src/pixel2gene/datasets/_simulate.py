"""Slides whose true expression is known: H&E, tissue, programmes and what a platform measures of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from scipy import ndimage as ndi
from scipy import sparse
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree
from scipy.stats import beta
from skimage.feature import peak_local_max
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import BaseTransformation, Identity, Scale, Sequence

from pixel2gene.core.arguments import require_whole
from pixel2gene.spatial.grid import SUPERPIXEL_UM, grid_shape

from ._paint import CELL_TYPES, COMPARTMENTS, EOSIN, GLASS, HAEMATOXYLIN, LAYOUT_UM, Painting, paint, smooth_field

XENIUM_UM = 0.2125
SPOT_UM, PITCH_UM = 55.0, 100.0

_LIVE = CELL_TYPES[:-1]
# Nuclei per superpixel in dense tissue: expression is counted in units of such tissue.
_DENSE = 0.5
# Cytoplasm that a compartment holds beyond what its nuclei account for, in the same units.
_CYTOPLASM = {
    "stroma": ("fibroblast", 0.25),
    "tumour": ("tumour", 0.35),
    "gland": ("epithelium", 0.45),
    "lumen": ("epithelium", 0.08),
    "lymphoid": ("lymphocyte", 0.25),
    "fat": ("adipocyte", 0.2),
    "vessel": ("endothelium", 0.35),
    "necrosis": ("tumour", 0.1),
}
# Transcripts that drift into places without cells.
_AMBIENT = 0.06
# Standard deviation of the genes' log means.
_SPREAD = {"panel": 0.8, "transcriptome": 2.0}
_N_FIELDS = 8
_LIBRARY_SHAPE = 16.0
_SIDES = 16
_BLOCK = 4_000_000


@dataclass(frozen=True)
class _Tissue:
    """What expression is laid over, per superpixel of 8 µm (y, x) on an absolute scale.

    `cells` holds the amount of each type of cell (1 is dense tissue), `context` what surrounds the superpixel, about
    -1 to 1. `nuclei` has the columns x, y and radius in pixels.
    """

    mask: np.ndarray
    regions: np.ndarray
    cells: np.ndarray
    context: np.ndarray
    nuclei: pd.DataFrame


@dataclass(frozen=True)
class _Genes:
    """What `biology` decides: per gene, its abundance and how it answers to cells, context and hidden fields."""

    names: np.ndarray
    abundance: np.ndarray
    markers: np.ndarray
    gradients: np.ndarray
    loadings: np.ndarray
    share: np.ndarray
    dispersion: np.ndarray


@dataclass(frozen=True)
class _Truth:
    """True rates on the superpixels of the tissue, computed a few genes at a time."""

    genes: _Genes
    mask: np.ndarray
    cells: np.ndarray
    context: np.ndarray
    fields: np.ndarray
    scale: np.ndarray

    def rates(self, which: slice) -> np.ndarray:
        """Expected counts (gene, superpixel of the tissue)."""
        genes = self.genes
        seen = np.log(self.cells @ np.exp(genes.markers[:, which]) + np.float32(_AMBIENT))
        seen += self.context @ genes.gradients[:, which]
        hidden = self.fields @ genes.loadings[:, which]
        share = genes.share[which]
        hidden *= np.sqrt(1 - share) * seen.std(0) / hidden.std(0)
        rates = np.exp(np.sqrt(share) * seen + hidden) * genes.abundance[which]
        return (rates * self.scale[:, None]).T

    def raster(self, which: slice) -> np.ndarray:
        """Expected counts (gene, y, x), zero outside the tissue."""
        rates = self.rates(which)
        image = np.zeros((len(rates), *self.mask.shape), np.float32)
        image[:, self.mask] = rates
        return image

    def blocks(self) -> list[slice]:
        """Genes in blocks that fit in memory."""
        n_genes = len(self.genes.names)
        step = max(1, min(n_genes, _BLOCK // max(1, len(self.scale))))
        return [slice(start, min(start + step, n_genes)) for start in range(0, n_genes, step)]


@dataclass(frozen=True)
class _Molecules:
    """Transcripts: position (x, y) in pixels and gene index."""

    xy: np.ndarray
    gene: np.ndarray


@dataclass(frozen=True)
class _Bins:
    """Lattice of bins of 8 µm, turned about the centre of the slide, and the share that its rows and columns catch.

    Attributes
    ----------
    n
        Half the number of rows and of columns.
    side
        Of a bin in pixels.
    centre
        Of the lattice, x and y in pixels.
    turn
        From the axes of the slide to those of the lattice.
    row_factor, column_factor
        (2 n,) relative to a mean of 1.
    """

    n: int
    side: float
    centre: np.ndarray
    turn: np.ndarray
    row_factor: np.ndarray
    column_factor: np.ndarray

    def of(self, xy: np.ndarray) -> np.ndarray:
        """Column and row of the bin that each point (x, y) in pixels lies in."""
        index: np.ndarray = np.floor((xy - self.centre) @ self.turn.T / self.side).astype(int) + self.n
        return index

    @property
    def most(self) -> float:
        """Factor of the bin that catches most."""
        return float(self.row_factor.max() * self.column_factor.max())

    def caught(self, xy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw which points are caught, in proportion to the factors."""
        column, row = self.of(xy).T
        kept: np.ndarray = rng.random(len(xy)) * self.most < self.row_factor[row] * self.column_factor[column]
        return kept


def simulate(
    platform: str = "visium_hd",
    *,
    size: tuple[int, int] = (2048, 2048),
    mpp: float = 0.5,
    n_genes: int = 300,
    profile: str = "panel",
    counts_per_superpixel: float = 40.0,
    visible: float = 0.65,
    measured: float | np.ndarray = 0.5,
    rotation: float = 5.0,
    stripes: float = 0.0,
    diffusion_um: float = 0.0,
    capture: float = 0.12,
    image: np.ndarray | None = None,
    seed: int = 0,
    biology: int = 0,
) -> SpatialData:
    """Simulate a slide with H&E, measured expression and the true expression behind it.

    Cells of known type are painted (or texture is read off a given H&E), each type expresses its programme, context
    such as depth in the tumour shades it, and smooth fields that the H&E does not show add the rest. Transcripts are
    drawn per superpixel, scattered inside it and collected by the platform's own bins, spots or cells.

    The true rate of a gene is the expected count in a superpixel of 8 × 8 µm, given the biology and a capture
    efficiency that varies slowly over the slide. It does not include the gamma noise of single superpixels. Counts of
    a superpixel have the variance ``truth + dispersion * truth**2``; of the dispersion, 1/16 is library size, which
    the genes of a superpixel share. Neither does it include what the platform adds: `stripes` and diffusion.

    Parameters
    ----------
    platform
        ``"visium_hd"`` (square bins of 8 µm), ``"visium"`` (spots of 55 µm, 100 µm apart) or ``"xenium"`` (transcripts
        and cells).
    size
        Height and width of the slide in pixels; an `image` has its own.
    mpp
        Pixel size in µm.
    n_genes
        Number of genes.
    profile
        Spread of the genes' means: ``"panel"`` is moderate, in ``"transcriptome"`` most genes are very sparse.
    counts_per_superpixel
        Mean true count of all genes in a superpixel of the tissue.
    visible
        Share of the variance of the log-rate that follows morphology, in the mean over genes. Each gene's own share
        is in ``var["visible_share"]``: the variance over the tissue of its visible part, as a share of the sum of
        the variances of its visible and its hidden part, capture left out.
    measured
        Share of the slide's width that is measured, from the left; or a boolean mask on the superpixel grid. Only
        bins, spots and cells that lie wholly inside are made.
    rotation
        Angle in degrees by which the grid of bins or spots is turned about the centre of the slide.
    stripes
        Standard deviation of the log factor by which each row, and each column, of the bins of ``"visium_hd"``
        catches more or less.
    diffusion_um
        Standard deviation in µm, along each axis, of the way that molecules drift before they are caught, also onto
        the glass.
    capture
        Standard deviation of the log of the capture efficiency, a Gaussian field that correlates over 400 µm. Slides
        that differ in this alone have the same field: their truths differ by it, and by one factor.
    image
        H&E, ``uint8`` of shape (3, y, x) or (y, x, 3), to lay the expression over instead of painting one.
    seed
        Draws the tissue, the hidden fields and the counts.
    biology
        Draws the genes and their programmes; slides with the same `biology` are of the same kind of tissue.

    Returns
    -------
    SpatialData with the coordinate systems ``"global"`` and ``"micrometers"`` and

    - ``images["he"]``, the H&E;
    - ``shapes["square_008um"]`` or ``shapes["spots"]`` in pixels, or ``shapes["cells"]`` and
      ``points["transcripts"]`` in µm;
    - ``tables["counts"]`` on those shapes, with ``mean`` (true mean per superpixel of the tissue), ``dispersion`` and
      ``visible_share`` per gene; with `stripes`, ``row_factor`` and ``column_factor`` per bin, of mean 1 over the rows
      and columns of the slide;
    - ``images["truth"]``, the true rates (gene, y, x) in expected counts per superpixel, zero outside the tissue;
    - ``labels["truth_regions"]``, the kind of tissue of each superpixel, 0 outside: the compartments of a painted
      slide in the order stroma, tumour, gland, lumen, lymphoid, fat, vessel, necrosis, or clusters of an `image`;
    - ``attrs["simulation"]``, the parameters.

    Examples
    --------
    >>> sdata = p2g.datasets.simulate("visium", size=(512, 512), n_genes=5, measured=1.0)
    >>> sorted(sdata.images), sorted(sdata.shapes), sorted(sdata.tables)
    (['he', 'truth'], ['spots'], ['counts'])
    """
    require_whole("seed", seed)
    require_whole("biology", biology)
    _check(platform, profile, n_genes, counts_per_superpixel, visible, mpp)
    _check_artefacts(platform, stripes, diffusion_um, capture)
    parameters: dict[str, Any] = {
        "platform": platform,
        "mpp": mpp,
        "n_genes": n_genes,
        "profile": profile,
        "counts_per_superpixel": counts_per_superpixel,
        "visible": visible,
        "measured": "mask" if isinstance(measured, np.ndarray) else measured,
        "rotation": rotation,
        "stripes": stripes,
        "diffusion_um": diffusion_um,
        "capture": capture,
        "image": "painted" if image is None else "given",
        "seed": seed,
        "biology": biology,
    }
    if image is None:
        painting = paint(size, mpp, seed)
        picture, tissue = painting.image, _painted_tissue(painting)
    else:
        picture = _channels_first(image)
        tissue = _pictured_tissue(picture, mpp, biology)
    shape = picture.shape[1:]
    parameters["size"] = list(shape)
    inside = _region(measured, shape, mpp)

    genes = _draw_genes(n_genes, profile, visible, biology)
    truth, means = _true_rates(tissue, genes, counts_per_superpixel, capture, np.random.default_rng([seed, 1]))
    bins = _bins(shape, mpp, rotation, stripes, seed)
    molecules = _draw_molecules(truth, mpp, inside, diffusion_um / mpp, bins if stripes > 0 else None, seed)
    var = pd.DataFrame(
        {"mean": means, "dispersion": _marginal_dispersion(genes), "visible_share": genes.share}, index=genes.names
    )

    um = 1 / XENIUM_UM if platform == "xenium" else 1 / mpp
    transforms = {"global": _scale(mpp * um), "micrometers": _scale(mpp)}
    if platform == "xenium":
        elements = _cells(tissue.nuclei, molecules, var, mpp, inside)
    else:
        elements = _grid(platform, bins, mpp, molecules, var, inside, transforms, stripes > 0)
    elements |= {
        "he": _he(picture, transforms),
        "truth": _truth_image(truth, _on_grid(transforms, mpp)),
        "truth_regions": Labels2DModel.parse(
            tissue.regions.astype(np.int32), dims=("y", "x"), transformations=_on_grid(transforms, mpp)
        ),
    }
    return SpatialData.init_from_elements(elements, attrs={"simulation": parameters})


def _check(platform: str, profile: str, n_genes: int, counts: float, visible: float, mpp: float) -> None:
    if platform not in ("visium_hd", "visium", "xenium"):
        raise ValueError(f"platform {platform!r} is not simulated: choose 'visium_hd', 'visium' or 'xenium'.")
    if profile not in _SPREAD:
        raise ValueError(f"profile {profile!r} is unknown: choose 'panel' or 'transcriptome'.")
    if n_genes < 1:
        raise ValueError(f"n_genes is {n_genes}: ask for at least 1 gene.")
    if not counts > 0:
        raise ValueError(f"counts_per_superpixel is {counts}: give a mean count above 0.")
    if not 0 <= visible <= 1:
        raise ValueError(f"visible is {visible}: give a share from 0 to 1.")
    if not 0 < mpp <= 4:
        raise ValueError(f"mpp is {mpp}: give the pixel size in µm, above 0 and at most 4.")


def _check_artefacts(platform: str, stripes: float, diffusion_um: float, capture: float) -> None:
    for name, value in {"stripes": stripes, "diffusion_um": diffusion_um, "capture": capture}.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} is {value}: give a standard deviation of at least 0.")
    if stripes > 0 and platform != "visium_hd":
        raise ValueError(
            f"stripes is {stripes}, but {platform!r} has no rows of bins: leave it out, or simulate 'visium_hd'."
        )


def _channels_first(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or 3 not in (image.shape[0], image.shape[2]):
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}: give RGB as uint8 of shape (3, y, x) or (y, x, 3)."
        )
    return image if image.shape[0] == 3 else np.ascontiguousarray(image.transpose(2, 0, 1))


def _region(measured: float | np.ndarray, shape: tuple[int, ...], mpp: float) -> Callable[[np.ndarray], np.ndarray]:
    """Tell of points (..., 2) as x, y in pixels whether they are on the slide and measured."""
    grid = grid_shape(shape, mpp)
    if isinstance(measured, np.ndarray):
        if measured.dtype != bool or measured.shape != grid:
            raise ValueError(
                f"measured is {measured.dtype} of shape {measured.shape}: give a boolean mask of shape {grid}, "
                "one value per superpixel of 8 µm, or a share from 0 to 1."
            )
        mask, limit = measured, float(shape[1])
    else:
        if not 0 < measured <= 1:
            raise ValueError(f"measured is {measured}: give a share of the slide's width above 0 and at most 1.")
        mask, limit = np.ones(grid, bool), measured * shape[1]

    def inside(xy: np.ndarray) -> np.ndarray:
        x, y = xy[..., 0], xy[..., 1]
        on_slide = (x >= 0) & (y >= 0) & (x < limit) & (y < shape[0])
        index = np.where(on_slide[..., None], xy * (mpp / SUPERPIXEL_UM), 0).astype(int)
        return on_slide & mask[index[..., 1], index[..., 0]]

    return inside


# --- tissue ------------------------------------------------------------------------------------------------------


def _painted_tissue(painting: Painting) -> _Tissue:
    factor = round(SUPERPIXEL_UM / LAYOUT_UM)
    height, width = (n // factor for n in painting.compartments.shape)
    blocks = painting.compartments.reshape(height, factor, width, factor)
    parts = {name: (blocks == code).mean((1, 3), dtype=np.float32) for code, name in enumerate(COMPARTMENTS)}
    fractions = np.stack(list(parts.values()))
    mask = parts["background"] < 0.5
    regions = np.where(mask, fractions[1:].argmax(0) + 1, 0)

    nuclei = painting.nuclei[painting.nuclei["type"].isin(_LIVE)]
    scale = painting.mpp / SUPERPIXEL_UM
    row, col = (nuclei["y"] * scale).astype(int), (nuclei["x"] * scale).astype(int)
    cells = np.zeros((len(_LIVE), height, width), np.float32)
    np.add.at(cells, (nuclei["type"].cat.codes.to_numpy(), row.to_numpy(), col.to_numpy()), 0.7 / _DENSE)
    for compartment, (cell, amount) in _CYTOPLASM.items():
        cells[_LIVE.index(cell)] += amount * parts[compartment]
    cells = ndi.gaussian_filter(cells, (0, 0.7, 0.7))

    def around(field: np.ndarray, um: float) -> np.ndarray:
        return ndi.gaussian_filter(field, um / SUPERPIXEL_UM)

    context = np.stack(
        [
            2 * around(parts["tumour"] + parts["necrosis"], 50) - 1,
            np.tanh(around(cells[_LIVE.index("lymphocyte")], 45)),
            np.tanh(6 * around(parts["necrosis"], 40)),
            np.tanh(3 * around(parts["gland"] + parts["lumen"], 45)),
            2 * around(parts["fat"], 60),
        ]
    )
    table = nuclei[["x", "y"]].assign(radius=np.sqrt(nuclei["major"] * nuclei["minor"]))
    return _Tissue(mask, regions, cells, context, table.reset_index(drop=True))


def _pictured_tissue(picture: np.ndarray, mpp: float, biology: int) -> _Tissue:
    """Read amounts of cells and context off an H&E, the same function of the picture on every slide."""
    if min(grid_shape(picture.shape[1:], mpp)) < 8:
        raise ValueError(
            f"image covers {picture.shape[1] * mpp:.0f} × {picture.shape[2] * mpp:.0f} µm: "
            "give at least 64 µm a side, or correct mpp."
        )
    features, nuclei = _image_features(picture, mpp)
    haem, eosin, saturation, energy = features
    height, width = haem.shape
    scale = mpp / SUPERPIXEL_UM
    count = np.zeros((height, width), np.float32)
    np.add.at(count, ((nuclei["y"] * scale).astype(int), (nuclei["x"] * scale).astype(int)), 1 / _DENSE)

    def around(field: np.ndarray, um: float) -> np.ndarray:
        return ndi.gaussian_filter(field, um / SUPERPIXEL_UM)

    def level(field: np.ndarray, um: float) -> np.ndarray:
        return np.log(around(field, um) + 0.02)

    # Centred and scaled by constants of ordinary H&E, never by the slide's own, so that slides agree; contrasts between
    # scales and dyes come first, for they survive a paler or darker stain.
    near, mid, far = (level(haem, um) for um in (5, 30, 80))
    pink = eosin / (haem + eosin + 0.02)
    descriptors = np.stack(
        [
            (near - far + 0.1) / 0.6,
            (around(pink, 5) - 0.3) / 0.2,
            (level(energy, 8) + 2.4) / 0.6,
            (around(count, 16) - 0.7) / 0.4,
            (mid - far) / 0.3,
            (around(pink, 30) - 0.3) / 0.2,
            (around(saturation, 30) - 0.25) / 0.15,
            (far + 0.6) / 1.2,
        ]
    )
    descriptors = 2 * np.tanh(descriptors / 2)
    # Glass may be tinted but is smooth; fat may be as bright but has membranes.
    mask = ndi.binary_opening(around(energy, 12) > 0.005, iterations=2)
    rng = np.random.default_rng([biology, 1])
    logits = np.tensordot(rng.normal(0, 0.8, (len(_LIVE), 8)).astype(np.float32), descriptors, 1)
    kinds = np.exp(logits - logits.max(0))
    amount = 0.1 + 0.4 * around(count, 6) + 0.5 * np.clip(around(haem, 5) / 0.4, 0, 2)
    context = np.tanh(np.tensordot(rng.normal(0, 0.5, (5, 5)).astype(np.float32), descriptors[3:], 1))
    regions = np.zeros((height, width), int)
    if mask.any():
        regions[mask] = kmeans2(descriptors[:, mask].T, 6, minit="++", rng=np.random.default_rng(0))[1] + 1
    return _Tissue(mask, regions, amount * kinds / kinds.sum(0), context, nuclei)


def _image_features(picture: np.ndarray, mpp: float) -> tuple[np.ndarray, pd.DataFrame]:
    """Haematoxylin, eosin, saturation and gradient energy per superpixel, and nuclei as dark blobs.

    Works through bands of rows that overlap, so that a large slide never lies in memory as floating point.
    """
    sizes = zip(picture.shape[1:], grid_shape(picture.shape[1:], mpp), strict=True)
    rows, cols = (_first_pixels(pixels, superpixels, mpp) for pixels, superpixels in sizes)
    halo = int(np.ceil(20 / mpp))
    unmix = np.linalg.pinv(np.stack([HAEMATOXYLIN, EOSIN])).astype(np.float32)
    bands, tables = [], []
    for part in np.array_split(np.arange(len(rows)), np.ceil(picture[0].size / 2**22)):
        start = rows[part[0]]
        stop = rows[part[-1] + 1] if part[-1] + 1 < len(rows) else picture.shape[1]
        low = max(0, start - halo)
        light = picture[:, low : stop + halo].astype(np.float32)
        inner = slice(start - low, stop - low)
        density = -np.log((light + 1) / (GLASS[:, None, None] + 1))
        haem, eosin = np.maximum(np.tensordot(unmix.T, density, 1), 0)
        brightest = light.max(0)
        saturation = (brightest - light.min(0)) / np.maximum(brightest, 1)
        energy = ndi.gaussian_gradient_magnitude(density.mean(0), 1 / mpp) / mpp
        fields = np.stack([haem, eosin, saturation, energy])[:, inner]
        pooled = np.add.reduceat(np.add.reduceat(fields, rows[part] - start, 1), cols, 2)
        sides = [np.diff(edges, append=end) for edges, end in ((rows[part], stop), (cols, picture.shape[2]))]
        bands.append(pooled / (sides[0][:, None] * sides[1]))

        blobs = ndi.gaussian_filter(haem, 1.5 / mpp) - ndi.gaussian_filter(haem, 4 / mpp)
        apart = max(1, round(2.5 / mpp))
        peaks = peak_local_max(blobs, min_distance=apart, threshold_abs=0.06, exclude_border=False) + [low, 0]
        tables.append(peaks[(peaks[:, 0] >= start) & (peaks[:, 0] < stop)] + 0.5)
    y, x = np.concatenate(tables).T
    return np.concatenate(bands, axis=1), pd.DataFrame({"x": x, "y": y, "radius": 3.2 / mpp})


def _first_pixels(pixels: int, superpixels: int, mpp: float) -> np.ndarray:
    """First pixel of each superpixel along an axis; a pixel belongs where its centre lies.

    A last superpixel too narrow for a centre has the last pixel.
    """
    first = np.ceil(np.arange(superpixels) * SUPERPIXEL_UM / mpp - 0.5).astype(int)
    return np.minimum(first, pixels - 1)


# --- expression --------------------------------------------------------------------------------------------------


def _draw_genes(n: int, profile: str, visible: float, biology: int) -> _Genes:
    rng = np.random.default_rng([biology, 2])
    abundance = rng.lognormal(0, _SPREAD[profile], n)
    # A tenth of the genes ignores tissue, a quarter answers weakly; of the rest, most mark one type of cell.
    strength = rng.choice([0.0, 0.3, 1.0], n, p=[0.1, 0.25, 0.65])
    markers = rng.normal(0, 0.4, (len(_LIVE), n))
    marked = rng.integers(0, len(_LIVE), n)
    markers[marked, np.arange(n)] += rng.uniform(0.7, 2.7, n) * (rng.random(n) < 0.75)
    gradients = rng.normal(0, 0.4, (5, n)) * (rng.random((5, n)) < 0.5)
    loadings = rng.normal(0, 1, (_N_FIELDS, n)) * (rng.random((_N_FIELDS, n)) < 0.5)
    loadings[rng.integers(0, _N_FIELDS, n), np.arange(n)] += 1
    if 0 < visible < 1:
        # Quantiles instead of draws keep the mean share where it was asked for; strong genes tend to the high ones.
        order = np.argsort(strength + rng.normal(0, 0.5, n))
        share = np.empty(n)
        share[order] = beta.ppf((np.arange(n) + 0.5) / n, 8 * visible, 8 * (1 - visible))
    else:
        share = np.full(n, float(visible))
    return _Genes(
        names=np.array([f"GENE{index:04d}" for index in range(1, n + 1)]),
        abundance=(abundance / abundance.sum()).astype(np.float32),
        markers=(strength * markers).astype(np.float32),
        gradients=(strength * gradients).astype(np.float32),
        loadings=loadings.astype(np.float32),
        share=share.astype(np.float32),
        dispersion=rng.lognormal(np.log(0.25), 0.5, n),
    )


def _marginal_dispersion(genes: _Genes) -> np.ndarray:
    """Dispersion of a superpixel's counts: the gene's own gamma times the library's."""
    return (1 + genes.dispersion) * (1 + 1 / _LIBRARY_SHAPE) - 1


def _true_rates(
    tissue: _Tissue, genes: _Genes, counts: float, capture: float, rng: np.random.Generator
) -> tuple[_Truth, np.ndarray]:
    """True rates that sum to `counts` in the mean over the tissue, and each gene's mean."""
    mask = tissue.mask
    if not mask.any():
        raise ValueError("image shows no tissue: give an H&E with stained tissue on it, or check its channel order.")
    lengths = np.geomspace(50, 300, _N_FIELDS) / SUPERPIXEL_UM
    fields = np.stack([smooth_field(mask.shape, length, rng)[mask] for length in lengths], axis=1)
    fields = (fields - fields.mean(0)) / fields.std(0)
    caught = np.exp(float(capture) * smooth_field(mask.shape, 400 / SUPERPIXEL_UM, rng)[mask])
    truth = _Truth(genes, mask, tissue.cells[:, mask].T, tissue.context[:, mask].T, fields, caught)
    means = np.concatenate([truth.rates(block).mean(1, dtype=np.float64) for block in truth.blocks()])
    depth = counts / means.sum()
    return _Truth(genes, mask, truth.cells, truth.context, fields, (caught * depth).astype(np.float32)), means * depth


def _draw_molecules(
    truth: _Truth,
    mpp: float,
    inside: Callable[[np.ndarray], np.ndarray],
    drift: float,
    stripes: _Bins | None,
    seed: int,
) -> _Molecules:
    """Molecules that the platform collects, after they drifted by so many pixels (sd) along each axis."""
    rng, drifting, catching = (np.random.default_rng([seed, k]) for k in (2, 3, 4))
    depth = stripes.most if stripes else 1.0
    corner = np.argwhere(truth.mask)[:, ::-1]
    library = rng.gamma(_LIBRARY_SHAPE, 1 / _LIBRARY_SHAPE, len(corner))
    xy, gene = [], []
    for block in truth.blocks():
        shape = 1 / truth.genes.dispersion[block, None]
        rates = truth.rates(block)
        counts = rng.poisson(rates * depth * library * rng.standard_gamma(shape, rates.shape) / shape)
        row, col = counts.nonzero()
        number = counts[row, col]
        points = corner[np.repeat(col, number)] + rng.random((number.sum(), 2))
        points *= SUPERPIXEL_UM / mpp
        if drift > 0:
            points += drifting.normal(0, drift, points.shape)
        keep = inside(points)
        if stripes:
            keep[keep] = stripes.caught(points[keep], catching)
        xy.append(points[keep])
        gene.append(np.repeat(row + block.start, number)[keep].astype(np.int32))
    return _Molecules(np.concatenate(xy), np.concatenate(gene))


# --- measurement -------------------------------------------------------------------------------------------------


def _bins(shape: tuple[int, ...], mpp: float, rotation: float, stripes: float, seed: int) -> _Bins:
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    side = SUPERPIXEL_UM / mpp
    n = int(np.ceil(np.hypot(shape[0], shape[1]) / 2 / side))
    factors = np.exp(stripes * np.random.default_rng([seed, 5]).standard_normal((2, 2 * n)))
    return _Bins(n, side, np.array([shape[1], shape[0]]) / 2, turn, *(factors / factors.mean(1, keepdims=True)))


def _grid(
    platform: str,
    bins: _Bins,
    mpp: float,
    molecules: _Molecules,
    var: pd.DataFrame,
    inside: Callable[[np.ndarray], np.ndarray],
    transforms: dict[str, BaseTransformation],
    with_factors: bool,
) -> dict[str, Any]:
    """Bins or spots of a grid turned about the centre of the slide, and what they collect."""
    turn, centre = bins.turn, bins.centre
    if platform == "visium_hd":
        n, side = bins.n, bins.side
        row, col = (index.ravel() for index in np.indices((2 * n, 2 * n)))
        origin = np.stack([col - n, row - n], axis=1) * side
        outline = (origin[:, None] + side * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])) @ turn + centre
        whole = _whole(outline, inside)
        unit = np.full((2 * n, 2 * n), -1)
        unit[row[whole], col[whole]] = np.arange(whole.sum())
        cell = bins.of(molecules.xy)
        owner = unit[cell[:, 1], cell[:, 0]]
        name, middle = "square_008um", outline[whole].mean(1)
        shapes = gpd.GeoDataFrame(geometry=shapely.polygons(outline[whole]))
    else:
        pitch, radius = PITCH_UM / mpp, SPOT_UM / 2 / mpp
        reach = np.hypot(*centre)
        n = int(np.ceil(reach / pitch / 0.866)) + 1
        row, col = (index.ravel() - n for index in np.indices((2 * n + 1, 2 * n + 1)))
        middle = np.stack([(col + row % 2 / 2) * pitch, row * pitch * np.sqrt(3) / 2], axis=1) @ turn + centre
        theta = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        rim = middle[:, None] + radius * np.stack([np.cos(theta), np.sin(theta)], axis=1)
        whole = _whole(rim, inside)
        name, middle = "spots", middle[whole]
        owner = np.full(len(molecules.xy), -1)
        if len(middle):
            distance, nearest = cKDTree(middle).query(molecules.xy, distance_upper_bound=radius)
            owner = np.where(np.isfinite(distance), nearest, -1)
        shapes = gpd.GeoDataFrame({"radius": np.full(len(middle), radius)}, geometry=shapely.points(middle))
    _require(len(middle), name)
    obs = pd.DataFrame({"array_row": row[whole] - row[whole].min(), "array_col": col[whole] - col[whole].min()})
    if with_factors:
        obs = obs.assign(row_factor=bins.row_factor[row[whole]], column_factor=bins.column_factor[col[whole]])
    table = _table(name, obs, owner, molecules.gene, var, middle)
    return {name: ShapesModel.parse(shapes, transformations=transforms), "counts": table}


def _cells(
    nuclei: pd.DataFrame,
    molecules: _Molecules,
    var: pd.DataFrame,
    mpp: float,
    inside: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """Transcripts, the cells around nuclei and what each cell collects."""
    _require(len(nuclei), "cells")
    seeds = nuclei[["x", "y"]].to_numpy() * mpp
    tree = cKDTree(seeds)
    outline = _outlines(seeds, nuclei["radius"].to_numpy() * mpp + 4, tree)
    whole = _whole(outline / mpp, inside)
    _require(whole.sum(), "cells")
    xy = molecules.xy * mpp
    nearest = np.asarray(tree.query(xy)[1])
    owner = np.where(whole[nearest] & _within(xy, seeds[nearest], outline, nearest), np.cumsum(whole)[nearest] - 1, -1)

    polygons = shapely.polygons(outline[whole])
    obs = pd.DataFrame({"area": shapely.area(polygons)})
    table = _table("cells", obs, owner, molecules.gene, var, seeds[whole] / XENIUM_UM)
    frame = pd.DataFrame(
        {"x": xy[:, 0], "y": xy[:, 1], "feature_name": pd.Categorical.from_codes(molecules.gene, var.index)}
    )
    transforms = {"global": _scale(1 / XENIUM_UM), "micrometers": Identity()}
    return {
        "transcripts": PointsModel.parse(
            frame, coordinates={"x": "x", "y": "y"}, feature_key="feature_name", transformations=transforms
        ),
        "cells": ShapesModel.parse(gpd.GeoDataFrame(geometry=polygons), transformations=dict(transforms)),
        "counts": table,
    }


def _outlines(seeds: np.ndarray, reach: np.ndarray, tree: cKDTree) -> np.ndarray:
    """Polygons (cell, vertex, 2) inscribed in discs that stop halfway to the next seeds."""
    theta = 2 * np.pi * np.arange(_SIDES) / _SIDES
    ray = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    neighbours = tree.query(seeds, np.arange(1, min(12, len(seeds)) + 1))[1][:, 1:]
    gap = seeds[neighbours] - seeds[:, None]
    along = gap @ ray.T
    with np.errstate(divide="ignore"):
        halfway = np.where(along > 0, (gap**2).sum(-1)[..., None] / 2 / along, np.inf)
    radius = np.minimum(reach[:, None], halfway.min(1, initial=np.inf))
    return seeds[:, None] + radius[..., None] * ray


def _within(xy: np.ndarray, seeds: np.ndarray, outline: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Whether each point lies in its owner's outline: on the inner side of the edge that its direction crosses."""
    offset = xy - seeds
    sector = np.floor(np.arctan2(offset[:, 1], offset[:, 0]) / (2 * np.pi / _SIDES)).astype(int) % _SIDES
    start, end = outline[owner, sector], outline[owner, (sector + 1) % _SIDES]
    edge, point = end - start, xy - start
    return edge[:, 0] * point[:, 1] - edge[:, 1] * point[:, 0] >= 0


def _whole(outlines: np.ndarray, inside: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Which outlines (unit, vertex, 2) lie inside with all of their vertices."""
    # Drawn in by a hair, so that a bin flush with the slide's edge is not lost to rounding.
    middle = outlines.mean(1, keepdims=True)
    return inside(middle + (1 - 1e-6) * (outlines - middle)).all(1)


def _require(n: int, name: str) -> None:
    if n == 0:
        raise ValueError(f"measured holds no whole element of {name}: measure more of the slide, or make it larger.")


def _table(
    region: str, obs: pd.DataFrame, owner: np.ndarray, gene: np.ndarray, var: pd.DataFrame, centres: np.ndarray
) -> AnnData:
    kept = owner >= 0
    ones = np.ones(kept.sum(), np.float32)
    counts = sparse.csr_matrix((ones, (owner[kept], gene[kept])), shape=(len(obs), len(var)))
    obs = obs.assign(region=pd.Categorical([region] * len(obs)), instance_id=np.arange(len(obs)))
    table = AnnData(counts, obs=obs.set_index(obs.index.astype(str)), var=var)
    table.obsm["spatial"] = centres
    return TableModel.parse(table, region=[region], region_key="region", instance_key="instance_id")


# --- elements ----------------------------------------------------------------------------------------------------


def _scale(factor: float) -> BaseTransformation:
    return Identity() if factor == 1 else Scale([factor, factor], axes=("x", "y"))


def _on_grid(transforms: dict[str, BaseTransformation], mpp: float) -> dict[str, BaseTransformation]:
    """Transformations of the superpixel grid that lies over an image."""
    return {name: Sequence([_scale(SUPERPIXEL_UM / mpp), transform]) for name, transform in transforms.items()}


def _he(picture: np.ndarray, transforms: dict[str, BaseTransformation]) -> Any:
    chunks = (3, 1024, 1024)
    return Image2DModel.parse(
        da.from_array(picture, chunks=chunks),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2, 2] if min(picture.shape[1:]) >= 1024 else None,
        chunks=chunks,
        transformations=transforms,
    )


def _truth_image(truth: _Truth, transforms: dict[str, BaseTransformation]) -> Any:
    n_genes, shape = len(truth.genes.names), truth.mask.shape
    raster = dask.delayed(truth.raster, pure=False)
    blocks = [slice(start, min(start + 16, n_genes)) for start in range(0, n_genes, 16)]
    lazy = [da.from_delayed(raster(b), (b.stop - b.start, *shape), dtype=np.float32) for b in blocks]
    return Image2DModel.parse(
        da.concatenate(lazy).rechunk((16, 512, 512)),
        dims=("c", "y", "x"),
        c_coords=list(truth.genes.names),
        transformations=transforms,
    )
