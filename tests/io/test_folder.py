"""Folders laid out for iStar or Pixel2Gene: what is written comes out, broken files are named, the main job runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from PIL import Image
from scipy import sparse

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe
from pixel2gene.io import folder
from pixel2gene.spatial.pixel_size import pixel_size


class Slide:
    """The files of a folder, with the pieces to change before they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rng = np.random.default_rng(0)
        names = [f"spot{i}" for i in range(12)]
        self.counts = pd.DataFrame(rng.poisson(2, (12, 4)), index=names, columns=["A", "B", "C", "D"])
        self.places = pd.DataFrame(rng.uniform(0, 200, (12, 2)), index=names, columns=["x", "y"])[::-1]
        self.image = rng.integers(0, 255, (220, 260, 3), np.uint8)
        self.texts = {"pixel-size-raw": "0.5\n", "radius-raw": "55"}

    def write(self, table: str = "tsv", image: str = "png") -> Path:
        for name, frame in [("cnts", self.counts), ("locs-raw", self.places)]:
            file = self.path / f"{name}.{table}"
            frame.to_csv(file, sep="\t") if table == "tsv" else frame.to_parquet(file)
        file = self.path / f"he-raw.{image}"
        if image.endswith(("tif", "tiff", "btf")):
            tifffile.imwrite(file, self.image, photometric="rgb", tile=(64, 64), compression="zlib")
        else:
            Image.fromarray(self.image).save(file)
        for name, text in self.texts.items():
            (self.path / f"{name}.txt").write_text(text)
        return self.path


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    return Slide(tmp_path)


@pytest.mark.parametrize("table", ["tsv", "parquet"])
def test_elements(slide: Slide, table: str) -> None:
    sdata = folder(slide.write(table))
    found, spots = sdata["counts"], sdata["spots"]
    assert np.array_equal(sdata["he"].to_numpy(), slide.image.transpose(2, 0, 1))
    assert isinstance(found.X, sparse.csr_matrix) and found.X.dtype == np.float32
    pd.testing.assert_frame_equal(found.to_df(), slide.counts, check_dtype=False)
    assert np.allclose(found.obsm["spatial"], slide.places.loc[found.obs_names])
    assert np.array_equal(np.column_stack([spots.geometry.x, spots.geometry.y]), found.obsm["spatial"])
    assert (spots["radius"] == 55).all()
    assert found.uns["spatialdata_attrs"]["region"] == ["spots"]
    assert pixel_size(sdata, "he") == 0.5


def test_order_of_the_units_and_numbers_as_names_do_not_matter(slide: Slide) -> None:
    expected = folder(slide.write())["counts"]
    slide.counts.index = slide.counts.index.str.removeprefix("spot")
    slide.places.index = slide.places.index.str.removeprefix("spot").astype(int)
    slide.places = slide.places.sample(frac=1, random_state=0)
    found = folder(slide.write())["counts"]
    assert np.array_equal(found.obsm["spatial"], expected.obsm["spatial"])


@pytest.mark.parametrize("suffix", ["tif", "tiff", "ome.tif", "btf", "jpg", "jpeg"])
def test_image_formats(slide: Slide, suffix: str) -> None:
    sdata = folder(slide.write(image=suffix))
    values = sdata["he"].to_numpy()
    assert values.shape == (3, 220, 260) and values.dtype == np.uint8
    if suffix not in ("jpg", "jpeg"):
        assert np.array_equal(values, slide.image.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ("YXS", {"photometric": "rgb"}),
        ("YXS", {"photometric": "rgb", "compression": "lzw", "rowsperstrip": 16}),
        ("CYX", {"photometric": "minisblack", "metadata": {"axes": "CYX"}}),
        ("SYX", {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "tile": (64, 64)}),
    ],
)
def test_tiff_layouts(slide: Slide, axes: str, options: dict[str, object]) -> None:
    path = slide.write(image="ome.tif")
    values = slide.image if axes == "YXS" else slide.image.transpose(2, 0, 1)
    tifffile.imwrite(path / "he-raw.ome.tif", values, **options)
    assert np.array_equal(folder(path)["he"].to_numpy(), slide.image.transpose(2, 0, 1))


def test_alpha_is_dropped_and_of_a_pyramid_the_full_resolution_is_read(slide: Slide) -> None:
    path = slide.write(image="tif")
    rgba = np.dstack([slide.image, np.full(slide.image.shape[:2], 255, np.uint8)])
    with tifffile.TiffWriter(path / "he-raw.tif") as file:
        options = {"photometric": "rgb", "tile": (64, 64), "extrasamples": ["unassalpha"]}
        file.write(rgba, subifds=1, **options)
        file.write(rgba[::2, ::2], subfiletype=1, **options)
    assert np.array_equal(folder(path)["he"].to_numpy(), slide.image.transpose(2, 0, 1))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_large_tiff_is_read_by_windows(slide: Slide, compression: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    slide.image = np.zeros((300, 5000, 3), np.uint8)
    path = slide.write(image="tif")
    tifffile.imwrite(
        path / "he-raw.tif",
        slide.image,
        photometric="rgb",
        compression=compression,
        tile=(128, 128) if compression else None,
    )
    decoded = []
    decode = tifffile.TiffPage.decode
    monkeypatch.setattr(
        tifffile.TiffPage, "decode", property(lambda page: decoded.append(page) or decode.__get__(page))
    )
    level = folder(path)["he"]["scale0"]["image"]
    assert isinstance(level.data, da.Array)
    assert max(size for axis in level.data.chunks[1:] for size in axis) <= 1024
    decoded.clear()
    level[:, :10, :10].to_numpy()
    window = len(decoded)
    level.to_numpy()
    assert window <= (len(decoded) - window) / 4


def _missing(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(text) and None


def _frame(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / f"{name}.tsv"
        change(pd.read_csv(file, sep="\t", index_col=0)).to_csv(file, sep="\t")

    return apply


def _image(values: np.ndarray, suffix: str = "png") -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / "he-raw.png").unlink()
        file = path / f"he-raw.{suffix}"
        tifffile.imwrite(file, values) if suffix == "tif" else Image.fromarray(values).save(file)

    return apply


def _cut_short(path: Path) -> None:
    file = path / "he-raw.png"
    file.write_bytes(file.read_bytes()[:5000])


def _cut_tiff_short(path: Path) -> None:
    rng = np.random.default_rng(0)
    _image(rng.integers(0, 255, (400, 400, 3), np.uint8), "tif")(path)
    file = path / "he-raw.tif"
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_missing("cnts.tsv"), r"no cnts\.tsv or cnts\.parquet in .*; there are \['he-raw\.png', 'locs-raw\.tsv'"),
        (_missing("locs-raw.tsv"), r"no locs-raw\.tsv or locs-raw\.parquet"),
        (_missing("he-raw.png"), r"no he-raw\.jpg or .* or he-raw\.btf"),
        (_missing("pixel-size-raw.txt"), r"no pixel-size-raw\.txt"),
        (_missing("radius-raw.txt"), r"at 0\.5 µm per pixel 55 for Visium spots of 55 µm, 8 for bins of 8 µm"),
        (_text("he-raw.tif", "?"), r"has he-raw\.png and he-raw\.tif; keep the one"),
        (_text("pixel-size-raw.txt", "236"), "236 µm per pixel; 0.05 to 10 are plausible"),
        (_text("pixel-size-raw.txt", "0,5"), r"pixel-size-raw\.txt holds '0,5'; one positive number"),
        (_text("radius-raw.txt", "-3"), r"radius-raw\.txt holds '-3'; one positive number"),
        (_text("cnts.tsv", ""), "cannot be read as a table"),
        (_text("cnts.tsv", "unit\n"), "holds no values"),
        (_frame("locs-raw", lambda x: x.rename(columns={"x": "col"})), r"lacks the columns \['x'\]; there are \['col'"),
        (_frame("locs-raw", lambda x: x.iloc[:-2]), "2 have no position, such as .* and 0 no counts"),
        (_frame("cnts", lambda x: x.iloc[:-1]), "0 have no position, .* and 1 no counts, such as"),
        (_frame("locs-raw", lambda x: pd.concat([x, x.iloc[:1]])), "1 spots more than once"),
        (_frame("locs-raw", lambda x: x.astype(object).replace(x.iloc[0, 0], "?")), "positions that are no numbers"),
        (_frame("locs-raw", lambda x: x + 1000), "12 of 12 spots of .* lie outside"),
        (_frame("locs-raw", lambda x: x.assign(x=100, y=[255, *x["y"][1:]])), "With x and y swapped"),
        (_frame("cnts", lambda x: x + 0.5), "48 values that are negative or not whole numbers"),
        (_frame("cnts", lambda x: x.assign(A="many")), "text in 1 columns, such as 'A'"),
        (_image(np.zeros((220, 260), np.uint8)), "RGB image with 8 bits"),
        (_image(np.zeros((220, 260, 3), np.uint16), "tif"), "uint16 pixels .* not RGB with 8 bits"),
        (_image(np.zeros((220, 260), np.uint8), "tif"), "not RGB with 8 bits"),
        (_cut_short, "cannot be read as an image"),
        (_cut_tiff_short, "cannot be read as an RGB image"),
    ],
)
def test_broken_files_are_named(slide: Slide, break_it: Callable[[Path], None], message: str) -> None:
    path = slide.write()
    break_it(path)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        folder(path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        folder(tmp_path / "absent")


def test_the_main_job_runs_on_it(slide: Slide, tmp_path: Path) -> None:
    made = p2g.datasets.simulate(size=(384, 384), n_genes=6, counts_per_superpixel=60, measured=1.0, seed=3)
    counts = made["counts"]
    slide.counts = counts.to_df().astype(int)
    slide.places = pd.DataFrame(counts.obsm["spatial"], index=counts.obs_names, columns=["x", "y"])
    slide.image = made["he"].to_numpy().transpose(1, 2, 0)
    slide.texts["radius-raw"] = "8"
    folder(slide.write("parquet", "ome.tif")).write(tmp_path / "slide.zarr")
    sdata = sd.read_zarr(tmp_path / "slide.zarr")
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    model = p2g.tl.fit(sdata, "counts", image_key="he", recipe=Recipe(folds=3, hidden=(64, 16)), progress=False)
    p2g.tl.predict(sdata, model, progress=False)
    truth = made["truth"].sel(c=model.genes).values
    row, column = np.divmod(sdata["predicted"].obs["instance_id"].to_numpy() - 1, truth.shape[2])
    found = [np.corrcoef(x, y)[0, 1] for x, y in zip(sdata["predicted"].X.T, truth[:, row, column], strict=True)]
    assert np.mean(found) > 0.3
