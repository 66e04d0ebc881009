"""Legacy ST: positions, pixel size, counts and transforms come out as written; broken files are named."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from PIL import Image
from scipy import sparse
from spatialdata.transformations import get_transformation

from pixel2gene.io import legacy_st
from pixel2gene.spatial.pixel_size import pixel_size

PITCH_PX = 40.0


def lattice(step: int = 1, stretch: float = 1.0) -> pd.DataFrame:
    """Spots of a 1k array (step 1) or, with step 2, of the two interleaved lattices of a 2k array."""
    x, y = (axis.ravel() + 3 for axis in np.indices((6, 5)))
    keep = (x + y) % step == 0
    x, y = x[keep], y[keep]
    unit = PITCH_PX / step
    return pd.DataFrame({"x": x, "y": y, "pixel_x": unit * x - 50, "pixel_y": unit * y * stretch - 60})


def names(spots: pd.DataFrame) -> list[str]:
    return [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]


class Section:
    """Three files of a section, with the pieces to change before they are written."""

    def __init__(self, folder: Path, spots: pd.DataFrame) -> None:
        self.folder = folder
        self.spots = spots
        values = np.random.default_rng(0).poisson(2, (len(spots), 4))
        self.counts = pd.DataFrame(values, index=names(spots), columns=["A", "B", "C", "D"])
        self.image = np.random.default_rng(1).integers(0, 255, (260, 300, 3), np.uint8)

    def read(self, suffix: str = "png", **options: float) -> sd.SpatialData:
        paths = [self.folder / name for name in ("counts.tsv.gz", "spots.tsv", f"image.{suffix}")]
        self.counts.to_csv(paths[0], sep="\t")
        self.spots.to_csv(paths[1], sep="\t", index=False)
        Image.fromarray(self.image).save(paths[2])
        return legacy_st(*paths, **options)


@pytest.fixture
def section(tmp_path: Path) -> Section:
    return Section(tmp_path, lattice())


def test_elements(section: Section) -> None:
    sdata = section.read()
    table, spots = sdata["counts"], sdata["spots"]
    assert np.array_equal(sdata["he"].to_numpy(), section.image.transpose(2, 0, 1))
    assert list(sdata["he"].coords["c"].values) == ["r", "g", "b"]
    assert isinstance(table.X, sparse.csr_matrix) and table.X.dtype == np.float32
    assert np.array_equal(table.X.toarray(), section.counts)
    assert list(table.var_names) == ["A", "B", "C", "D"]
    assert list(table.obs_names) == names(section.spots)
    assert np.array_equal(table.obs[["array_col", "array_row"]], section.spots[["x", "y"]])
    assert np.array_equal(table.obsm["spatial"], section.spots[["pixel_x", "pixel_y"]])
    assert np.array_equal(np.column_stack([spots.geometry.x, spots.geometry.y]), table.obsm["spatial"])
    assert list(table.obs["instance_id"]) == list(spots.index)
    assert table.uns["spatialdata_attrs"]["region"] == ["spots"]


def test_lengths_follow_the_lattice(section: Section) -> None:
    sdata = section.read()
    assert np.allclose(sdata["spots"]["radius"], PITCH_PX / 4)
    for key in ("he", "spots"):
        assert set(get_transformation(sdata[key], get_all=True)) == {"global", "micrometers"}
        matrix = get_transformation(sdata[key], "micrometers").to_affine_matrix(("x", "y"), ("x", "y"))
        assert np.allclose(matrix, np.diag([5, 5, 1]))
    finer = section.read(spot_um=50, pitch_um=20)
    assert pixel_size(finer, "he") == pytest.approx(0.5)
    assert np.allclose(finer["spots"]["radius"], 50)


def test_2k_array_has_its_neighbours_two_positions_apart(tmp_path: Path) -> None:
    sdata = Section(tmp_path, lattice(step=2)).read()
    assert np.allclose(sdata["spots"]["radius"], PITCH_PX / 4)


def test_stretched_image_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Section(tmp_path, lattice(stretch=1.1)).read()
    assert "stretched" in caplog.text


def test_only_selected_spots_with_counts_remain(section: Section, caplog: pytest.LogCaptureFixture) -> None:
    section.spots["selected"] = 1
    section.spots.loc[0, "selected"] = 0
    section.counts = section.counts.drop(index=section.counts.index[[5, 6]])
    with caplog.at_level(logging.INFO, logger="pixel2gene"):
        sdata = section.read()
    assert list(sdata["counts"].obs_names) == list(section.counts.index[1:])
    assert "2 spots without counts and 1 rows of counts" in caplog.text


def test_order_of_the_files_does_not_matter(section: Section) -> None:
    expected = section.counts.copy()
    section.counts = section.counts.sample(frac=1, random_state=0)
    table = section.read()["counts"]
    assert np.array_equal(table.to_df(), expected.loc[table.obs_names])
    positions = section.spots.set_axis(names(section.spots)).loc[table.obs_names, ["pixel_x", "pixel_y"]]
    assert np.array_equal(table.obsm["spatial"], positions)


def test_large_image_gets_a_pyramid(section: Section) -> None:
    section.image = np.full((300, 2048, 3), 200, np.uint8)
    sdata = section.read("jpg")
    assert len(sdata["he"].children) == 4
    assert sdata["he"]["scale3"]["image"].shape == (3, 37, 256)


def test_image_beyond_pillows_limit(section: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    section.read()
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_alpha_is_dropped(section: Section, suffix: str) -> None:
    section.image = np.dstack([section.image, np.full(section.image.shape[:2], 255, np.uint8)])
    assert np.array_equal(section.read(suffix)["he"].to_numpy(), section.image[..., :3].transpose(2, 0, 1))


def test_store_round_trip(section: Section, tmp_path: Path) -> None:
    section.read().write(tmp_path / "store.zarr")
    assert sd.read_zarr(tmp_path / "store.zarr")["counts"].shape == (30, 4)


def _drop_column(section: Section) -> None:
    section.spots = section.spots.drop(columns="pixel_y")


def _repeat_spot(section: Section) -> None:
    section.spots = pd.concat([section.spots, section.spots.iloc[:1]])


def _repeat_row(section: Section) -> None:
    section.counts = pd.concat([section.counts, section.counts.iloc[:1]])


def _negative(section: Section) -> None:
    section.counts.iloc[2, 1] = -1


def _fraction(section: Section) -> None:
    section.counts = section.counts + 0.5


def _gap(section: Section) -> None:
    section.counts = section.counts.astype(object)
    section.counts.iloc[0, 0] = None


def _text(section: Section) -> None:
    section.counts["A"] = "many"


def _other_section(section: Section) -> None:
    section.counts.index = [f"{i}x99" for i in range(len(section.counts))]


def _unselected(section: Section) -> None:
    section.spots["selected"] = 0


def _fractional_position(section: Section) -> None:
    section.spots["x"] = section.spots["x"] + 0.25


def _one_row(section: Section) -> None:
    section.spots = section.spots[section.spots["y"] == 4]


def _crop(section: Section) -> None:
    section.image = section.image[:100]


def _grey(section: Section) -> None:
    section.image = section.image[..., 0]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_drop_column, r"lacks the columns \['pixel_y'\]; there are \['x', 'y', 'pixel_x'\]"),
        (_repeat_spot, "1 spots more than once, such as '3x3'"),
        (_repeat_row, "1 spots more than once, such as '3x3'"),
        (_negative, "1 values that are negative or not whole numbers, such as -1 for 'B' in '3x5'"),
        (_fraction, "120 values"),
        (_gap, "1 values"),
        (_text, "text in 1 columns, such as 'A'"),
        (_other_section, "No spot of .* named like '3x3' are expected, but the table's are named like '0x99'"),
        (_unselected, "no spots with selected == 1"),
        (_fractional_position, "fractions in x or y"),
        (_one_row, "lie on one line"),
        (_crop, "lie outside"),
        (_grey, "RGB image with 8 bits"),
    ],
)
def test_broken_files_are_named(section: Section, break_it, message: str) -> None:
    break_it(section)
    with pytest.raises(ValueError, match=message):
        section.read()


def test_lengths_must_be_positive(section: Section) -> None:
    with pytest.raises(ValueError, match="positive lengths"):
        section.read(pitch_um=0)


def test_missing_image(section: Section) -> None:
    section.read()
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        legacy_st(section.folder / "counts.tsv.gz", section.folder / "spots.tsv", section.folder / "absent.jpg")
