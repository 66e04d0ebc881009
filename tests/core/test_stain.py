"""The stain of a slide, against slides whose dyes are known, and what its change does to an embedding."""

import numpy as np
import pytest
import torch

from pixel2gene.core.encoders import get_encoder
from pixel2gene.core.stain import STANDARD, Stain, fit_stain, restain
from pixel2gene.datasets._artefacts import plant_artefact
from pixel2gene.datasets._paint import paint

GLASS = np.array([240.0, 235.0, 242.0])
GLASS_PLACES = np.repeat(GLASS[:, None], 50, axis=1).astype(np.float32)


def unit(*rows):
    dyes = np.array(rows).T
    return dyes / np.linalg.norm(dyes, axis=0)


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
def test_dyes_and_strengths_are_found(amounts, dyes):
    truth = Stain(dyes, np.percentile(amounts, 99, axis=1), GLASS)
    found = fit_stain(dyed(truth, amounts), GLASS_PLACES)
    assert np.degrees(np.arccos((found.dyes * dyes).sum(axis=0).clip(-1, 1))).max() < 4
    np.testing.assert_allclose(found.strength, truth.strength, rtol=0.1)
    np.testing.assert_allclose(found.glass, GLASS)


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
    with pytest.raises(ValueError, match="is not haematoxylin and eosin: its dyes are .* degrees off"):
        fit_stain(dyed(green, amounts), GLASS_PLACES)
    with pytest.raises(ValueError, match="0 stained pixels were seen; 100 are needed"):
        fit_stain(GLASS_PLACES, GLASS_PLACES)


@pytest.mark.parametrize("seed", [0, 2])
def test_another_stain_changes_an_embedding_little(seed):
    encoder = get_encoder("lite0", torch.device("cpu"))
    image = paint((384, 384), 0.5, seed).image
    shifted = plant_artefact(image, "stain", seed=seed)[0]
    tissue = image.mean(axis=0) < 215

    def normalised(pixels):
        pixels = pixels.astype(np.float32)
        places = pixels.reshape(3, 24, 16, 24, 16).mean(axis=(2, 4)).reshape(3, -1)
        return restain(pixels, fit_stain(pixels[:, tissue], places))

    def distance(first, second):
        one, two = (encoder.encode_dense(torch.from_numpy(p.astype(np.float32))[None])[0] for p in (first, second))
        return float(((one - two).abs().mean(dim=(1, 2)) / one.std(dim=(1, 2))).mean())

    assert distance(normalised(image), normalised(shifted)) < 0.35 * distance(image, shifted)
