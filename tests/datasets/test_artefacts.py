"""What is planted changes what it says it changes, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pixel2gene.datasets import plant_artefact
from pixel2gene.datasets._artefacts import ARTEFACTS
from pixel2gene.datasets._paint import paint

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def image() -> Image:
    return paint((500, 600), 0.5, 0).image


@pytest.mark.parametrize("kind", ARTEFACTS)
@pytest.mark.parametrize("seed", range(3))
def test_only_what_is_masked_changes(image: Image, kind: str, seed: int) -> None:
    before = image.copy()
    spoilt, mask = plant_artefact(image, kind, seed=seed)
    assert spoilt.dtype == np.uint8
    assert spoilt.shape == image.shape
    assert mask.shape == image.shape[1:]
    changed = (spoilt != image).any(axis=0)
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.8
    assert mask.all() if kind == "stain" else 0.01 < mask.mean() < 0.4
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_seed_decides(image: Image, kind: str) -> None:
    first, again, other = (plant_artefact(image, kind, seed=seed)[0] for seed in (0, 0, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("kind", ["pen", "thin pen"])
def test_ink_only_darkens(image: Image, kind: str) -> None:
    spoilt, mask = plant_artefact(image, kind)
    assert (spoilt <= image).all()
    assert spoilt[:, mask].mean() < 0.8 * image[:, mask].mean()


def test_opaque_ink_hides_the_tissue(image: Image) -> None:
    light = {kind: plant_artefact(image, kind, seed=1) for kind in ("pen", "thin pen")}
    spread = {kind: spoilt[:, mask].std(axis=1).mean() for kind, (spoilt, mask) in light.items()}
    assert spread["pen"] < 0.5 * spread["thin pen"]


def test_blur_keeps_the_colour_and_takes_the_detail(image: Image) -> None:
    spoilt, mask = plant_artefact(image, "blur")
    inner = mask & np.roll(mask, 1, axis=1)
    gradient = [np.abs(np.diff(x.astype(float), axis=2, prepend=0))[:, inner].mean() for x in (spoilt, image)]
    assert gradient[0] < 0.4 * gradient[1]
    np.testing.assert_allclose(spoilt[:, mask].mean(axis=1), image[:, mask].mean(axis=1), atol=3)


def test_blur_is_in_micrometres(image: Image) -> None:
    fine, coarse = (plant_artefact(image, "blur", mpp=mpp)[0].astype(float) for mpp in (0.25, 2.0))
    assert np.abs(fine - image).mean() > np.abs(coarse - image).mean()


def test_a_fold_has_the_density_of_two_layers() -> None:
    even = np.full((3, 200, 200), 120, np.uint8)
    spoilt, mask = plant_artefact(even, "fold")
    glass = np.array([244, 242, 245])[:, None]
    np.testing.assert_allclose(spoilt[:, mask], np.broadcast_to(120 * 120 / glass, (3, mask.sum())), atol=1)


def test_stain_leaves_glass_as_it_is(image: Image) -> None:
    glass = image.min(axis=0) > 240
    spoilt, _ = plant_artefact(image, "stain")
    assert glass.sum() > 100
    np.testing.assert_allclose(spoilt[:, glass].mean(axis=1), image[:, glass].mean(axis=1), atol=2)


def test_what_cannot_be_planted_is_refused(image: Image) -> None:
    with pytest.raises(ValueError, match="no artefact 'coffee': choose from \\['pen'"):
        plant_artefact(image, "coffee")
    with pytest.raises(ValueError, match=r"uint8 of shape \(3, y, x\) is expected, not float64 of shape \(3, 4, 4\)"):
        plant_artefact(np.zeros((3, 4, 4)), "pen")
    with pytest.raises(ValueError, match=r"not uint8 of shape \(4, 4, 3\)"):
        plant_artefact(np.zeros((4, 4, 3), np.uint8), "pen")
