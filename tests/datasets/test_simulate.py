"""The simulator keeps what it states: rates, shares, noise, geometry and what was measured."""

import json
import math

import numpy as np
import pytest
import shapely
import spatialdata as sd
from scipy import stats
from spatialdata.transformations import get_transformation

from pixel2gene.datasets._paint import paint
from pixel2gene.datasets._simulate import _painted_tissue, simulate
from pixel2gene.spatial.grid import superpixel_grid

SMALL = {"size": (640, 768), "n_genes": 60}
PLATFORMS = {"visium_hd": "square_008um", "visium": "spots", "xenium": "cells"}


@pytest.fixture(scope="module")
def slides() -> dict[str, sd.SpatialData]:
    return {platform: simulate(platform, measured=0.8, **SMALL) for platform in PLATFORMS}


@pytest.fixture(scope="module")
def aligned() -> sd.SpatialData:
    """Bins that coincide with superpixels: their counts are the superpixels' own."""
    return simulate(size=(1024, 1024), n_genes=60, rotation=0, measured=1.0, counts_per_superpixel=60)


def cube(sdata: sd.SpatialData) -> np.ndarray:
    return sdata["truth"].to_numpy()


def counts_on_grid(sdata: sd.SpatialData) -> np.ndarray:
    """Counts (gene, y, x) of bins, which must tile the superpixel grid."""
    table = sdata["counts"]
    row, col = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    grid = np.zeros((table.n_vars, row.max() + 1, col.max() + 1))
    grid[:, row, col] = table.X.toarray().T
    return grid


def matrix(element: object, system: str) -> np.ndarray:
    return get_transformation(element, system).to_affine_matrix(("x", "y"), ("x", "y"))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_elements(slides: dict[str, sd.SpatialData], platform: str) -> None:
    sdata, name = slides[platform], PLATFORMS[platform]
    assert sdata["he"].shape == (3, 640, 768)
    assert sdata["he"].dtype == np.uint8
    assert list(sdata["he"].coords["c"].values) == ["r", "g", "b"]
    assert sdata["truth"].shape == (60, 40, 48)
    assert sdata["truth"].dtype == np.float32
    assert sdata["truth_regions"].shape == (40, 48)
    assert set(sdata.coordinate_systems) == {"global", "micrometers"}
    table = sdata["counts"]
    assert list(sdata["truth"].coords["c"].values) == list(table.var_names)
    assert set(table.obs["region"]) == {name}
    assert list(table.obs["instance_id"]) == list(sdata[name].index)
    centres = sd.transform(sdata[name], to_coordinate_system="global").geometry.centroid
    # A cell is listed at its nucleus, which may lie off the centroid of its outline.
    slack = 4 / 0.2125 if platform == "xenium" else 1e-6
    np.testing.assert_allclose(table.obsm["spatial"], np.stack([centres.x, centres.y], axis=1), atol=slack)
    assert json.loads(json.dumps(sdata.attrs["simulation"]))["platform"] == platform


def test_multiscale_from_1024_pixels(aligned: sd.SpatialData) -> None:
    assert [level["image"].shape for level in aligned["he"].values()] == [(3, 1024, 1024), (3, 512, 512), (3, 256, 256)]


def test_same_seed_same_slide(slides: dict[str, sd.SpatialData]) -> None:
    again = simulate("visium_hd", measured=0.8, **SMALL)
    first = slides["visium_hd"]
    np.testing.assert_array_equal(first["he"], again["he"])
    np.testing.assert_array_equal(cube(first), cube(again))
    assert (first["counts"].X != again["counts"].X).nnz == 0


def test_other_seed_same_tissue_type(slides: dict[str, sd.SpatialData]) -> None:
    first, other = slides["visium_hd"], simulate(measured=0.8, seed=1, **SMALL)
    assert np.mean(first["he"].to_numpy() != other["he"].to_numpy()) > 0.5
    means = np.log([first["counts"].var["mean"], other["counts"].var["mean"]])
    assert np.corrcoef(means)[0, 1] > 0.95
    np.testing.assert_array_equal(first["counts"].var["visible_share"], other["counts"].var["visible_share"])
    np.testing.assert_array_equal(first["counts"].var["dispersion"], other["counts"].var["dispersion"])

    foreign = simulate(measured=0.8, biology=1, **SMALL)
    np.testing.assert_array_equal(first["he"], foreign["he"])
    means = np.log([first["counts"].var["mean"], foreign["counts"].var["mean"]])
    assert abs(np.corrcoef(means)[0, 1]) < 0.5


def test_platforms_share_the_truth(slides: dict[str, sd.SpatialData]) -> None:
    for platform in PLATFORMS:
        np.testing.assert_array_equal(cube(slides[platform]), cube(slides["visium_hd"]))


def test_truth_means_and_zeros(aligned: sd.SpatialData) -> None:
    truth, regions = cube(aligned), aligned["truth_regions"].to_numpy()
    assert not truth[:, regions == 0].any()
    assert (truth[:, regions > 0] > 0).all()
    np.testing.assert_allclose(truth[:, regions > 0].mean(1), aligned["counts"].var["mean"], rtol=1e-4)
    assert truth[:, regions > 0].sum(0).mean() == pytest.approx(60, rel=1e-4)


def test_counts_scatter_about_the_truth_as_stated(aligned: sd.SpatialData) -> None:
    truth, counts = cube(aligned), counts_on_grid(aligned)
    tissue = truth.sum(0) > 0
    truth, counts = truth[:, tissue], counts[:, tissue]
    phi = aligned["counts"].var["dispersion"].to_numpy()[:, None]
    variance = truth + phi * truth**2
    z = (counts - truth).sum(1) / np.sqrt(variance.sum(1))
    assert np.abs(z).max() < 4.5
    # Without the dispersion the squared deviations would be too large by far.
    excess = (counts - truth) ** 2
    assert (excess / variance).mean() == pytest.approx(1, abs=0.05)
    frequent = truth.mean(1) > 1
    assert (excess / truth)[frequent].mean() > 1.2
    slope = [np.sum((e - t) * t**2) / np.sum(t**4) for e, t in zip(excess[frequent], truth[frequent], strict=True)]
    assert np.mean(np.array(slope) / phi[frequent, 0]) == pytest.approx(1, abs=0.25)


def test_genes_share_the_library_size(aligned: sd.SpatialData) -> None:
    truth, counts = cube(aligned), counts_on_grid(aligned)
    own = aligned["counts"].var["dispersion"].to_numpy()[:, None, None] - 1 / 16
    total = truth.sum(0)
    excess = ((counts.sum(0) - total) ** 2 - total).sum()
    assert excess == pytest.approx((total**2 / 16 + (own * truth**2).sum(0)).sum(), rel=0.15)


def test_transcripts_scatter_evenly_inside_superpixels(slides: dict[str, sd.SpatialData]) -> None:
    points = slides["xenium"]["transcripts"].compute()
    for axis in ("x", "y"):
        offset = points.loc[points["x"] < 300, axis] % 8 / 8
        assert np.abs(np.histogram(offset, 8, (0, 1))[0] / len(offset) * 8 - 1).max() < 0.1


@pytest.mark.parametrize("visible", [0.3, 0.8])
def test_visible_share_is_realised(visible: float) -> None:
    settings = {"size": (1024, 1024), "n_genes": 40, "counts_per_superpixel": 10.0, "measured": 0.3}
    sdata = simulate(visible=visible, **settings)
    share = sdata["counts"].var["visible_share"].to_numpy()
    assert share.mean() == pytest.approx(visible, abs=0.01)
    assert share.std() > 0.05
    # Hidden fields differ between slides that show the same: what remains of one log-rate in the other is visible.
    everything = simulate(visible=1.0, **settings)
    tissue = cube(sdata).sum(0) > 0
    log_rate, seen = np.log(cube(sdata)[:, tissue]), np.log(cube(everything)[:, tissue])
    found = np.array([np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(log_rate, seen, strict=True)])
    assert found.mean() == pytest.approx(visible, abs=0.12)
    assert stats.spearmanr(found, share)[0] > 0.5


def test_expression_follows_morphology(aligned: sd.SpatialData) -> None:
    tissue = _painted_tissue(paint((1024, 1024), 0.5, 0))
    mask = tissue.mask
    np.testing.assert_array_equal(mask, aligned["truth_regions"].to_numpy() > 0)
    amount = tissue.cells.sum(0)[mask]
    assert stats.spearmanr(cube(aligned).sum(0)[mask], amount)[0] > 0.6
    design = np.column_stack([np.log(tissue.cells[:, mask].T + 0.06), tissue.context[:, mask].T, np.ones(mask.sum())])
    log_rate = np.log(cube(aligned)[:, mask]).T
    residual = log_rate - design @ np.linalg.lstsq(design, log_rate, rcond=None)[0]
    explained = 1 - residual.var(0) / log_rate.var(0)
    share = aligned["counts"].var["visible_share"]
    assert stats.spearmanr(explained, share)[0] > 0.6
    assert explained.mean() > 0.55


def test_transcriptome_is_sparser_than_a_panel() -> None:
    spread = {}
    for profile in ("panel", "transcriptome"):
        means = simulate(size=(320, 320), n_genes=400, profile=profile)["counts"].var["mean"]
        spread[profile] = means.max() / means.median()
    assert spread["transcriptome"] > 5 * spread["panel"]


def test_bins_are_8_um_squares_turned_about_the_centre(slides: dict[str, sd.SpatialData]) -> None:
    bins = sd.transform(slides["visium_hd"]["square_008um"], to_coordinate_system="micrometers").geometry
    np.testing.assert_allclose(bins.area, 64, rtol=1e-9)
    corners = np.array(bins.iloc[0].exterior.coords)
    edge = corners[1] - corners[0]
    assert math.degrees(math.atan2(edge[1], edge[0])) == pytest.approx(5)
    assert bins.union_all().area == pytest.approx(64 * len(bins), rel=1e-6)


def test_spots_are_55_um_at_100_um(slides: dict[str, sd.SpatialData]) -> None:
    spots = sd.transform(slides["visium"]["spots"], to_coordinate_system="micrometers")
    np.testing.assert_allclose(spots["radius"], 27.5)
    xy = np.stack([spots.geometry.x, spots.geometry.y], axis=1)
    distance = np.linalg.norm(xy[:, None] - xy, axis=-1)
    np.testing.assert_allclose(np.where(distance > 0, distance, np.inf).min(1), 100, rtol=1e-9)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_units_collect_what_lies_inside(slides: dict[str, sd.SpatialData], platform: str) -> None:
    """All platforms measure the same molecules, which Xenium lists."""
    points, table = slides["xenium"]["transcripts"].compute(), slides[platform]["counts"]
    shapes = sd.transform(slides[platform][PLATFORMS[platform]], to_coordinate_system="micrometers")
    xy, gene = shapely.points(points["x"], points["y"]), points["feature_name"].cat.codes.to_numpy()
    if platform == "visium":
        located = shapes.sindex.query(xy, predicate="dwithin", distance=27.5)
    else:
        located = shapes.sindex.query(xy, predicate="within")
    expected = np.zeros(table.shape)
    np.add.at(expected, (located[1], gene[located[0]]), 1)
    assert expected.sum() > 1000
    np.testing.assert_array_equal(table.X.toarray(), expected)


def test_cells_are_apart(slides: dict[str, sd.SpatialData]) -> None:
    sdata = slides["xenium"]
    assert sdata["cells"].geometry.is_valid.all()
    assert sdata["cells"].union_all().area == pytest.approx(sdata["cells"].area.sum(), rel=1e-6)
    names = sdata["transcripts"].compute()["feature_name"].cat.categories
    assert names.equals(sdata["counts"].var_names)


def test_spot_counts_match_the_truth_under_them(slides: dict[str, sd.SpatialData]) -> None:
    sdata = slides["visium"]
    truth = cube(sdata).sum(0)
    y, x = np.mgrid[0:40:0.1, 0:48:0.1] + 0.05
    fine = np.kron(truth, np.ones((10, 10))) / 100
    expected = []
    for cx, cy in sdata["counts"].obsm["spatial"] / 16:
        expected.append(fine[np.hypot(x - cx, y - cy) < 27.5 / 8].sum())
    total = np.asarray(sdata["counts"].X.sum(1)).ravel()
    assert total.sum() == pytest.approx(sum(expected), rel=0.08)
    assert np.corrcoef(total, expected)[0, 1] > 0.9


@pytest.mark.parametrize("platform", PLATFORMS)
def test_share_of_the_width_is_measured(slides: dict[str, sd.SpatialData], platform: str) -> None:
    shapes = sd.transform(slides[platform][PLATFORMS[platform]], to_coordinate_system="micrometers")
    radius = shapes["radius"] if platform == "visium" else 0
    edge = shapes.geometry.bounds["maxx"] + radius
    assert 0.65 * 384 < edge.max() <= 0.8 * 384 + 0.3
    assert (shapes.geometry.bounds["minx"] - radius).min() >= -0.3


def test_mask_of_superpixels_is_measured() -> None:
    mask = np.zeros((40, 48), bool)
    mask[10:30, 8:40] = True
    sdata = simulate("xenium", measured=mask, **SMALL)
    points = sdata["transcripts"].compute()
    assert mask[(points["y"] // 8).astype(int), (points["x"] // 8).astype(int)].all()
    left, top, right, bottom = sdata["cells"].total_bounds
    assert left >= 64 and top >= 80 and right <= 320 and bottom <= 240
    sdata = simulate(measured=mask, rotation=0, **SMALL)
    assert sdata["counts"].n_obs == mask.sum()


def test_measuring_less_changes_nothing_else() -> None:
    half, whole = (simulate(measured=share, rotation=0, **SMALL) for share in (0.5, 1.0))
    np.testing.assert_array_equal(counts_on_grid(half), counts_on_grid(whole)[:, :, :24])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_truth_overlays_the_image(slides: dict[str, sd.SpatialData], platform: str) -> None:
    sdata = slides[platform]
    for system, pixel in (("micrometers", 0.5), ("global", 0.5 / 0.2125 if platform == "xenium" else 1.0)):
        np.testing.assert_allclose(matrix(sdata["he"], system), np.diag([pixel, pixel, 1]))
        for name in ("truth", "truth_regions"):
            np.testing.assert_allclose(matrix(sdata[name], system), np.diag([16 * pixel, 16 * pixel, 1]))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_round_trip(slides: dict[str, sd.SpatialData], platform: str, tmp_path: object) -> None:
    sdata = slides[platform]
    sdata.write(tmp_path / "slide.zarr")
    back = sd.read_zarr(tmp_path / "slide.zarr")
    np.testing.assert_array_equal(cube(back), cube(sdata))
    np.testing.assert_array_equal(back["truth_regions"], sdata["truth_regions"])
    assert (back["counts"].X != sdata["counts"].X).nnz == 0
    assert back.attrs["simulation"] == sdata.attrs["simulation"]
    for system in ("global", "micrometers"):
        np.testing.assert_allclose(matrix(back["truth"], system), matrix(sdata["truth"], system))


@pytest.fixture(scope="module")
def striped() -> sd.SpatialData:
    return simulate(size=(1024, 1024), n_genes=20, rotation=0, measured=1.0, counts_per_superpixel=60, stripes=0.3)


def test_no_artefacts_no_columns(aligned: sd.SpatialData) -> None:
    assert not {"row_factor", "column_factor"} & set(aligned["counts"].obs)
    planted = {"stripes": 0.0, "diffusion_um": 0.0, "capture": 0.12}
    assert planted.items() <= aligned.attrs["simulation"].items()


def test_stripes_are_factors_of_rows_and_columns(striped: sd.SpatialData) -> None:
    obs = striped["counts"].obs
    for line, name in (("array_row", "row_factor"), ("array_col", "column_factor")):
        assert (obs.groupby(line)[name].nunique() == 1).all()
        factor = obs.groupby(line)[name].first()
        assert np.log(factor).std() == pytest.approx(0.3, rel=0.2)
        assert factor.mean() == pytest.approx(1, abs=0.1)
    truth, counts = cube(striped).sum(0), counts_on_grid(striped).sum(0)
    rows = obs.groupby("array_row")["row_factor"].first().to_numpy()
    columns = obs.groupby("array_col")["column_factor"].first().to_numpy()
    expected = truth * rows[:, None] * columns
    for axis in (0, 1):
        some = truth.sum(axis) > 0
        with_factors, without = (counts.sum(axis)[some] / mean.sum(axis)[some] for mean in (expected, truth))
        np.testing.assert_allclose(with_factors, 1, atol=0.25)
        assert with_factors.std() < 0.5 * without.std()
    assert counts.sum() == pytest.approx(expected.sum(), rel=0.03)


def test_stripes_leave_the_truth_alone(striped: sd.SpatialData) -> None:
    settings = {"size": (1024, 1024), "n_genes": 20, "rotation": 0, "measured": 1.0, "counts_per_superpixel": 60}
    np.testing.assert_array_equal(cube(striped), cube(simulate(**settings)))


def test_molecules_drift_by_as_much_as_asked() -> None:
    """The same molecules are drawn, so that those of a gene move apart by the drift."""
    settings = {"platform": "xenium", "n_genes": 5, "measured": 1.0, "size": (640, 768), "counts_per_superpixel": 20}
    still, drifted = (
        simulate(diffusion_um=um, **settings)["transcripts"].compute().reset_index(drop=True) for um in (0, 12)
    )
    assert len(drifted) < len(still)
    truth = simulate(n_genes=5, measured=1.0, size=(640, 768))["truth_regions"].to_numpy() > 0

    def on_glass(points: object) -> np.ndarray:
        return ~truth[(points["y"] // 8).astype(int), (points["x"] // 8).astype(int)]

    assert not on_glass(still).any()
    # What is expected to leave the tissue by a normal drift, from where the molecules were.
    rng = np.random.default_rng(0)
    moved = still[["x", "y"]] + rng.normal(0, 12, (len(still), 2))
    moved = moved[(moved >= 0).all(axis=1) & (moved["x"] < 384) & (moved["y"] < 320)]
    assert on_glass(drifted).sum() == pytest.approx(on_glass(moved).sum(), rel=0.1)
    assert len(drifted) == pytest.approx(len(moved), rel=0.01)


def test_slides_that_differ_in_capture_differ_by_one_field() -> None:
    settings = {"size": (1024, 1024), "n_genes": 4, "measured": 0.1}
    flat, weak, strong = (cube(simulate(capture=sd, **settings)) for sd in (0, 0.12, 0.36))
    tissue = flat.sum(0) > 0
    field, same = (np.log(other[:, tissue] / flat[:, tissue]) for other in (weak, strong))
    # Common to all genes, and three times as strong.
    np.testing.assert_allclose(field, field[:1] + np.zeros((4, 1)), atol=1e-4)
    np.testing.assert_allclose(same - same.mean(), 3 * (field - field.mean()), atol=1e-3)
    # A part of a field that correlates over 400 µm varies less within 512 µm.
    assert 0.02 < field[0].std() < 0.2


def test_size_that_superpixels_do_not_divide() -> None:
    sdata = simulate(size=(300, 411), mpp=0.7, n_genes=5, measured=1.0)
    assert sdata["truth"].shape == (5, 27, 36)
    assert sdata["he"].shape == (3, 300, 411)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return paint((640, 640), 0.5, 4).image


class TestOverAnImage:
    def test_same_programmes_on_every_slide(self, picture: np.ndarray) -> None:
        settings = {"n_genes": 30, "visible": 1.0, "measured": 1.0}
        whole = simulate(image=picture, **settings)
        part = simulate(image=picture[:, :, :480], seed=7, **settings)
        # Away from the cut, the two differ in depth and capture alone.
        ratio = np.log(cube(whole)[:, :, :15] / np.where(cube(part)[:, :, :15] > 0, cube(part)[:, :, :15], np.nan))
        ratio = ratio[:, np.isfinite(ratio).all(0)]
        assert ratio.shape[1] > 100
        assert (ratio - ratio.mean(0)).std() < 0.02
        assert whole["counts"].var["mean"].sum() == pytest.approx(40, rel=1e-4)

    @pytest.mark.parametrize(("pixels", "mpp"), [(128, 0.688), (129, 0.5), (150, 8 / 15)])
    def test_truth_has_all_superpixels(self, pixels: int, mpp: float) -> None:
        """Also a last one too narrow for the centre of a pixel."""
        image = np.random.default_rng(0).integers(120, 255, (3, pixels, pixels + 5), np.uint8)
        slide = simulate(image=image, mpp=mpp, n_genes=3)
        assert slide["truth"].shape[1:] == superpixel_grid(slide, "he", mpp).shape

    def test_axes_order_and_regions(self, picture: np.ndarray) -> None:
        first, last = (simulate(image=p, n_genes=5) for p in (picture, picture.transpose(1, 2, 0)))
        np.testing.assert_array_equal(cube(first), cube(last))
        np.testing.assert_array_equal(first["he"], picture)
        regions = first["truth_regions"].to_numpy()
        assert set(np.unique(regions)) == set(range(7))
        assert ((regions > 0) == (cube(first).sum(0) > 0)).all()

    def test_follows_nuclei(self) -> None:
        painting = paint((640, 640), 0.5, 4)
        sdata = simulate("xenium", image=painting.image, n_genes=5, measured=1.0)
        assert sdata["counts"].n_obs == pytest.approx(len(painting.nuclei), rel=0.25)

    def test_blank_image(self) -> None:
        with pytest.raises(ValueError, match="no tissue.*stained"):
            simulate(image=np.full((3, 256, 256), 240, np.uint8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"platform": "merfish"}, "platform 'merfish'.*'visium_hd', 'visium' or 'xenium'"),
        ({"profile": "exome"}, "profile 'exome'.*'panel' or 'transcriptome'"),
        ({"measured": 0.0}, "measured is 0.0.*above 0"),
        ({"measured": 1.5}, "measured is 1.5.*at most 1"),
        ({"measured": np.ones((3, 4), bool)}, r"shape \(3, 4\).*boolean mask of shape \(40, 48\)"),
        ({"measured": np.ones((40, 48))}, "measured is float64.*boolean mask"),
        ({"measured": 0.001}, "no whole element of square_008um.*measure more"),
        ({"size": (100, 768)}, "size .*at least 256"),
        ({"mpp": 3.0}, "mpp 3.0.*0.2 to 1"),
        ({"mpp": 0.0}, "mpp is 0.0.*above 0"),
        ({"n_genes": 0}, "n_genes is 0.*at least 1"),
        ({"visible": 1.2}, "visible is 1.2.*0 to 1"),
        ({"counts_per_superpixel": 0}, "counts_per_superpixel is 0.*above 0"),
        ({"stripes": -0.1}, "stripes is -0.1.*at least 0"),
        ({"diffusion_um": float("nan")}, "diffusion_um is nan.*at least 0"),
        ({"capture": -1.0}, "capture is -1.0.*at least 0"),
        ({"stripes": 0.1, "platform": "visium"}, "stripes is 0.1, but 'visium' has no rows of bins"),
        ({"image": np.zeros((300, 300, 3))}, "image is float64.*uint8"),
        ({"image": np.zeros((300, 300), np.uint8)}, r"shape \(300, 300\).*\(3, y, x\) or \(y, x, 3\)"),
        ({"image": np.zeros((3, 60, 60), np.uint8)}, "30 × 30 µm.*at least 64 µm"),
    ],
)
def test_errors_name_the_fix(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(**{"size": (640, 768), **wrong})
