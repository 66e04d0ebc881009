"""Plots show the right panels, on one scale, in the right place."""

from collections.abc import Iterator

import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import shapely
import spatialdata as sd
from anndata import AnnData
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import sparse
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence

from pixel2gene import pl

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


def test_predictions_of_little_trust_are_grey(slide: sd.SpatialData) -> None:
    values = np.full((2, ROWS, COLUMNS), 2, np.float16)
    values[:, 4:8, 10:] = 9
    values[:, :, 0] = np.nan
    slide["predicted_map"] = raster(values)
    slide["predicted_trust"] = trust(np.s_[4:8, 10:])
    plain = pixels_of(pl.expression(slide, "A"))
    axes = pl.expression(slide, "A", min_trust=0.5)
    found = pixels_of(axes)
    is_grey = (found == 204).all(axis=-1)
    assert is_grey[4:8, 10:].all() and is_grey.sum() == 4 * 10
    assert not (plain == 204).all(axis=-1).any()
    # What was not predicted stays white.
    assert (found[:, 0] == 255).all()
    assert axes[-1].get_title() == "A, predicted\ngrey: trust below 0.5"
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
def test_predictions_of_poor_genes_are_grey(slide: sd.SpatialData, score: float, masked: bool) -> None:
    slide["predicted"] = results_table([score, 0.9])
    axes = pl.expression(slide, "A", min_score=0.2)
    grey = (pixels_of(axes) == 204).all(axis=-1)
    shown = np.isfinite(np.asarray(slide["predicted_map"].sel(c="A")))
    np.testing.assert_array_equal(grey, shown & masked)
    assert ("grey: below 0.2" in axes[-1].get_title()) == masked


def test_unknown_gene(slide: sd.SpatialData) -> None:
    with pytest.raises(KeyError, match=r"No gene 'ERBB2'; there are 2, such as \['A', 'B'\]"):
        pl.expression(slide, "ERBB2")


def test_unknown_keys(slide: sd.SpatialData) -> None:
    with pytest.raises(KeyError, match="No 'other' among the images"):
        pl.expression(slide, "A", image_key="other")
    with pytest.raises(KeyError, match="No table 'x'.*tables.*counts.*images.*denoised_map"):
        pl.expression(slide, "A", measured="x", denoised="y", predicted="z")


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
