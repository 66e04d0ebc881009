"""Wrong arguments and wrong data, and what is said of them: `bad_input.md` and `tests/test_bad_input_table.py`.

uv run python docs/bad_input.py
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import spatialdata_io
import tifffile
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Identity, Scale

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe

PAGE = Path(__file__).with_name("bad_input.md")
HEAD = """# Wrong input

What is said of wrong arguments and wrong data. In no case is the SpatialData changed, or anything written.
`docs/bad_input.py` makes this page by making each mistake; the tests make them again.
"""
SYSTEMS = {"global": Identity(), "micrometers": Scale([0.5, 0.5], ("x", "y"))}
BINS = "square_008um"


@dataclass(frozen=True)
class Given:
    """What a case has at hand: a slide with all results, its model, and an empty folder."""

    sdata: SpatialData
    model: p2g.Model
    folder: Path = field(default_factory=Path)


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes
    ----------
    function
        Of pixel2gene that is called.
    what
        Is wrong.
    call
        With the mistake.
    change
        Of the slide before; gives another.
    """

    function: str
    what: str
    call: Callable[[Given], Any]
    change: Callable[[SpatialData], SpatialData] = lambda sdata: copied(sdata)


def given() -> Given:
    """Make the slide that all cases share."""
    sdata = p2g.datasets.simulate(size=(256, 320), n_genes=6, counts_per_superpixel=60, measured=1.0, seed=3)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    short = Recipe(folds=2, hidden=(8,), max_checks=1)
    model = p2g.tl.fit(sdata, "counts", image_key="he", recipe=short, progress=False)
    p2g.tl.predict(sdata, model, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    p2g.tl.aggregate(sdata, "predicted", BINS, progress=False)
    return Given(sdata, model)


def copied(sdata: SpatialData, without: tuple[str, ...] = (), **elements: Any) -> SpatialData:
    """Another SpatialData with the same elements but for some."""
    kept = {name: element for _, name, element in sdata.gen_elements() if name not in (*without, *elements)}
    return SpatialData.init_from_elements(kept | elements, attrs=dict(sdata.attrs))


def image(values: np.ndarray, systems: dict[str, Any] | None = None) -> Callable[[SpatialData], SpatialData]:
    """Another H&E."""
    return lambda sdata: copied(
        sdata, he=Image2DModel.parse(values, dims=("c", "y", "x"), transformations=dict(systems or SYSTEMS))
    )


def repainted(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[SpatialData], SpatialData]:
    """The H&E with other pixels."""
    return lambda sdata: image(change(np.asarray(sdata["he"].data)))(sdata)


def counts(change: Callable[[Any], Any]) -> Callable[[SpatialData], SpatialData]:
    """The table of counts, changed in place or anew."""

    def changed(sdata: SpatialData) -> SpatialData:
        table = sdata["counts"].copy()
        other = change(table)
        return copied(sdata, counts=table if other is None else other)

    return changed


def value(number: float) -> Callable[[SpatialData], SpatialData]:
    """One of the counts."""

    def change(table: Any) -> None:
        table.X = csr_matrix(table.X, dtype=np.float32)
        table.X.data[3] = number

    return counts(change)


def bins(
    change: Callable[[gpd.GeoSeries], gpd.GeoSeries], systems: dict[str, Any] | None = None
) -> Callable[[SpatialData], SpatialData]:
    """The bins elsewhere."""

    def changed(sdata: SpatialData) -> SpatialData:
        frame = gpd.GeoDataFrame(geometry=change(sdata[BINS].geometry), index=sdata[BINS].index)
        return copied(sdata, **{BINS: ShapesModel.parse(frame, transformations=dict(systems or SYSTEMS))})

    return changed


def emptied(table: Any) -> Any:
    """No unit is left."""
    none = table[:0].copy()
    none.uns["spatialdata_attrs"]["region"] = []
    return none


def swapped(sdata: SpatialData) -> SpatialData:
    """Bins of the right border, as if x were y."""
    right = counts(lambda table: table[table.obsm["spatial"][:, 0] > 262].copy())(sdata)
    return bins(lambda series: series.affine_transform([0, 1, 1, 0, 0, 0]))(right)


def shapes(geometry: list[Any], systems: dict[str, Any] | None = None) -> Any:
    """Regions."""
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=geometry), transformations=dict(systems or SYSTEMS))


def points(columns: dict[str, Any]) -> Any:
    """Transcripts."""
    axes = {axis: axis for axis in "xyz" if axis in columns}
    return PointsModel.parse(pd.DataFrame(columns), coordinates=axes, transformations=dict(SYSTEMS))


def record(**changed: Any) -> Callable[[SpatialData], SpatialData]:
    """The embedding, as if it were by another encoder."""

    def change(sdata: SpatialData) -> SpatialData:
        new = copied(sdata)
        records = dict(new.attrs["pixel2gene"])
        embedding = records["he_embedding"]
        records["he_embedding"] = {**embedding, "encoder": {**embedding["encoder"], **changed}}
        new.attrs = {**new.attrs, "pixel2gene": records}
        return new

    return change


def without(*names: str) -> Callable[[SpatialData], SpatialData]:
    """Some elements less."""
    return lambda sdata: copied(sdata, names)


def tissue(g: Given, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.tissue(g.sdata, **{"image_key": "he", "key_added": "new", "progress": False} | options)


def embed(g: Given, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.embed(g.sdata, **{"image_key": "he", "key_added": "new", "progress": False} | options)


def fit(g: Given, **options: Any) -> None:
    """As it should be called but for one thing."""
    sdata = options.pop("sdata", g.sdata)
    p2g.tl.fit(sdata, **{"table_key": "counts", "image_key": "he", "progress": False} | options)


def predict(g: Given, model: Any = None, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.predict(g.sdata, g.model if model is None else model, **{"key_added": "new", "progress": False} | options)


def denoise(g: Given, model: Any = None, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.denoise(g.sdata, g.model if model is None else model, **{"key_added": "new", "progress": False} | options)


def aggregate(g: Given, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.aggregate(
        g.sdata, **{"key": "predicted", "elements_key": BINS, "key_added": "new", "progress": False} | options
    )


def evaluate(g: Given, model: Any = None, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.evaluate(options.pop("sdata", g.sdata), g.model if model is None else model, **options)


def cross_validate(g: Given, **options: Any) -> None:
    """As it should be called but for one thing."""
    slides = options.pop("slides", {"one": g.sdata, "two": record()(g.sdata)})
    p2g.tl.cross_validate(slides, **{"table_key": "counts", "image_key": "he", "progress": False} | options)


def calibration(g: Given, model: Any = None, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.calibration(g.sdata, g.model if model is None else model, **options)


def check_alignment(g: Given, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.tl.check_alignment(g.sdata, **{"image_key": "he", "table_key": "counts", "progress": False} | options)


def expression(g: Given, **options: Any) -> None:
    """As it should be called but for one thing."""
    p2g.pl.expression(g.sdata, **{"gene": "GENE0001"} | options)


def damaged_tiff(g: Given) -> None:
    """An H&E whose file was cut short."""
    path, picture = g.folder / "he.ome.tif", np.moveaxis(np.asarray(g.sdata["he"].data), 0, -1)
    tifffile.imwrite(path, picture, photometric="rgb", tile=(64, 64), compression="deflate")
    path.write_bytes(path.read_bytes()[:9000])
    sdata = SpatialData(images={"he": spatialdata_io.xenium_aligned_image(path, None)})
    p2g.tl.tissue(sdata, "he", mpp=0.5, progress=False)


def section(g: Given, *, options: dict[str, Any] | None = None, **files: Any) -> None:
    """Read a section of legacy Spatial Transcriptomics, with files of other content, or none."""
    good = {
        "counts.tsv": "\tA\tB\n1x1\t3\t0\n2x1\t1\t2\n1x2\t0\t4\n",
        "spots.tsv": "x\ty\tpixel_x\tpixel_y\n1\t1\t10\t10\n2\t1\t50\t10\n1\t2\t10\t50\n",
        "he.png": _png(np.full((64, 64, 3), 200, np.uint8)),
    }
    _lay_out(g.folder, good | {name.replace("_", "."): content for name, content in files.items()})
    paths = [g.folder / name for name in good]
    p2g.io.legacy_st(*paths, **options or {})


def folder(g: Given, **files: Any) -> None:
    """Read a folder laid out for iStar, with files of other content, or none."""
    good = {
        "cnts.tsv": "\tA\tB\na\t3\t0\nb\t1\t2\n",
        "locs-raw.tsv": "\tx\ty\na\t10\t10\nb\t50\t10\n",
        "he-raw.png": _png(np.full((64, 64, 3), 200, np.uint8)),
        "pixel-size-raw.txt": "0.5",
        "radius-raw.txt": "55",
    }
    names = {name.replace("-", "_").replace(".", "_"): name for name in good}
    _lay_out(g.folder, good | {names.get(name, name): content for name, content in files.items()})
    p2g.io.folder(g.folder)


def _png(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _lay_out(place: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (place / name).write_bytes(content)
        elif content is not None:
            (place / name).write_text(content)


def load(g: Given, **files: bytes | None) -> None:
    """Read a model whose files hold something else."""
    g.model.save(g.folder / "m.p2g")
    for name, content in files.items():
        path = g.folder / "m.p2g" / {"model": "model.json", "weights": "weights.safetensors"}[name]
        path.unlink() if content is None else path.write_bytes(content)
    p2g.Model.load(g.folder / "m.p2g")


CASES = [
    Case("tl.tissue", "no SpatialData", lambda g: p2g.tl.tissue({}, "he")),
    Case("tl.tissue", "path in place of a SpatialData", lambda g: p2g.tl.tissue("slide.zarr", "he")),
    Case("tl.tissue", "unknown image", lambda g: tissue(g, image_key="nope")),
    Case("tl.tissue", "table in place of an image", lambda g: tissue(g, image_key="counts")),
    Case("tl.tissue", "no name of an image", lambda g: tissue(g, image_key=None)),
    Case("tl.tissue", "list of images", lambda g: tissue(g, image_key=["he"])),
    Case("tl.tissue", "negative pixel size", lambda g: tissue(g, mpp=-1.0)),
    Case("tl.tissue", "pixel size NaN", lambda g: tissue(g, mpp=float("nan"))),
    Case("tl.tissue", "pixel size as text", lambda g: tissue(g, mpp="0.5")),
    Case("tl.tissue", "pixel size against the data", lambda g: tissue(g, mpp=0.6)),
    Case("tl.tissue", "result that exists", lambda g: tissue(g, key_added="he_tissue")),
    Case(
        "tl.tissue",
        "name of the user's own element, overwrite=True",
        lambda g: tissue(g, key_added="truth_regions", overwrite=True),
    ),
    Case(
        "tl.tissue",
        "name of another kind of element, overwrite=True",
        lambda g: tissue(g, key_added="predicted", overwrite=True),
    ),
    Case("tl.tissue", "name with a slash", lambda g: tissue(g, key_added="a/b")),
    Case("tl.tissue", "name that leads out of the store", lambda g: tissue(g, key_added="../a")),
    Case("tl.tissue", "16-bit image", lambda g: tissue(g), repainted(lambda x: x.astype(np.uint16) * 257)),
    Case("tl.tissue", "image of fractions", lambda g: tissue(g), repainted(lambda x: x / 255.0)),
    Case(
        "tl.tissue", "fluorescence of six channels", lambda g: tissue(g), repainted(lambda x: np.repeat(x, 2, axis=0))
    ),
    Case("tl.tissue", "grey image", lambda g: tissue(g), repainted(lambda x: x[:1])),
    Case(
        "tl.tissue",
        "three-dimensional image",
        lambda g: tissue(g, image_key="stack"),
        lambda sdata: copied(
            sdata, stack=Image3DModel.parse(np.zeros((3, 2, 8, 8), np.uint8), dims=("c", "z", "y", "x"))
        ),
    ),
    Case(
        "tl.tissue",
        "image in no known size",
        lambda g: tissue(g, mpp=None),
        lambda sdata: SpatialData(
            images={"he": Image2DModel.parse(np.asarray(sdata["he"].data), dims=("c", "y", "x"))},
            labels={"truth_regions": sdata["truth_regions"]},
        ),
    ),
    Case(
        "tl.tissue",
        "hires image given as the full resolution",
        lambda g: tissue(g, mpp=4.5),
        lambda sdata: SpatialData(
            images={"he": Image2DModel.parse(np.asarray(sdata["he"].data), dims=("c", "y", "x"))},
            labels={"he_tissue": sdata["he_tissue"]},
            attrs=dict(sdata.attrs),
        ),
    ),
    Case(
        "tl.tissue",
        "micrometres given for pixels",
        lambda g: tissue(g, mpp=200.0),
        lambda sdata: SpatialData(
            images={"he": Image2DModel.parse(np.asarray(sdata["he"].data), dims=("c", "y", "x"))},
            labels={"he_tissue": sdata["he_tissue"]},
            attrs=dict(sdata.attrs),
        ),
    ),
    Case("tl.tissue", "fluorescence as RGB", lambda g: tissue(g), repainted(lambda x: (255 - x) // 4)),
    Case("tl.tissue", "nothing but glass", lambda g: tissue(g), repainted(lambda x: np.full_like(x, 240))),
    Case("tl.tissue", "file that was cut short", lambda g: damaged_tiff(g)),
    Case(
        "tl.tissue",
        "bins in µm, image in pixels",
        lambda g: tissue(g),
        lambda sdata: copied(
            SpatialData(images={"he": Image2DModel.parse(np.asarray(sdata["he"].data), dims=("c", "y", "x"))}),
            **{
                BINS: shapes(
                    list(sdata[BINS].geometry.affine_transform([0.5, 0, 0, 0.5, 0, 0])), {"global": Identity()}
                )
            },
        ),
    ),
    Case(
        "tl.tissue",
        "image scaled unevenly",
        lambda g: tissue(g),
        lambda sdata: image(
            np.asarray(sdata["he"].data), {"global": Identity(), "micrometers": Scale([0.5, 0.8], ("x", "y"))}
        )(sdata),
    ),
    Case(
        "tl.tissue",
        "coordinate systems that contradict",
        lambda g: tissue(g),
        lambda sdata: image(
            np.asarray(sdata["he"].data),
            {"um": Scale([0.3, 0.3], ("x", "y")), "micrometers": Scale([0.5, 0.5], ("x", "y"))},
        )(sdata),
    ),
    Case("tl.embed", "no SpatialData", lambda g: p2g.tl.embed({}, "he")),
    Case("tl.embed", "path in place of a SpatialData", lambda g: p2g.tl.embed("slide.zarr", "he")),
    Case("tl.embed", "unknown image", lambda g: embed(g, image_key="nope")),
    Case("tl.embed", "table in place of an image", lambda g: embed(g, image_key="counts")),
    Case("tl.embed", "no name of an image", lambda g: embed(g, image_key=None)),
    Case("tl.embed", "list of images", lambda g: embed(g, image_key=["he"])),
    Case("tl.embed", "negative pixel size", lambda g: embed(g, mpp=-1.0)),
    Case("tl.embed", "pixel size NaN", lambda g: embed(g, mpp=float("nan"))),
    Case("tl.embed", "pixel size as text", lambda g: embed(g, mpp="0.5")),
    Case("tl.embed", "pixel size against the data", lambda g: embed(g, mpp=0.6)),
    Case("tl.embed", "result that exists", lambda g: embed(g, key_added="he_embedding")),
    Case(
        "tl.embed", "name of the user's own element, overwrite=True", lambda g: embed(g, key_added="he", overwrite=True)
    ),
    Case(
        "tl.embed",
        "name of another kind of element, overwrite=True",
        lambda g: embed(g, key_added="predicted", overwrite=True),
    ),
    Case("tl.embed", "name with a slash", lambda g: embed(g, key_added="a/b")),
    Case("tl.embed", "name that leads out of the store", lambda g: embed(g, key_added="../a")),
    Case("tl.embed", "16-bit image", lambda g: embed(g), repainted(lambda x: x.astype(np.uint16) * 257)),
    Case("tl.embed", "image of fractions", lambda g: embed(g), repainted(lambda x: x / 255.0)),
    Case("tl.embed", "fluorescence of six channels", lambda g: embed(g), repainted(lambda x: np.repeat(x, 2, axis=0))),
    Case("tl.embed", "grey image", lambda g: embed(g), repainted(lambda x: x[:1])),
    Case(
        "tl.embed",
        "three-dimensional image",
        lambda g: embed(g, image_key="stack"),
        lambda sdata: copied(
            sdata, stack=Image3DModel.parse(np.zeros((3, 2, 8, 8), np.uint8), dims=("c", "z", "y", "x"))
        ),
    ),
    Case(
        "tl.embed",
        "image in no known size",
        lambda g: embed(g, mpp=None, tissue_key="truth_regions"),
        lambda sdata: SpatialData(
            images={"he": Image2DModel.parse(np.asarray(sdata["he"].data), dims=("c", "y", "x"))},
            labels={"truth_regions": sdata["truth_regions"]},
        ),
    ),
    Case(
        "tl.embed",
        "hires image given as the full resolution",
        lambda g: embed(g, mpp=4.5),
        lambda sdata: SpatialData(
            images={"he": Image2DModel.parse(np.asarray(sdata["he"].data), dims=("c", "y", "x"))},
            labels={"he_tissue": sdata["he_tissue"]},
            attrs=dict(sdata.attrs),
        ),
    ),
    Case(
        "tl.embed",
        "micrometres given for pixels",
        lambda g: embed(g, mpp=200.0),
        lambda sdata: SpatialData(
            images={"he": Image2DModel.parse(np.asarray(sdata["he"].data), dims=("c", "y", "x"))},
            labels={"he_tissue": sdata["he_tissue"]},
            attrs=dict(sdata.attrs),
        ),
    ),
    Case("tl.embed", "unknown encoder", lambda g: embed(g, encoder="nope")),
    Case("tl.embed", "encoder of another type", lambda g: embed(g, encoder=5)),
    Case("tl.embed", "folder without weights", lambda g: embed(g, encoder=g.folder)),
    Case("tl.embed", "overlap over 1", lambda g: embed(g, overlap=1.5)),
    Case("tl.embed", "overlap for an encoder without windows", lambda g: embed(g, overlap=0.5)),
    Case("tl.embed", "scales that do not grow from 1", lambda g: embed(g, scales=(2, 4))),
    Case("tl.embed", "unknown stain", lambda g: embed(g, stain="h&e")),
    Case("tl.embed", "unknown tissue", lambda g: embed(g, tissue_key="nope")),
    Case("tl.embed", "image in place of tissue", lambda g: embed(g, tissue_key="he")),
    Case("tl.embed", "tissue not found yet", lambda g: embed(g), without("he_tissue")),
    Case(
        "tl.embed",
        "tissue elsewhere",
        lambda g: embed(g, tissue_key="far"),
        lambda sdata: copied(sdata, far=shapes([shapely.box(9000, 9000, 9500, 9500)])),
    ),
    Case(
        "tl.embed",
        "tissue in another coordinate system",
        lambda g: embed(g, tissue_key="far"),
        lambda sdata: copied(sdata, far=shapes([shapely.box(0, 0, 90, 90)], {"elsewhere": Identity()})),
    ),
    Case(
        "tl.embed",
        "tissue without a label",
        lambda g: embed(g, tissue_key="none"),
        lambda sdata: copied(
            sdata,
            none=Labels2DModel.parse(np.zeros((256, 320), np.int32), dims=("y", "x"), transformations=dict(SYSTEMS)),
        ),
    ),
    Case("tl.embed", "unknown device", lambda g: embed(g, device="tpu9")),
    Case("tl.embed", "GPU that is not there", lambda g: embed(g, device="cuda:99")),
    Case("tl.fit", "no SpatialData", lambda g: fit(g, sdata="slide.zarr")),
    Case("tl.fit", "no slide", lambda g: fit(g, sdata=[])),
    Case("tl.fit", "list with something else", lambda g: fit(g, sdata=[g.sdata, None])),
    Case("tl.fit", "the same slide twice", lambda g: fit(g, sdata=[g.sdata, g.sdata])),
    Case("tl.fit", "unknown table", lambda g: fit(g, table_key="nope")),
    Case("tl.fit", "image in place of a table", lambda g: fit(g, table_key="he")),
    Case("tl.fit", "no name of a table", lambda g: fit(g, table_key=None)),
    Case("tl.fit", "unknown image", lambda g: fit(g, image_key="nope")),
    Case("tl.fit", "unknown layer", lambda g: fit(g, layer="nope")),
    Case("tl.fit", "unknown gene", lambda g: fit(g, genes=["nope"])),
    Case("tl.fit", "gene named twice", lambda g: fit(g, genes=["GENE0001", "GENE0001"])),
    Case("tl.fit", "gene as text in place of a list", lambda g: fit(g, genes="GENE0001")),
    Case("tl.fit", "no genes", lambda g: fit(g, genes=[])),
    Case("tl.fit", "genes by number", lambda g: fit(g, genes=[0, 1])),
    Case("tl.fit", "more counts asked for than any gene has", lambda g: fit(g, min_counts=10**9)),
    Case("tl.fit", "min_counts as text", lambda g: fit(g, min_counts="many")),
    Case("tl.fit", "unknown embedding", lambda g: fit(g, embedding_key="nope")),
    Case("tl.fit", "image in place of an embedding", lambda g: fit(g, embedding_key="he")),
    Case("tl.fit", "unknown join", lambda g: fit(g, join="left")),
    Case("tl.fit", "path in place of a reference", lambda g: fit(g, reference="model.p2g")),
    Case("tl.fit", "reference of the same slide", lambda g: fit(g, reference=g.model)),
    Case("tl.fit", 'reference with recipe="paper"', lambda g: fit(g, reference=g.model, recipe="paper")),
    Case("tl.fit", "unknown recipe", lambda g: fit(g, recipe="secret")),
    Case("tl.fit", "recipe of another type", lambda g: fit(g, recipe=5)),
    Case("tl.fit", "one fold", lambda g: fit(g, folds=1)),
    Case("tl.fit", "half a fold", lambda g: fit(g, folds=2.5)),
    Case("tl.fit", 'library_size with recipe="paper"', lambda g: fit(g, library_size=True, recipe="paper")),
    Case("tl.fit", "negative seed", lambda g: fit(g, seed=-1)),
    Case("tl.fit", "seed as text", lambda g: fit(g, seed="a")),
    Case("tl.fit", "unknown device", lambda g: fit(g, device="tpu9")),
    Case("tl.fit", "NaN among the counts", lambda g: fit(g), value(np.nan)),
    Case("tl.fit", "negative counts", lambda g: fit(g), value(-1)),
    Case("tl.fit", "fractional counts", lambda g: fit(g), value(0.5)),
    Case("tl.fit", "infinite counts", lambda g: fit(g), value(np.inf)),
    Case(
        "tl.fit",
        "log-normalised values",
        lambda g: fit(g),
        counts(lambda table: setattr(table, "X", np.log1p(table.X.toarray()))),
    ),
    Case(
        "tl.fit",
        "no counts at all",
        lambda g: fit(g),
        counts(lambda table: setattr(table, "X", csr_matrix(table.shape, dtype=np.float32))),
    ),
    Case("tl.fit", "table without rows", lambda g: fit(g), counts(emptied)),
    Case("tl.fit", "table without genes", lambda g: fit(g), counts(lambda table: table[:, :0].copy())),
    Case(
        "tl.fit",
        "only control probes",
        lambda g: fit(g),
        counts(lambda table: setattr(table, "var_names", [f"NegControlProbe_{i}" for i in range(table.n_vars)])),
    ),
    Case(
        "tl.fit",
        "table linked to nothing",
        lambda g: fit(g),
        counts(lambda table: table.uns.pop("spatialdata_attrs") and None),
    ),
    Case("tl.fit", "table linked to an element that is gone", lambda g: fit(g), without(BINS)),
    Case(
        "tl.fit",
        "bins that the element lacks",
        lambda g: fit(g),
        lambda sdata: copied(sdata, **{BINS: sdata[BINS].iloc[5:]}),
    ),
    Case("tl.fit", "bins outside the image", lambda g: fit(g), bins(lambda s: s.translate(1e6))),
    Case("tl.fit", "half of the bins outside the image", lambda g: fit(g), bins(lambda s: s.translate(230))),
    Case("tl.fit", "x and y swapped", lambda g: fit(g), swapped),
    Case("tl.fit", "bins with y upwards", lambda g: fit(g), bins(lambda s: s.affine_transform([1, 0, 0, -1, 0, 0]))),
    Case(
        "tl.fit",
        "bins with a mirrored transformation",
        lambda g: fit(g),
        bins(lambda s: s, {"global": Scale([-1, 1], ("x", "y"))}),
    ),
    Case(
        "tl.fit", "bins in µm given as pixels", lambda g: fit(g), bins(lambda s: s.affine_transform([8, 0, 0, 8, 0, 0]))
    ),
    Case(
        "tl.fit",
        "bins in another coordinate system",
        lambda g: fit(g),
        lambda sdata: copied(sdata, **{BINS: shapes(list(sdata[BINS].geometry), {"elsewhere": Identity()})}),
    ),
    Case(
        "tl.fit",
        "units without geometry",
        lambda g: fit(g),
        bins(lambda s: gpd.GeoSeries([shapely.Polygon()] * len(s), index=s.index)),
    ),
    Case(
        "tl.fit",
        "points without genes",
        lambda g: fit(g, table_key="points"),
        lambda sdata: copied(sdata, points=points({"x": [5.0, 9.0], "y": [5.0, 9.0]})),
    ),
    Case(
        "tl.fit",
        "three-dimensional points elsewhere",
        lambda g: fit(g, table_key="points"),
        lambda sdata: copied(
            sdata, points=points({"x": [5e6, 9e6], "y": [5.0, 9.0], "z": [0.0, 1.0], "gene": ["A", "B"]})
        ),
    ),
    Case(
        "tl.fit",
        "embedding of another crop of the image",
        lambda g: fit(g),
        lambda sdata: image(np.asarray(sdata["he"].data)[:, 30:])(sdata),
    ),
    Case("tl.fit", "more folds than blocks", lambda g: fit(g, folds=10**6)),
    Case("tl.predict", "no SpatialData", lambda g: p2g.tl.predict(None, g.model)),
    Case("tl.predict", "path in place of a model", lambda g: predict(g, "model.p2g")),
    Case("tl.predict", "unknown gene", lambda g: predict(g, genes=["nope"])),
    Case("tl.predict", "gene as text in place of a list", lambda g: predict(g, genes="GENE0001")),
    Case("tl.predict", "gene named twice", lambda g: predict(g, genes=["GENE0001", "GENE0001"])),
    Case("tl.predict", "no genes", lambda g: predict(g, genes=[])),
    Case("tl.predict", "score that no gene has", lambda g: predict(g, min_score=2.0)),
    Case("tl.predict", "score as text", lambda g: predict(g, min_score="high")),
    Case("tl.predict", "unknown image", lambda g: predict(g, image_key="nope")),
    Case("tl.predict", "unknown embedding", lambda g: predict(g, embedding_key="nope")),
    Case("tl.predict", "image in place of an embedding", lambda g: predict(g, embedding_key="he")),
    Case("tl.predict", "no embedding", lambda g: predict(g), without("he_embedding")),
    Case("tl.predict", "embedding of another encoder and scale", lambda g: predict(g), record(name="uni", mpp=0.25)),
    Case("tl.predict", "embedding with other weights", lambda g: predict(g), record(weights_sha256="0" * 64)),
    Case("tl.predict", "result that exists", lambda g: predict(g, key_added="predicted")),
    Case(
        "tl.predict",
        "name of the user's own element, overwrite=True",
        lambda g: predict(g, key_added="counts", overwrite=True),
    ),
    Case(
        "tl.predict",
        "name of another kind of element, overwrite=True",
        lambda g: predict(g, key_added="predicted_map", overwrite=True),
    ),
    Case("tl.predict", "name with a slash", lambda g: predict(g, key_added="a/b")),
    Case("tl.predict", "empty name", lambda g: predict(g, key_added="")),
    Case("tl.predict", "name of another type", lambda g: predict(g, key_added=5)),
    Case("tl.predict", "unknown device", lambda g: predict(g, device="tpu9")),
    Case(
        "tl.denoise",
        "bins in another coordinate system",
        lambda g: denoise(g),
        bins(lambda s: s, {"elsewhere": Identity()}),
    ),
    Case("tl.denoise", "no SpatialData", lambda g: p2g.tl.denoise(None, g.model)),
    Case("tl.denoise", "path in place of a model", lambda g: denoise(g, "model.p2g")),
    Case("tl.denoise", "unknown gene", lambda g: denoise(g, genes=["nope"])),
    Case("tl.denoise", "gene as text in place of a list", lambda g: denoise(g, genes="GENE0001")),
    Case("tl.denoise", "gene named twice", lambda g: denoise(g, genes=["GENE0001", "GENE0001"])),
    Case("tl.denoise", "no genes", lambda g: denoise(g, genes=[])),
    Case("tl.denoise", "score that no gene has", lambda g: denoise(g, min_score=2.0)),
    Case("tl.denoise", "score as text", lambda g: denoise(g, min_score="high")),
    Case("tl.denoise", "unknown image", lambda g: denoise(g, image_key="nope")),
    Case("tl.denoise", "unknown embedding", lambda g: denoise(g, embedding_key="nope")),
    Case("tl.denoise", "image in place of an embedding", lambda g: denoise(g, embedding_key="he")),
    Case("tl.denoise", "no embedding", lambda g: denoise(g), without("he_embedding")),
    Case("tl.denoise", "embedding of another encoder and scale", lambda g: denoise(g), record(name="uni", mpp=0.25)),
    Case("tl.denoise", "embedding with other weights", lambda g: denoise(g), record(weights_sha256="0" * 64)),
    Case("tl.denoise", "result that exists", lambda g: denoise(g, key_added="denoised")),
    Case(
        "tl.denoise",
        "name of the user's own element, overwrite=True",
        lambda g: denoise(g, key_added="counts", overwrite=True),
    ),
    Case(
        "tl.denoise",
        "name of another kind of element, overwrite=True",
        lambda g: denoise(g, key_added="predicted_map", overwrite=True),
    ),
    Case("tl.denoise", "name with a slash", lambda g: denoise(g, key_added="a/b")),
    Case("tl.denoise", "empty name", lambda g: denoise(g, key_added="")),
    Case("tl.denoise", "name of another type", lambda g: denoise(g, key_added=5)),
    Case("tl.denoise", "unknown device", lambda g: denoise(g, device="tpu9")),
    Case("tl.denoise", "unknown table", lambda g: denoise(g, table_key="nope")),
    Case("tl.denoise", "unknown layer", lambda g: denoise(g, layer="nope")),
    Case(
        "tl.denoise",
        "genes by other names",
        lambda g: denoise(g),
        counts(lambda table: setattr(table, "var_names", [f"ENSG{i}" for i in range(table.n_vars)])),
    ),
    Case("tl.denoise", "negative counts", lambda g: denoise(g), value(-1)),
    Case("tl.denoise", "fractional counts", lambda g: denoise(g), value(0.5)),
    Case("tl.denoise", "a result in place of counts", lambda g: denoise(g, table_key="denoised")),
    Case("tl.denoise", "bins outside the image", lambda g: denoise(g), bins(lambda s: s.translate(1e6))),
    Case("tl.aggregate", "no SpatialData", lambda g: p2g.tl.aggregate([], "predicted", BINS)),
    Case("tl.aggregate", "unknown result", lambda g: aggregate(g, key="nope")),
    Case("tl.aggregate", "counts in place of a result", lambda g: aggregate(g, key="counts")),
    Case("tl.aggregate", "map of a result in place of the result", lambda g: aggregate(g, key="predicted_map")),
    Case("tl.aggregate", "result without its map", lambda g: aggregate(g), without("predicted_map")),
    Case("tl.aggregate", "unknown elements", lambda g: aggregate(g, elements_key="nope")),
    Case("tl.aggregate", "image in place of elements", lambda g: aggregate(g, elements_key="he")),
    Case("tl.aggregate", "table in place of elements", lambda g: aggregate(g, elements_key="counts")),
    Case(
        "tl.aggregate",
        "elements outside the tissue",
        lambda g: aggregate(g, elements_key="far"),
        lambda sdata: copied(sdata, far=shapes([shapely.box(9000, 9000, 9500, 9500)])),
    ),
    Case(
        "tl.aggregate",
        "elements in another coordinate system",
        lambda g: aggregate(g, elements_key="far"),
        lambda sdata: copied(sdata, far=shapes([shapely.box(0, 0, 90, 90)], {"elsewhere": Identity()})),
    ),
    Case(
        "tl.aggregate",
        "elements named twice",
        lambda g: aggregate(g, elements_key="twice"),
        lambda sdata: copied(
            sdata,
            twice=ShapesModel.parse(
                gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 90, 90)] * 2, index=[1, 1]), transformations=dict(SYSTEMS)
            ),
        ),
    ),
    Case(
        "tl.aggregate",
        "labels without a label",
        lambda g: aggregate(g, elements_key="none"),
        lambda sdata: copied(
            sdata,
            none=Labels2DModel.parse(np.zeros((256, 320), np.int32), dims=("y", "x"), transformations=dict(SYSTEMS)),
        ),
    ),
    Case("tl.aggregate", "result that exists", lambda g: aggregate(g, key_added="predicted_square_008um")),
    Case(
        "tl.aggregate",
        "name of the user's own element, overwrite=True",
        lambda g: aggregate(g, key_added="counts", overwrite=True),
    ),
    Case(
        "tl.aggregate",
        "name of another kind of element, overwrite=True",
        lambda g: aggregate(g, key_added="predicted_map", overwrite=True),
    ),
    Case("tl.open_map", "unknown result", lambda g: p2g.tl.open_map(g.sdata, "nope")),
    Case("tl.open_map", "result that is not lazy", lambda g: p2g.tl.open_map(g.sdata, "predicted")),
    Case("tl.open_map", "no SpatialData", lambda g: p2g.tl.open_map({}, "predicted")),
    Case("tl.evaluate", "no SpatialData", lambda g: evaluate(g, sdata="slide.zarr")),
    Case("tl.evaluate", "path in place of a model", lambda g: evaluate(g, "model.p2g")),
    Case("tl.evaluate", "no slide", lambda g: evaluate(g, sdata=[])),
    Case("tl.evaluate", "unknown table", lambda g: evaluate(g, table_key="nope")),
    Case("tl.evaluate", "unknown layer", lambda g: evaluate(g, layer="nope")),
    Case("tl.evaluate", "unknown image", lambda g: evaluate(g, image_key="nope")),
    Case("tl.evaluate", "embedding of another encoder and scale", lambda g: evaluate(g), record(name="uni", mpp=0.25)),
    Case("tl.evaluate", "fractional counts", lambda g: evaluate(g), value(0.5)),
    Case("tl.calibration", "path in place of a model", lambda g: calibration(g, "model.p2g")),
    Case("tl.calibration", "unknown table", lambda g: calibration(g, table_key="nope")),
    Case("tl.calibration", "unknown image", lambda g: calibration(g, image_key="nope")),
    Case("tl.calibration", "negative counts", lambda g: calibration(g), value(-1)),
    Case("tl.calibration", "no SpatialData", lambda g: p2g.tl.calibration({}, g.model)),
    Case("tl.cross_validate", "one slide", lambda g: cross_validate(g, slides=[g.sdata])),
    Case("tl.cross_validate", "no list", lambda g: cross_validate(g, slides=g.sdata)),
    Case("tl.cross_validate", "the same slide twice", lambda g: cross_validate(g)),
    Case("tl.cross_validate", "list with something else", lambda g: cross_validate(g, slides=[g.sdata, "other"])),
    Case("tl.check_alignment", "no SpatialData", lambda g: p2g.tl.check_alignment({}, "he", "counts")),
    Case("tl.check_alignment", "unknown image", lambda g: check_alignment(g, image_key="nope")),
    Case("tl.check_alignment", "unknown table", lambda g: check_alignment(g, table_key="nope")),
    Case("tl.check_alignment", "unknown layer", lambda g: check_alignment(g, layer="nope")),
    Case("tl.check_alignment", "no shift allowed", lambda g: check_alignment(g, max_shift=0.0)),
    Case("tl.check_alignment", "shift NaN", lambda g: check_alignment(g, max_shift=float("nan"))),
    Case("tl.check_alignment", "shift as text", lambda g: check_alignment(g, max_shift="far")),
    Case("tl.check_alignment", "pixel size against the data", lambda g: check_alignment(g, mpp=0.6)),
    Case(
        "tl.check_alignment",
        "bins in another coordinate system",
        lambda g: check_alignment(g),
        bins(lambda s: s, {"elsewhere": Identity()}),
    ),
    Case(
        "tl.check_alignment",
        "no counts at all",
        lambda g: check_alignment(g),
        counts(lambda table: setattr(table, "X", csr_matrix(table.shape, dtype=np.float32))),
    ),
    Case("pl.expression", "no SpatialData", lambda g: p2g.pl.expression({}, "GENE0001")),
    Case("pl.expression", "unknown gene", lambda g: expression(g, gene="nope")),
    Case("pl.expression", "unknown image", lambda g: expression(g, image_key="nope")),
    Case(
        "pl.expression",
        "table linked to nothing",
        lambda g: expression(g),
        counts(lambda table: table.uns.pop("spatialdata_attrs") and None),
    ),
    Case(
        "pl.expression",
        "trust without a prediction",
        lambda g: expression(g, min_trust=0.5),
        without("predicted_trust"),
    ),
    Case("pl.tissue", "no SpatialData", lambda g: p2g.pl.tissue({}, "he")),
    Case("pl.tissue", "unknown image", lambda g: p2g.pl.tissue(g.sdata, "nope")),
    Case("pl.calibration", "something else than a calibration", lambda g: p2g.pl.calibration(pd.DataFrame({"a": [1]}))),
    Case("datasets.simulate", "unknown platform", lambda g: p2g.datasets.simulate("cosmx")),
    Case("datasets.simulate", "no pixels", lambda g: p2g.datasets.simulate(size=(0, 0))),
    Case("datasets.simulate", "size of one number", lambda g: p2g.datasets.simulate(size=512)),
    Case("datasets.simulate", "negative pixel size", lambda g: p2g.datasets.simulate(size=(256, 256), mpp=-0.5)),
    Case("datasets.simulate", "no genes", lambda g: p2g.datasets.simulate(size=(256, 256), n_genes=0)),
    Case("datasets.simulate", "unknown profile", lambda g: p2g.datasets.simulate(size=(256, 256), profile="rich")),
    Case(
        "datasets.simulate",
        "negative counts",
        lambda g: p2g.datasets.simulate(size=(256, 256), counts_per_superpixel=-1),
    ),
    Case("datasets.simulate", "visible share over 1", lambda g: p2g.datasets.simulate(size=(256, 256), visible=1.5)),
    Case("datasets.simulate", "measured share over 1", lambda g: p2g.datasets.simulate(size=(256, 256), measured=2.0)),
    Case("datasets.simulate", "image of fractions", lambda g: p2g.datasets.simulate(image=np.zeros((3, 64, 64)))),
    Case("datasets.simulate", "negative stripes", lambda g: p2g.datasets.simulate(size=(256, 256), stripes=-1)),
    Case("datasets.simulate", "negative seed", lambda g: p2g.datasets.simulate(size=(256, 256), seed=-1)),
    Case("datasets.true_counts", "no SpatialData", lambda g: p2g.datasets.true_counts({})),
    Case("datasets.true_counts", "unknown table", lambda g: p2g.datasets.true_counts(g.sdata, "nope")),
    Case("datasets.true_counts", "slide without truth", lambda g: p2g.datasets.true_counts(g.sdata), without("truth")),
    Case(
        "datasets.plant_artefact",
        "unknown artefact",
        lambda g: p2g.datasets.plant_artefact(np.zeros((3, 64, 64), np.uint8), "coffee"),
    ),
    Case(
        "datasets.plant_artefact",
        "image of fractions",
        lambda g: p2g.datasets.plant_artefact(np.zeros((3, 64, 64)), "pen"),
    ),
    Case("datasets.her2st", "unknown section", lambda g: p2g.datasets.her2st("Z9")),
    Case("io.legacy_st", "no counts", lambda g: section(g, counts_tsv=None)),
    Case("io.legacy_st", "no spots", lambda g: section(g, spots_tsv=None)),
    Case("io.legacy_st", "no image", lambda g: section(g, he_png=None)),
    Case("io.legacy_st", "empty counts", lambda g: section(g, counts_tsv="")),
    Case("io.legacy_st", "empty spots", lambda g: section(g, spots_tsv="")),
    Case("io.legacy_st", "words among the counts", lambda g: section(g, counts_tsv="\tA\n1x1\tmany\n2x1\t1\n")),
    Case("io.legacy_st", "negative counts", lambda g: section(g, counts_tsv="\tA\n1x1\t-3\n2x1\t1\n")),
    Case("io.legacy_st", "fractional counts", lambda g: section(g, counts_tsv="\tA\n1x1\t0.5\n2x1\t1\n")),
    Case("io.legacy_st", "spot named twice", lambda g: section(g, counts_tsv="\tA\n1x1\t3\n1x1\t1\n")),
    Case("io.legacy_st", "counts of another section", lambda g: section(g, counts_tsv="\tA\n8x8\t3\n")),
    Case("io.legacy_st", "column missing", lambda g: section(g, spots_tsv="x\ty\n1\t1\n")),
    Case(
        "io.legacy_st", "positions in words", lambda g: section(g, spots_tsv="x\ty\tpixel_x\tpixel_y\n1\t1\tleft\t10\n")
    ),
    Case(
        "io.legacy_st",
        "spots on one line",
        lambda g: section(g, spots_tsv="x\ty\tpixel_x\tpixel_y\n1\t1\t10\t10\n2\t1\t50\t10\n"),
    ),
    Case(
        "io.legacy_st",
        "spots outside the image",
        lambda g: section(g, spots_tsv="x\ty\tpixel_x\tpixel_y\n1\t1\t10\t10\n2\t1\t5000\t10\n1\t2\t10\t5000\n"),
    ),
    Case("io.legacy_st", "image that is none", lambda g: section(g, he_png=b"not an image")),
    Case(
        "io.legacy_st",
        "image that was cut short",
        lambda g: section(g, he_png=_png(np.zeros((64, 64, 3), np.uint8))[:60]),
    ),
    Case("io.legacy_st", "grey image", lambda g: section(g, he_png=_png(np.zeros((64, 64), np.uint8)))),
    Case("io.legacy_st", "negative width of spots", lambda g: section(g, options={"spot_um": -1.0})),
    Case("io.legacy_st", "bytes in place of a table", lambda g: section(g, counts_tsv=b"\xff\xfe\x00\x01")),
    Case(
        "io.legacy_st",
        "genes of the same name",
        lambda g: section(g, counts_tsv="\tA\tA\n1x1\t3\t0\n2x1\t1\t2\n1x2\t0\t4\n"),
    ),
    Case("io.folder", "no folder", lambda g: p2g.io.folder(g.folder / "nope")),
    Case("io.folder", "no counts", lambda g: folder(g, cnts_tsv=None)),
    Case("io.folder", "no positions", lambda g: folder(g, locs_raw_tsv=None)),
    Case("io.folder", "no image", lambda g: folder(g, he_raw_png=None)),
    Case("io.folder", "no pixel size", lambda g: folder(g, pixel_size_raw_txt=None)),
    Case("io.folder", "no radius", lambda g: folder(g, radius_raw_txt=None)),
    Case("io.folder", "pixel size in words", lambda g: folder(g, pixel_size_raw_txt="half")),
    Case("io.folder", "pixel size inverted", lambda g: folder(g, pixel_size_raw_txt="20.0")),
    Case("io.folder", "negative radius", lambda g: folder(g, radius_raw_txt="-4")),
    Case("io.folder", "empty counts", lambda g: folder(g, cnts_tsv="")),
    Case("io.folder", "counts in two formats", lambda g: folder(g, **{"cnts.parquet": b"PAR1"})),
    Case("io.folder", "positions without y", lambda g: folder(g, locs_raw_tsv="\tx\na\t10\nb\t50\n")),
    Case("io.folder", "units of another slide", lambda g: folder(g, locs_raw_tsv="\tx\ty\nc\t10\t10\nd\t50\t10\n")),
    Case("io.folder", "units outside the image", lambda g: folder(g, locs_raw_tsv="\tx\ty\na\t10\t10\nb\t5000\t10\n")),
    Case(
        "io.folder",
        "x and y swapped",
        lambda g: folder(
            g, he_raw_png=_png(np.zeros((64, 32, 3), np.uint8)), locs_raw_tsv="\tx\ty\na\t60\t10\nb\t50\t10\n"
        ),
    ),
    Case("io.folder", "image that is none", lambda g: folder(g, he_raw_png=b"not an image")),
    Case("io.folder", "bytes in place of a table", lambda g: folder(g, cnts_tsv=b"\xff\xfe\x00\x01")),
    Case("Model.load", "no model", lambda g: p2g.Model.load(g.folder / "nope")),
    Case("Model.load", "empty folder", lambda g: p2g.Model.load(g.folder)),
    Case("Model.load", "no weights", lambda g: load(g, weights=None)),
    Case("Model.load", "weights of other bytes", lambda g: load(g, weights=b"abc")),
    Case("Model.load", "no JSON", lambda g: load(g, model=b"{")),
    Case("Model.load", "JSON of something else", lambda g: load(g, model=b"[1, 2]")),
    Case("Model.load", "another format", lambda g: load(g, model=b'{"format": 99}')),
    Case("Model.load", "pickle in disguise", lambda g: load(g, weights=b"\x80\x04K\x01.")),
    Case("Model.save", "model that exists", lambda g: [g.model.save(g.folder / "m.p2g") for _ in range(2)]),
    Case("Model.save", "folder that is no model", lambda g: g.model.save(g.folder, overwrite=True)),
    Case("Model.of_genes", "unknown gene", lambda g: g.model.of_genes(["nope"])),
]


def answer(case: Case, shared: Given, folder: Path) -> tuple[Given, Exception | None]:
    """What the case had at hand, and what was raised, if anything was."""
    at_hand = Given(case.change(shared.sdata), shared.model, folder)
    try:
        case.call(at_hand)
    except Exception as error:  # noqa: BLE001
        return at_hand, error
    return at_hand, None


def message(error: Exception, folder: Path) -> str:
    """As a row of the page has it: without what differs from place to place and from library to library."""
    text = str(error.args[0] if isinstance(error, KeyError) else error).replace(str(folder), "FOLDER")
    text = re.sub(r"(cannot be read[^(]*) \(.*\)([;:])", r"\1 (...)\2", text)
    return re.sub(r"\b[0-9a-f]{64}\b|-?\b\d\.\d{3}\b", "...", text)


def row(case: Case, error: Exception, folder: Path) -> str:
    """Of the table of the function."""
    said = message(error, folder).replace("|", "\\|")
    return f"| {case.what} | `{type(error).__name__}` | {said} |"


def page(rows: Iterable[tuple[str, str]]) -> str:
    """All rows (function, row)."""
    lines, last = [HEAD], ""
    for function, line in rows:
        if function != last:
            lines += ["", f"## `{function}`", "", "| what is wrong | error | what is said |", "| --- | --- | --- |"]
        lines.append(line)
        last = function
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    warnings.simplefilter("ignore")
    logging.disable()
    shared, rows = given(), []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            _, error = answer(case, shared, Path(folder))
            if error is None:
                raise RuntimeError(f"{case.function}: {case.what}: nothing is said")
            rows.append((case.function, row(case, error, Path(folder))))
    PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
