import numpy as np
import pytest
from scipy import ndimage

from pixel2gene.core.tissue import SMALLEST, is_dark, superpixel_statistics, tissue_mask
from pixel2gene.datasets._paint import COMPARTMENTS, paint

GLASS = (243.0, 241.0, 244.0)
PINK = (214.0, 140.0, 190.0)


def glass(rows, columns, noise, seed=0):
    rng = np.random.default_rng(seed)
    picture = np.array(GLASS)[:, None, None] + rng.normal(0, noise, (3, rows * 8, columns * 8))
    return picture.clip(0, 255).astype(np.float32)


def mask_of(picture):
    return tissue_mask(superpixel_statistics(picture, 8))


def stain(picture, rows, columns):
    picture[:, 8 * rows.start : 8 * rows.stop, 8 * columns.start : 8 * columns.stop] *= (
        np.array(PINK, np.float32)[:, None, None] / 255
    )


def painted(seed):
    """Picture and compartment of each superpixel."""
    painting = paint((1280, 1200), 1.0, seed)
    return painting.image.astype(np.float32), painting.compartments[2::4, 2::4]


@pytest.mark.parametrize(
    ("brightness", "dark"),
    [([0, 0], True), ([0, 60], True), ([0, 240], False), ([90] * 99 + [240], True), ([90] * 9 + [240], False)],
)
def test_dark_is_where_all_but_a_few_lit_places_are(brightness, dark):
    statistics = np.broadcast_to(np.array(brightness, np.float32), (4, 1, len(brightness)))
    assert is_dark(statistics) is dark


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_painted_tissue_is_found(seed):
    picture, compartments = painted(seed)
    # Painted fat is as empty as glass.
    judged = compartments != COMPARTMENTS.index("fat")
    truth = compartments != COMPARTMENTS.index("background")
    found = mask_of(picture)
    assert (found & truth)[judged].sum() / (found | truth)[judged].sum() > 0.85
    assert (found & ~truth).mean() < 0.02


def test_a_picture_full_of_tissue():
    picture, compartments = painted(0)
    solid = ~np.isin(compartments, [COMPARTMENTS.index(name) for name in ("background", "fat")])
    side = 40
    inside = ndimage.uniform_filter(solid.astype(float), side, origin=-side // 2, mode="constant")
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    assert solid[row : row + side, column : column + side].mean() > 0.99
    found = mask_of(picture[:, 8 * row : 8 * (row + side), 8 * column : 8 * (column + side)])
    # Pale stroma is the rest.
    assert found.mean() > 0.85


@pytest.mark.parametrize("noise", [0, 2, 8])
def test_glass_has_no_tissue(noise):
    assert not mask_of(glass(40, 50, noise)).any()


def test_uneven_light_is_no_tissue():
    picture = glass(40, 50, 2) * np.linspace(0.97, 1, 400, dtype=np.float32)
    assert not mask_of(picture).any()


def test_specks_are_dropped_and_holes_filled():
    picture = glass(40, 40, 2)
    stain(picture, slice(10, 30), slice(10, 30))
    solid = mask_of(picture)
    assert 350 < solid.sum() < 480
    picture[:, 8 * 20 : 8 * 22, 8 * 20 : 8 * 22] = np.array(GLASS)[:, None, None]
    stain(picture, slice(3, 5), slice(33, 35))
    found = mask_of(picture)
    assert found[12:28, 12:28].all() and not found[:8].any()
    pieces, n = ndimage.label(found)
    assert n == 1 and np.bincount(pieces.ravel())[1:].min() >= SMALLEST


def test_pale_but_textured_tissue_is_found():
    picture = glass(40, 40, 2)
    mesh = np.indices((160, 160)).sum(axis=0) % 8 < 1
    picture[:, 80:240, 80:240] *= np.where(mesh, 0.6, 1.0).astype(np.float32)
    found = mask_of(picture)
    assert found[11:29, 11:29].mean() > 0.95
    assert not found[:8].any()


def test_statistics_by_hand():
    rng = np.random.default_rng(0)
    rgb = rng.uniform(0, 255, (3, 6, 4)).astype(np.float32)
    found = superpixel_statistics(rgb, 2)
    assert found.shape == (4, 3, 2) and found.dtype == np.float32
    tile = rgb[:, 2:4, 0:2]
    np.testing.assert_allclose(found[:3, 1, 0], tile.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found[3, 1, 0], np.log10((tile.mean(axis=0) + 1) / 256).std(), rtol=1e-4)
