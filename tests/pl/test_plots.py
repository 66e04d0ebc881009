"""Plots show the right panels, on one scale, in the right place."""

from collections.abc import Iterator
from pathlib import Path

import dask.array as da
import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import xarray as xr
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence

from pixel2gene import pl
from pixel2gene.pl._raster import cut, place_of, read_image
from pixel2gene.spatial.image import open_image

MPP, FACTOR = 0.5, 16
ROWS, COLUMNS = 12, 20
GENES = ["A", "B"]
BRIGHT = (3, 14)  # row and column of the one superpixel that expresses


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def transforms(scale: float = 1.0) -> dict:
    """An image that is turned and shifted in one of its coordinate systems."""
    turn = Affine([[0, -1, 70], [1, 0, 30], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    here = Scale([scale, scale], axes=("x", "y")) if scale != 1 else Identity()
    micrometers = Scale([MPP, MPP], axes=("x", "y"))
    return {"global": here, "slide": Sequence([here, turn]), "micrometers": Sequence([here, micrometers])}


def raster(values: np.ndarray) -> object:
    return Image2DModel.parse(values, dims=("c", "y", "x"), c_coords=GENES, transformations=transforms(FACTOR))


def one_bright() -> np.ndarray:
    values = np.zeros((2, ROWS, COLUMNS), np.float16)
    values[0][BRIGHT] = 4
    return values


def table_on(shapes: gpd.GeoDataFrame, counts: np.ndarray) -> AnnData:
    table = AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    table.var_names = GENES
    table.obs["region"] = "units"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["instance_id"] = shapes.index.to_numpy()
    return TableModel.parse(table, region=["units"], region_key="region", instance_key="instance_id")


@pytest.fixture
def slide() -> sd.SpatialData:
    """White H&E with one dark superpixel, and bins that are the superpixels."""
    picture = np.full((3, ROWS * FACTOR, COLUMNS * FACTOR), 255, np.uint8)
    row, column = BRIGHT
    picture[:, row * FACTOR : (row + 1) * FACTOR, column * FACTOR : (column + 1) * FACTOR] = 0
    y, x = (axis.ravel() * FACTOR for axis in np.indices((ROWS, COLUMNS)))
    bins = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + FACTOR, y + FACTOR))
    return sd.SpatialData.init_from_elements(
        {
            "he": Image2DModel.parse(picture, dims=("c", "y", "x"), transformations=transforms()),
            "units": ShapesModel.parse(bins, transformations=transforms()),
            "counts": table_on(bins, one_bright().reshape(2, -1).T),
            "denoised_map": raster(one_bright()),
            "predicted_map": raster(one_bright()),
            "he_tissue": Labels2DModel.parse(
                np.pad(np.ones((ROWS - 4, COLUMNS - 4), np.uint8), 2),
                dims=("y", "x"),
                transformations=transforms(FACTOR),
            ),
        }
    )


def titles(axes: np.ndarray) -> list[str]:
    return [ax.get_title() for ax in axes]


def brightest_pixels(ax: plt.Axes) -> tuple[float, float, float, float]:
    """Left, right, top and bottom, in the coordinates of the axes, of what is brightest in its image."""
    image = ax.images[0]
    values = np.asarray(image.get_array(), float)
    left, right, bottom, top = image.get_extent()
    rows, columns = np.nonzero(values == np.nanmax(values))
    width, height = (right - left) / values.shape[1], (bottom - top) / values.shape[0]
    return (
        left + columns.min() * width,
        left + (columns.max() + 1) * width,
        top + rows.min() * height,
        top + (rows.max() + 1) * height,
    )


def test_panels(slide: sd.SpatialData) -> None:
    axes = pl.expression(slide, "A")
    assert titles(axes) == ["H&E", "A, measured", "A, denoised", "A, predicted"]
    assert axes[0].images[0].get_array().shape == (ROWS * FACTOR, COLUMNS * FACTOR, 3)
    colour_bar = set(axes[0].figure.axes) - set(axes)
    assert [ax.get_ylabel() for ax in colour_bar] == ["expected counts per superpixel"]


def test_one_colour_scale(slide: sd.SpatialData) -> None:
    slide["predicted_map"] = raster(np.full((2, ROWS, COLUMNS), 2, np.float16))
    limits = {ax.images[0].get_clim() for ax in pl.expression(slide, "A")[1:]}
    assert limits == {(0, 2)}


def test_scale_where_nearly_all_is_zero(slide: sd.SpatialData) -> None:
    assert pl.expression(slide, "A")[1].images[0].get_clim() == (0, 4)
    assert pl.expression(slide, "B")[1].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("panel", [1, 2, 3])
def test_bright_superpixel_lies_over_the_dark_one(slide: sd.SpatialData, panel: int) -> None:
    axes = pl.expression(slide, "A")
    row, column = BRIGHT
    expected = (column * FACTOR, (column + 1) * FACTOR, row * FACTOR, (row + 1) * FACTOR)
    assert brightest_pixels(axes[panel]) == pytest.approx(expected)
    assert axes[panel].images[0].get_array()[BRIGHT] == 4
    assert axes[panel].get_xlim() == axes[0].get_xlim() == (0, COLUMNS * FACTOR)
    assert axes[panel].get_ylim() == axes[0].get_ylim() == (ROWS * FACTOR, 0)
    picture = axes[0].images[0]
    dark = np.argwhere(np.asarray(picture.get_array())[..., 0] == 0)
    assert dark.min(axis=0).tolist() == [row * FACTOR, column * FACTOR]
    assert picture.get_extent() == [0, COLUMNS * FACTOR, ROWS * FACTOR, 0]


def test_measured_is_per_superpixel_whatever_the_unit(slide: sd.SpatialData) -> None:
    """Spots of 4 superpixels, one of them half beyond the image, hold 8 counts each: 2 per superpixel."""
    radius = np.sqrt(4 / np.pi) * FACTOR
    centres = shapely.points([[100.0, 90.0], [COLUMNS * FACTOR, 90.0]])
    spots = gpd.GeoDataFrame({"radius": [radius, radius]}, geometry=centres)
    slide["units"] = ShapesModel.parse(spots, transformations=transforms())
    del slide["counts"]
    slide["counts"] = table_on(spots, np.array([[8, 0], [8, 0]]))
    shown = np.asarray(pl.expression(slide, "A")[1].images[0].get_array())
    assert np.allclose(shown[np.isfinite(shown)], 2, atol=1e-3)
    assert np.isnan(shown[0, 0])


def test_panels_show_where_something_is(slide: sd.SpatialData) -> None:
    values = one_bright()
    values[:, :, :10] = np.nan
    slide["predicted_map"] = raster(values)
    for key in ("counts", "denoised_map"):
        del slide[key]
    left, right = pl.expression(slide, "A")[0].get_xlim()
    assert 10 * FACTOR - 30 < left < 10 * FACTOR and right == COLUMNS * FACTOR


def test_absent_elements_are_left_out(slide: sd.SpatialData) -> None:
    del slide["denoised_map"]
    assert titles(pl.expression(slide, "A")) == ["H&E", "A, measured", "A, predicted"]
    del slide["counts"]
    assert titles(pl.expression(slide, "A")) == ["H&E", "A, predicted"]


def test_axes_given(slide: sd.SpatialData) -> None:
    _, given = plt.subplots(1, 4)
    assert list(pl.expression(slide, "A", axes=given)) == list(given)
    with pytest.raises(ValueError, match="2 axes given for 4 panels: H&E, measured, denoised, predicted"):
        pl.expression(slide, "A", axes=given[:2])


def results_table(scores: list[float]) -> AnnData:
    table = AnnData(np.zeros((1, 2), np.float32))
    table.var_names = GENES
    table.var["pearson"] = scores
    return table


def test_titles_tell_the_score(slide: sd.SpatialData) -> None:
    slide["predicted"] = results_table([0.526, np.nan])
    slide["denoised"] = results_table([0.314, 0.2])
    score = "\nout-of-fold Pearson "
    assert titles(pl.expression(slide, "A"))[1:] == [
        "A, measured",
        f"A, denoised{score}0.31",
        f"A, predicted{score}0.53",
    ]
    assert titles(pl.expression(slide, "B"))[2:] == [f"B, denoised{score}0.20", "B, predicted"]
    del slide["predicted"].var["pearson"]
    slide["denoised"] = slide["denoised"][:, ["B"]].copy()
    assert titles(pl.expression(slide, "A"))[2:] == ["A, denoised", "A, predicted"]


def trust(low: tuple[slice, slice]) -> object:
    """0.3 in the part that is low, 0.7 elsewhere, none in the first column."""
    values = np.full((1, ROWS, COLUMNS), 0.7, np.float16)
    values[0][low] = 0.3
    values[0, :, 0] = np.nan
    return Image2DModel.parse(values, dims=("c", "y", "x"), transformations=transforms(FACTOR))


def pixels_of(axes: np.ndarray) -> np.ndarray:
    """Colours of the last panel as it is drawn, a pixel per superpixel."""
    figure = axes[-1].figure
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())
    x, y = (FACTOR * (np.arange(n) + 0.5) for n in (COLUMNS, ROWS))
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    column, row = axes[-1].transData.transform(places).astype(int).T
    return drawn[len(drawn) - 1 - row, column, :3].reshape(ROWS, COLUMNS, 3)


PINK = (200, 100, 150)
GREY = 136  # by the weights of Rec. 601


def pink_image(slide: sd.SpatialData) -> None:
    picture = np.tile(np.array(PINK, np.uint8)[:, None, None], (1, ROWS * FACTOR, COLUMNS * FACTOR))
    slide["he"] = Image2DModel.parse(picture, dims=("c", "y", "x"), transformations=transforms())


def test_predictions_of_little_trust_let_the_image_through(slide: sd.SpatialData) -> None:
    values = np.full((2, ROWS, COLUMNS), 2, np.float16)
    values[:, 4:8, 10:] = 9
    values[:, :, 0] = np.nan
    slide["predicted_map"] = raster(values)
    slide["predicted_trust"] = trust(np.s_[4:8, 10:])
    pink_image(slide)
    plain = pixels_of(pl.expression(slide, "A"))
    axes = pl.expression(slide, "A", min_trust=0.5)
    found = pixels_of(axes)
    is_grey = (found == GREY).all(axis=-1)
    assert is_grey[4:8, 10:].all() and is_grey.sum() == 4 * 10
    assert not (plain == GREY).all(axis=-1).any()
    # What was not predicted stays white.
    assert (found[:, 0] == 255).all()
    assert axes[-1].get_title() == "A, predicted\ngrey H&E: trust below 0.5"
    # What is not trusted does not say how bright the rest is; the other panels stay as they are.
    assert pl.expression(slide, "A")[1].images[0].get_clim() == (0, 9)
    assert axes[1].images[0].get_clim() == (0, 2)
    assert np.asarray(axes[2].images[0].get_array())[BRIGHT] == 4
    assert axes[-1].get_xlim() == axes[0].get_xlim()


def test_the_window_shows_what_is_masked(slide: sd.SpatialData) -> None:
    for key in ("counts", "denoised_map"):
        del slide[key]
    slide["predicted_trust"] = trust(np.s_[:, :])
    axes = pl.expression(slide, "A", min_trust=0.5)
    assert axes[0].get_xlim() == (0, COLUMNS * FACTOR)


def test_all_trusted(slide: sd.SpatialData) -> None:
    slide["predicted_trust"] = trust(np.s_[:0])
    assert np.array_equal(pixels_of(pl.expression(slide, "A", min_trust=0.5)), pixels_of(pl.expression(slide, "A")))


def test_trust_that_was_not_predicted(slide: sd.SpatialData) -> None:
    with pytest.raises(KeyError, match="No 'predicted_trust' among the images.*'predicted_map'.*predict anew"):
        pl.expression(slide, "A", min_trust=0.5)
    with pytest.raises(KeyError, match="No 'other_trust'"):
        pl.expression(slide, "A", predicted="other", min_trust=0.5)


def test_trust_without_a_prediction_of_the_gene(slide: sd.SpatialData) -> None:
    slide["predicted_trust"] = trust(np.s_[:, :])
    del slide["predicted_map"]
    assert titles(pl.expression(slide, "A", min_trust=0.5)) == ["H&E", "A, measured", "A, denoised"]


@pytest.mark.parametrize(("score", "masked"), [(0.1, True), (0.3, False), (np.nan, True)])
def test_predictions_of_poor_genes_let_the_image_through(slide: sd.SpatialData, score: float, masked: bool) -> None:
    slide["predicted"] = results_table([score, 0.9])
    pink_image(slide)
    axes = pl.expression(slide, "A", min_score=0.2)
    grey = (pixels_of(axes) == GREY).all(axis=-1)
    shown = np.isfinite(np.asarray(slide["predicted_map"].sel(c="A")))
    np.testing.assert_array_equal(grey, shown & masked)
    assert ("grey H&E: below 0.2" in axes[-1].get_title()) == masked


def test_unknown_gene(slide: sd.SpatialData) -> None:
    with pytest.raises(KeyError, match=r"No gene 'ERBB2'; there are 2, such as \['A', 'B'\]"):
        pl.expression(slide, "ERBB2")


def test_unknown_keys(slide: sd.SpatialData) -> None:
    with pytest.raises(KeyError, match="No 'other' among the images"):
        pl.expression(slide, "A", image_key="other")
    with pytest.raises(KeyError, match="No table 'x'.*tables.*counts.*images.*denoised_map"):
        pl.expression(slide, "A", measured="x", denoised="y", predicted="z")


def test_counts_of_a_layer(slide: sd.SpatialData) -> None:
    slide["counts"].layers["raw"] = slide["counts"].X * 3
    shown = np.asarray(pl.expression(slide, "A", layer="raw")[1].images[0].get_array())
    assert shown[BRIGHT] == pytest.approx(12)
    slide["counts"].X = None
    np.testing.assert_array_equal(pl.expression(slide, "A", layer="raw")[1].images[0].get_array(), shown)
    with pytest.raises(KeyError, match=r"No layer 'nope' in table 'counts'; there are \['raw'\]"):
        pl.expression(slide, "A", layer="nope")


def test_transcripts_are_counted_per_superpixel(slide: sd.SpatialData) -> None:
    rng = np.random.default_rng(0)
    points = pd.DataFrame({"x": rng.uniform(0, 160, 3000), "y": rng.uniform(0, ROWS * FACTOR, 3000)})
    points["gene"] = pd.Categorical(np.where(rng.random(3000) < 0.3, "A", "B"))
    slide["transcripts"] = PointsModel.parse(points, feature_key="gene", transformations=transforms())
    axes = pl.expression(slide, "A", measured="transcripts")
    assert titles(axes) == ["H&E", "A, measured", "A, denoised", "A, predicted"]
    shown = np.ma.filled(axes[1].images[0].get_array().astype(float), np.nan)
    assert np.isnan(shown[:, 10:]).all()
    chosen = points[points["gene"] == "A"]
    expected, *_ = np.histogram2d(chosen["y"] / FACTOR, chosen["x"] / FACTOR, bins=(range(ROWS + 1), range(11)))
    np.testing.assert_array_equal(shown[:, :10], expected)
    part = pl.expression(slide, "A", measured="transcripts", crop=(32, 32, 96, 64))[1].images[0]
    np.testing.assert_array_equal(part.get_array(), expected[2:4, 2:6])
    with pytest.raises(KeyError, match=r"No gene 'C'; there are 2, such as \['A', 'B'\]"):
        pl.expression(slide, "C", measured="transcripts")


def test_table_without_a_place(slide: sd.SpatialData) -> None:
    del slide["counts"].uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="'counts' annotates no element"):
        pl.expression(slide, "A")


def scale_bars(ax: plt.Axes) -> list[str]:
    return [artist.txt_label.get_text() for artist in ax.artists if isinstance(artist, AnchoredSizeBar)]


def test_tissue_outline(slide: sd.SpatialData) -> None:
    ax = pl.tissue(slide)
    outline = ax.collections[0].get_paths()[0].vertices
    # Halfway between the centres of the superpixels on either side: their border.
    assert outline.min(axis=0) == pytest.approx((2 * FACTOR, 2 * FACTOR))
    assert outline.max(axis=0) == pytest.approx(((COLUMNS - 2) * FACTOR, (ROWS - 2) * FACTOR))
    assert scale_bars(ax) == ["20 µm"]
    assert ax.get_xlim() == (0, COLUMNS * FACTOR) and ax.get_ylim() == (ROWS * FACTOR, 0)


def test_tissue_on_axes_given_with_labels_named(slide: sd.SpatialData) -> None:
    _, given = plt.subplots()
    slide["mine"] = slide["he_tissue"]
    assert pl.tissue(slide, tissue_key="mine", ax=given) is given


def test_recorded_pixel_size_wins(slide: sd.SpatialData) -> None:
    slide.attrs["pixel2gene"] = {"he_tissue": {"mpp": 5.0}}
    assert scale_bars(pl.tissue(slide)) == ["200 µm"]


def test_no_scale_bar_without_a_pixel_size(slide: sd.SpatialData) -> None:
    picture = Image2DModel.parse(slide["he"].to_numpy(), dims=("c", "y", "x"))
    labels = Labels2DModel.parse(np.ones((192, 320), np.uint8), dims=("y", "x"))
    assert scale_bars(pl.tissue(sd.SpatialData.init_from_elements({"he": picture, "he_tissue": labels}))) == []


def test_tissue_not_found_yet(slide: sd.SpatialData) -> None:
    del slide["he_tissue"]
    with pytest.raises(KeyError, match=r"No 'he_tissue' among the labels; there are \[\]. Run pixel2gene.tl.tissue"):
        pl.tissue(slide)
    with pytest.raises(KeyError, match="No 'other' among the images"):
        pl.tissue(slide, "other")


def with_sd(slide: sd.SpatialData) -> np.ndarray:
    """Standard deviations of some superpixels, in another order than theirs."""
    ids = np.random.default_rng(0).permutation(np.arange(1, ROWS * COLUMNS + 1))[:100]
    expected = np.full(ROWS * COLUMNS, np.nan, np.float32)
    table = AnnData(np.ones((100, 2), np.float32), layers={"sd": np.stack([ids / 100, ids], axis=1)})
    table.var_names = GENES
    table.obs["region"] = pd.Categorical(["predicted_superpixels"] * 100)
    table.obs["instance_id"] = ids
    labels = np.zeros(ROWS * COLUMNS, np.int32)
    labels[ids - 1] = ids
    expected[ids - 1] = ids / 100
    slide["predicted_superpixels"] = Labels2DModel.parse(
        labels.reshape(ROWS, COLUMNS), dims=("y", "x"), transformations=transforms(FACTOR)
    )
    slide["predicted"] = TableModel.parse(
        table, region=["predicted_superpixels"], region_key="region", instance_key="instance_id"
    )
    return expected.reshape(ROWS, COLUMNS)


def test_standard_deviations_are_drawn_where_they_belong_on_the_same_scale(slide: sd.SpatialData) -> None:
    expected = with_sd(slide)
    axes = pl.expression(slide, "A")
    assert titles(axes)[-1] == "A, predicted\nstandard deviation"
    shown = np.ma.filled(axes[-1].images[0].get_array().astype(float), np.nan)
    np.testing.assert_allclose(shown, expected, rtol=1e-6)
    # They do not stretch it.
    assert axes[-1].images[0].get_clim() == axes[1].images[0].get_clim() == (0, 4)


def test_the_mask_is_that_of_the_prediction(slide: sd.SpatialData) -> None:
    with_sd(slide)
    slide["predicted_trust"] = trust(np.s_[4:8, 10:])
    predicted, deviation = (ax.images[0].get_alpha() for ax in pl.expression(slide, "A", min_trust=0.5)[-2:])
    np.testing.assert_array_equal(predicted, deviation)
    assert (predicted[4:8, 10:] == 0).all() and predicted.sum() == ROWS * COLUMNS - 40


CROP = (10 * FACTOR, 2 * FACTOR, 16 * FACTOR, 6 * FACTOR)


def test_crops_show_the_same_values_in_the_same_places(slide: sd.SpatialData) -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(1, 1, (2, ROWS, COLUMNS)).astype(np.float16)
    slide["predicted_map"] = slide["denoised_map"] = raster(values)
    slide["he_tissue"] = Labels2DModel.parse(
        (values[0] > 1).astype(np.uint8), dims=("y", "x"), transformations=transforms(FACTOR)
    )
    axes = [*pl.expression(slide, "A", crop=CROP), pl.tissue(slide, crop=CROP)]
    for ax in axes:
        assert ax.get_xlim() == (CROP[0], CROP[2]) and ax.get_ylim() == (CROP[3], CROP[1])
    for ax in axes[2:4]:
        assert ax.images[0].get_extent() == [CROP[0], CROP[2], CROP[3], CROP[1]]
        np.testing.assert_array_equal(ax.images[0].get_array(), values[0][2:6, 10:16])
    measured = np.asarray(axes[1].images[0].get_array())
    np.testing.assert_allclose(measured, one_bright()[0][2:6, 10:16], atol=1e-5)
    assert axes[1].images[0].get_extent() == [CROP[0], CROP[2], CROP[3], CROP[1]]
    np.testing.assert_array_equal(
        axes[0].images[0].get_array(),
        slide["he"].to_numpy()[:, CROP[1] : CROP[3], CROP[0] : CROP[2]].transpose(1, 2, 0),
    )
    # Nothing beyond the crop is of weight.
    assert axes[1].images[0].get_clim()[1] == pytest.approx(
        np.percentile([*np.tile(values[0][2:6, 10:16].ravel(), 2), *measured.ravel()], 99), rel=1e-3
    )


def test_crops_reach_over_the_border_but_not_past_it(slide: sd.SpatialData) -> None:
    assert pl.tissue(slide, crop=(-50, 20, 99, 1e6)).get_xlim() == (0, 99)
    message = r"crop=\(400, 0, 500, 50\) shows none of image 'he' of 320 x 192 px: left, top, right and bottom"
    with pytest.raises(ValueError, match=message):
        pl.expression(slide, "A", crop=(400, 0, 500, 50))
    with pytest.raises(ValueError, match="shows none"):
        pl.tissue(slide, crop=(50, 20, 40, 80))


def bar_px(ax: plt.Axes) -> list[float]:
    """Lengths in the coordinates of the axes, as they are drawn."""
    ax.figure.canvas.draw()
    bars = [artist.size_bar.get_children()[0] for artist in ax.artists if isinstance(artist, AnchoredSizeBar)]
    return [bar.get_width() for bar in bars]


def test_scale_bars_are_as_long_as_they_say(slide: sd.SpatialData) -> None:
    assert bar_px(pl.tissue(slide)) == [20 / MPP]
    asked = pl.tissue(slide, scalebar=35)
    assert scale_bars(asked) == ["35 µm"] and bar_px(asked) == [35 / MPP]
    assert scale_bars(pl.expression(slide, "A", scalebar=1500)[0]) == ["1.5 mm"]
    assert scale_bars(pl.tissue(slide, scalebar=0)) == []


def test_a_scale_bar_of_unknown_length_is_refused(slide: sd.SpatialData) -> None:
    picture = Image2DModel.parse(slide["he"].to_numpy(), dims=("c", "y", "x"))
    labels = Labels2DModel.parse(np.ones((192, 320), np.uint8), dims=("y", "x"))
    bare = sd.SpatialData.init_from_elements({"he": picture, "he_tissue": labels})
    with pytest.raises(ValueError, match=r"pixel size of image 'he', so scalebar=50 has no length: run .*mpp="):
        pl.tissue(bare, scalebar=50)
    pl.tissue(bare, scalebar=0)


def test_figures_are_saved(slide: sd.SpatialData, tmp_path: Path) -> None:
    slide["predicted_trust"] = trust(np.s_[:0])
    for name, draw in {
        "expression": lambda path: pl.expression(slide, "A", save=path),
        "tissue": lambda path: pl.tissue(slide, save=path),
        "trust": lambda path: pl.trust(slide, save=path),
    }.items():
        draw(tmp_path / f"{name}.png")
        assert plt.imread(tmp_path / f"{name}.png").std() > 0


def test_trust_is_drawn_over_the_image_in_grey(slide: sd.SpatialData) -> None:
    slide["predicted_trust"] = trust(np.s_[4:8, 10:])
    pink_image(slide)
    ax = pl.trust(slide)
    image, shown = ax.images
    assert (np.asarray(image.get_array()) == GREY).all()
    np.testing.assert_array_equal(shown.get_array(), slide["predicted_trust"].to_numpy()[0])
    assert shown.get_clim() == (0, 1) and shown.get_extent() == [0, COLUMNS * FACTOR, ROWS * FACTOR, 0]
    (bar,) = set(ax.figure.axes) - {ax}
    assert bar.get_ylabel() == "trust: how familiar the H&E is" and bar.get_ylim() == (0, 1)
    # Not predicted: only the image.
    ax.figure.canvas.draw()
    assert pl.trust(slide, crop=CROP).images[1].get_array().shape == (4, 6)


def test_trust_that_is_not_there(slide: sd.SpatialData) -> None:
    with pytest.raises(
        KeyError, match=r"No 'mine_trust' among the images \['denoised_map', 'he', 'predicted_map'\]: run"
    ):
        pl.trust(slide, "mine")
    with pytest.raises(KeyError, match="No 'other' among the images"):
        pl.trust(slide, image_key="other")


def test_pyramids_are_read_at_the_level_that_suffices(slide: sd.SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixel2gene.pl._raster.LONGEST", 80)
    slide["he"] = Image2DModel.parse(
        slide["he"].to_numpy(), dims=("c", "y", "x"), scale_factors=[2, 2], transformations=transforms()
    )
    full = slide["he"]["scale0"]["image"]
    meta = np.empty((0, 0, 0), np.uint8)
    full.data = da.map_blocks(lambda _: pytest.fail("read at full resolution"), full.data, meta=meta)
    assert pl.tissue(slide).images[0].get_array().shape == (48, 80, 3)


@pytest.mark.parametrize("longest", [10, 16, 33])
def test_images_without_pyramid_are_read_in_part(slide: sd.SpatialData, longest: int) -> None:
    """Of a ramp, where it is, though most of its pixels are not looked at."""
    y, x = np.indices((ROWS * FACTOR, COLUMNS * FACTOR))
    ramp = np.stack([x * 0.7, y, (x + y) / 3]).astype(np.uint8)
    slide["he"] = Image2DModel.parse(ramp, dims=("c", "y", "x"), transformations=transforms())
    whole = (0, COLUMNS * FACTOR, ROWS * FACTOR, 0)
    found, place = read_image(slide, "he", whole, longest)
    scale = COLUMNS * FACTOR / longest
    assert place == pytest.approx((0, found.shape[1] * scale, found.shape[0] * scale, 0))
    expected = open_image(slide, "he").read(scale, 0, found.shape[0], 0, found.shape[1]).transpose(1, 2, 0)
    inner = np.abs(found.astype(float) - expected)[:-1, :-1]
    assert 0 < inner.max() < 0.1 * scale + 1.5


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    window=st.tuples(*[st.floats(0, 300)] * 2, *[st.floats(8, 200)] * 2),
    longest=st.integers(1, 60),
    shift=st.floats(-20, 20),
)
def test_what_is_cut_out_lies_where_it_was(
    size: tuple[int, int], window: tuple[float, ...], longest: int, shift: float
) -> None:
    """Every pixel holds a value of the original within its own area, and together they hold the window."""
    rows, columns = size
    y, x = np.indices(size)
    values = xr.DataArray((y * columns + x)[None], dims=("c", "y", "x"))
    matrix = np.array([[8.0, 0, shift], [0, 8.0, -shift], [0, 0, 1]])
    left, top, width, height = window
    shown = left, left + width, top + height, top
    part, to_image = cut(values, matrix, shown, longest)
    row, column = np.divmod(part.to_numpy()[0], columns)
    i, j = np.indices(row.shape)
    corner = np.stack([j, i, np.ones_like(i)], -1) @ to_image.T
    step = to_image[0, 0] / 8
    assert (np.abs(8 * (column + 0.5) + shift - corner[..., 0] - to_image[0, 0] / 2) <= 4 * step + 1e-6).all()
    assert (np.abs(8 * (row + 0.5) - shift - corner[..., 1] - to_image[1, 1] / 2) <= 4 * step + 1e-6).all()
    (x0, x1, y1, y0) = place_of(to_image, row.shape)
    assert x0 <= max(left, shift) + 1e-3 or columns * 8 + shift < left
    assert x1 >= min(left + width, columns * 8 + shift) - 8 * step - 1e-3
    assert y0 <= max(top, -shift) + 1e-3 or rows * 8 - shift < top
    assert y1 >= min(top + height, rows * 8 - shift) - 8 * step - 1e-3
    assert max(row.shape) < 2 * longest + 2


def embedding_of(slide: sd.SpatialData, values: np.ndarray) -> None:
    slide["he_embedding"] = Image2DModel.parse(
        values.astype(np.float16), dims=("c", "y", "x"), transformations=transforms(FACTOR)
    )
    slide.attrs["pixel2gene"] = {
        "he_embedding": {
            "verb": "embed",
            "image_key": "he",
            "mpp": MPP,
            "encoder": {"name": "none"},
            "fingerprint": "none",
        }
    }


def three_patterns() -> np.ndarray:
    """Twelve channels that are mixtures of three patterns, of ever lower variance."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(-1, 1, (3, ROWS, COLUMNS)) * np.array([4, 2, 1])[:, None, None]
    mixing = np.linalg.qr(rng.normal(size=(12, 3)))[0]
    values = np.einsum("kp,pyx->kyx", mixing, patterns) + 5
    values[:, :, 0] = 0
    return values


def test_colours_of_the_embedding_are_its_principal_components(slide: sd.SpatialData) -> None:
    values = three_patterns()
    embedding_of(slide, values)
    ax = pl.embedding(slide)
    colours = np.asarray(ax.images[1].get_array())
    assert colours.shape == (ROWS, COLUMNS, 4)
    assert (colours[:, 0, 3] == 0).all() and (colours[:, 1:, 3] == 1).all()
    flat = values[:, :, 1:].reshape(12, -1).T.astype(np.float16)
    reference = PCA(3).fit_transform(StandardScaler().fit_transform(flat.astype(np.float64)))
    for channel in range(3):
        r = spearmanr(colours[:, 1:, channel].ravel(), reference[:, channel])[0]
        assert abs(r) > 0.999
    assert ax.images[1].get_extent() == [0, COLUMNS * FACTOR, ROWS * FACTOR, 0]


def test_crops_of_the_embedding_have_the_colours_of_the_whole(slide: sd.SpatialData) -> None:
    embedding_of(slide, three_patterns())
    whole, part = (np.asarray(pl.embedding(slide, crop=crop).images[1].get_array()) for crop in (None, CROP))
    np.testing.assert_allclose(part, whole[2:6, 10:16], atol=1e-6)


def test_an_embedding_without_tissue(slide: sd.SpatialData) -> None:
    embedding_of(slide, np.zeros((12, ROWS, COLUMNS)))
    with pytest.raises(ValueError, match="'he_embedding' has no tissue to draw"):
        pl.embedding(slide)
    with pytest.raises(KeyError, match=r"No 'mine' written by pixel2gene.tl.embed; it wrote \['he_embedding'\]"):
        pl.embedding(slide, embedding_key="mine")


@pytest.mark.parametrize("per_side", [1, 2])
def test_many_units_are_drawn_as_few_are(slide: sd.SpatialData, monkeypatch: pytest.MonkeyPatch, per_side: int) -> None:
    """By their middle and area alone, bins on superpixels or smaller have the same sums."""
    side = FACTOR / per_side
    y, x = (axis.ravel() * side for axis in np.indices((ROWS * per_side, COLUMNS * per_side)))
    bins = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + side, y + side))
    counts = np.random.default_rng(0).poisson(2, (len(bins), 2))
    slide["units"] = ShapesModel.parse(bins, transformations=transforms())
    del slide["counts"]
    slide["counts"] = table_on(bins, counts)
    exact = np.asarray(pl.expression(slide, "A")[1].images[0].get_array())
    monkeypatch.setattr("pixel2gene.pl._units.MANY", 10)
    found = np.asarray(pl.expression(slide, "A")[1].images[0].get_array())
    sums = counts[:, 0].reshape(ROWS, per_side, COLUMNS, per_side).sum(axis=(1, 3))
    np.testing.assert_allclose(exact, sums, rtol=1e-5)
    np.testing.assert_allclose(found, sums, rtol=1e-5)


def test_counts_of_large_labels(slide: sd.SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 24 x 16 px as labels, read thinned: counts by area, where they are."""
    y, x = np.indices((ROWS * FACTOR, COLUMNS * FACTOR))
    cells = np.where(x < 240, y // 16 * 10 + x // 24 + 1, 0)
    slide["cells"] = Labels2DModel.parse(cells, dims=("y", "x"), transformations=transforms())
    del slide["counts"]
    ids = np.unique(cells[cells > 0])
    table = AnnData(np.stack([ids, ids], axis=1).astype(np.float32))
    table.var_names = GENES
    table.obs["region"], table.obs["instance_id"] = pd.Categorical(["cells"] * len(ids)), ids
    slide["counts"] = TableModel.parse(table, region=["cells"], region_key="region", instance_key="instance_id")
    exact = np.asarray(pl.expression(slide, "A")[1].images[0].get_array())
    monkeypatch.setattr("pixel2gene.pl._units.MANY_PIXELS", 10)
    found = np.asarray(pl.expression(slide, "A")[1].images[0].get_array())
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    inside = np.isfinite(exact)
    assert inside.mean() == pytest.approx(0.75)
    # A cell of few pixels is some of them too small or too large.
    assert exact[inside].sum() == pytest.approx(ids.sum(), rel=1e-5)
    assert found[inside].sum() == pytest.approx(ids.sum(), rel=0.02)
    np.testing.assert_allclose(found[inside], exact[inside], rtol=0.12)
