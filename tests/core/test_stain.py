"""The stain of a slide, against slides whose dyes are known, and what its change does to an embedding."""

import numpy as np
import pytest
import squidpy as sq
import torch
from sklearn.decomposition import DictionaryLearning
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

from pixel2gene.core.encoders import get_encoder
from pixel2gene.core.stain import (
    GLASS_DENSITY,
    METHODS,
    SPARSITY,
    STANDARD,
    STANDARD_COLOURS,
    Colours,
    Stain,
    fit_stain,
    recolour,
    restain,
    to_standard,
)
from pixel2gene.datasets._artefacts import plant_artefact
from pixel2gene.datasets._paint import paint

GLASS = np.array([240.0, 235.0, 242.0])
GLASS_PLACES = np.repeat(GLASS[:, None], 50, axis=1).astype(np.float32)


def unit(*rows):
    dyes = np.array(rows).T
    return dyes / np.linalg.norm(dyes, axis=0)


def degrees(first, second):
    return np.degrees(np.arccos((first * second).sum(axis=0).clip(-1, 1)))


def dyed(stain, amounts):
    """Pixels (3, n) by Beer and Lambert."""
    return ((stain.glass[:, None] + 1) * np.exp(-stain.dyes @ amounts) - 1).astype(np.float32)


@pytest.fixture(scope="module")
def amounts():
    """Nuclei have haematoxylin and little eosin, the rest eosin only."""
    rng = np.random.default_rng(0)
    nucleus = rng.random(20_000) < 0.3
    haematoxylin = np.where(nucleus, rng.gamma(8, 0.12, nucleus.size), rng.gamma(1, 0.01, nucleus.size))
    eosin = np.where(nucleus, rng.gamma(1, 0.02, nucleus.size), rng.gamma(6, 0.08, nucleus.size))
    return np.stack([haematoxylin, eosin])


@pytest.mark.parametrize(
    "dyes", [unit([0.65, 0.70, 0.29], [0.07, 0.99, 0.11]), unit([0.76, 0.57, 0.31], [0.3, 0.8, 0.5])]
)
@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_dyes_and_strengths_are_found(amounts, dyes, method):
    truth = Stain(dyes, np.percentile(amounts, 99, axis=1), GLASS)
    found = fit_stain(dyed(truth, amounts), GLASS_PLACES, method)
    assert degrees(found.dyes, dyes).max() < 4
    np.testing.assert_allclose(found.strength, truth.strength, rtol=0.1)
    np.testing.assert_allclose(found.glass, GLASS)


@pytest.fixture(scope="module")
def slide():
    """A painted slide whose white is that of squidpy, and the pixels of its tissue."""
    image = paint((256, 256), 0.5, 1).image
    image[:, :8] = 255
    sdata = SpatialData(images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))})
    inside = (image.mean(axis=0) < 215).astype(np.int64)
    sdata["he_tissue"] = Labels2DModel.parse(inside, dims=("y", "x"))
    return sdata, image.astype(np.float32), image.astype(np.float32)[:, inside > 0]


WHITE = np.full((3, 50), 255, np.float32)


def test_outermost_dyes_are_those_of_squidpy(slide):
    sdata, _, tissue = slide
    theirs = sq.experimental.im.fit_stain_reference(sdata, "he", method="macenko")
    assert degrees(fit_stain(tissue, WHITE).dyes, theirs.stain_matrix[:, :2]).max() < 1


def test_sparse_dyes_are_those_of_scikit_learn(slide):
    """Its dictionaries have the same objective; squidpy's factors leave the length of the dyes free."""
    tissue = slide[2][:, ::40]
    density = -np.log((tissue.astype(float) + 1) / 256)
    reference = DictionaryLearning(
        2,
        alpha=SPARSITY,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        positive_code=True,
        positive_dict=True,
        dict_init=STANDARD.dyes.T,
        code_init=np.zeros((density.shape[1], 2)),
        max_iter=200,
        tol=1e-6,
    ).fit(density[:, density.max(axis=0) > GLASS_DENSITY].T)
    dyes = reference.components_.T / np.linalg.norm(reference.components_.T, axis=0)
    assert degrees(fit_stain(tissue, WHITE, "vahadane").dyes, dyes).max() < 1


def test_colours_are_those_of_squidpy(slide):
    sdata, image, tissue = slide
    own = fit_stain(tissue, WHITE, "reinhard")
    theirs = sq.experimental.im.fit_stain_reference(sdata, "he", method="reinhard")
    np.testing.assert_allclose(own.mean, theirs.mu, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(own.sd, theirs.sigma, rtol=1e-3)

    target = sq.experimental.im.StainReference(method="reinhard", mu=STANDARD_COLOURS.mean, sigma=STANDARD_COLOURS.sd)
    expected = sq.experimental.im.normalize_stains(sdata, "he", target, inplace=False, preserve_background=False)
    np.testing.assert_allclose(to_standard(image, own), expected.to_numpy(), atol=1)
    np.testing.assert_allclose(recolour(image, own, own), image, atol=0.1)


def test_colours_are_brought_to_the_standard(slide):
    image = slide[1]
    shifted = (image * np.float32([0.8, 0.6, 0.9])[:, None, None]).clip(1, 250)
    again = recolour(shifted, fit_stain(shifted.reshape(3, -1), WHITE, "reinhard"))
    found = fit_stain(again.reshape(3, -1), WHITE, "reinhard")
    assert isinstance(found, Colours) and again.dtype == np.float32 and again.shape == image.shape
    np.testing.assert_allclose(found.mean, STANDARD_COLOURS.mean, atol=0.05)


def test_an_image_is_as_if_dyed_otherwise(amounts):
    own = Stain(unit([0.76, 0.57, 0.31], [0.3, 0.8, 0.5]), np.array([1.4, 0.7]), GLASS)
    few = amounts[:, :400].clip(0, 2)
    found = restain(dyed(own, few).reshape(3, 20, 20), own)
    expected = dyed(STANDARD, few * (STANDARD.strength / own.strength)[:, None])
    np.testing.assert_allclose(found.reshape(3, -1), expected, atol=0.01)
    assert found.dtype == np.float32
    np.testing.assert_allclose(restain(dyed(own, few)[..., None], own, own), dyed(own, few)[..., None], atol=0.01)


def test_glass_becomes_glass():
    own = Stain(unit([0.76, 0.57, 0.31], [0.3, 0.8, 0.5]), np.array([1.4, 0.7]), GLASS)
    found = restain(np.broadcast_to(GLASS[:, None, None], (3, 4, 4)).astype(np.float32), own)
    np.testing.assert_allclose(found, np.broadcast_to(STANDARD.glass[:, None, None], (3, 4, 4)), rtol=1e-5)


def test_what_is_no_haematoxylin_and_eosin_is_refused(amounts):
    green = Stain(unit([0.9, 0.05, 0.1], [0.05, 0.05, 0.99]), np.ones(2), GLASS)
    for method in ("macenko", "vahadane"):
        with pytest.raises(ValueError, match="is not haematoxylin and eosin: its dyes are .* degrees off"):
            fit_stain(dyed(green, amounts), GLASS_PLACES, method)
    for method in METHODS:
        with pytest.raises(ValueError, match="0 stained pixels were seen; 100 are needed"):
            fit_stain(GLASS_PLACES, GLASS_PLACES, method)


@pytest.mark.parametrize(("seed", "method"), [(0, "macenko"), (2, "macenko"), (2, "vahadane")])
def test_another_stain_changes_an_embedding_little(seed, method):
    encoder = get_encoder("lite0", torch.device("cpu"))
    image = paint((384, 384), 0.5, seed).image
    shifted = plant_artefact(image, "stain", seed=seed)[0]
    tissue = image.mean(axis=0) < 215

    def normalised(pixels):
        pixels = pixels.astype(np.float32)
        places = pixels.reshape(3, 24, 16, 24, 16).mean(axis=(2, 4)).reshape(3, -1)
        return to_standard(pixels, fit_stain(pixels[:, tissue], places, method))

    def distance(first, second):
        one, two = (encoder.encode_dense(torch.from_numpy(p.astype(np.float32))[None])[0] for p in (first, second))
        return float(((one - two).abs().mean(dim=(1, 2)) / one.std(dim=(1, 2))).mean())

    assert distance(normalised(image), normalised(shifted)) < 0.35 * distance(image, shifted)
