"""Tiles of the image, joined to rasters in which they do not show."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from pixel2gene.core.embedding import CONTEXT_WINDOWS, local_channels
from pixel2gene.core.encoders import get_encoder, shared_encoder
from pixel2gene.core.encoders.colour import colour
from pixel2gene.core.tissue import superpixel_statistics
from pixel2gene.datasets._paint import paint
from pixel2gene.spatial import raster
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.raster import LocalTile, fingerprint, lazy_embedding, lazy_statistics, lazy_tiles

MPP = 0.5


class Spy:
    """A slide that remembers what was read of it."""

    def __init__(self, slide):
        self.slide, self.windows = slide, []

    def read(self, *window):
        self.windows.append((*window, threading.get_ident()))
        return self.slide.read(*window)


def open_pixels(pixels, **options):
    return open_image(SpatialData(images={"he": Image2DModel.parse(pixels, dims=("c", "y", "x"), **options)}), "he")


def embed(slide, mask, mpp=MPP, **options):
    return lazy_embedding(LocalTile(slide, mpp, partial(shared_encoder, "lite0", torch.device("cpu")), **options), mask)


@pytest.fixture(scope="module")
def slide():
    return open_pixels(paint((1024, 1120), MPP, 1).image)


@pytest.fixture(scope="module")
def encoder():
    return shared_encoder("lite0", torch.device("cpu"))


@pytest.fixture(scope="module")
def mask():
    """A blob; tiles of 24 in the corners have none of it."""
    y, x = np.indices((64, 70))
    return (((y - 32) / 28) ** 2 + ((x - 38) / 26) ** 2 < 1) & ~((y // 5 + x // 7) % 6 == 0)


@pytest.fixture(scope="module")
def embedding(slide, mask):
    return embed(slide, mask).compute()


def test_half_precision_on_the_grid_and_zero_outside(embedding, encoder, mask):
    assert embedding.shape == (local_channels(encoder) * (1 + len(CONTEXT_WINDOWS)), 64, 70)
    assert embedding.dtype == np.float16
    assert np.isfinite(embedding).all()
    assert not embedding[:, ~mask].any()
    assert (embedding[:, mask] != 0).any(axis=0).all()


@pytest.mark.parametrize("side", [24, 40])
def test_tiles_do_not_show(slide, mask, embedding, monkeypatch, side):
    """Mean absolute change over the tissue, in standard deviations of each channel over the tissue."""
    monkeypatch.setattr(raster, "ENCODED", side)
    other = embed(slide, mask).compute()[:, mask].astype(np.float64)
    whole = embedding[:, mask].astype(np.float64)
    change = np.abs(other - whole).mean(axis=1) / whole.std(axis=1)
    assert change.max() < 0.01
    assert not np.array_equal(other, whole), "the tiles were the same"


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_tiles_that_are_kept_are_joined_as_in_memory(slide, mask, monkeypatch, tmp_path, scales):
    monkeypatch.setattr(raster, "ENCODED", 24)
    mask = mask.copy()
    mask[:24, :24] = False
    load = partial(shared_encoder, "lite0", torch.device("cpu"))
    tile = LocalTile(slide, MPP, load, scales=scales, finished=tmp_path)
    there = lazy_tiles(tile, mask).compute()
    np.testing.assert_array_equal(
        there, [[mask[y : y + 24, x : x + 24].any() for x in (0, 24, 48)] for y in (0, 24, 48)]
    )
    assert not there[0, 0] and len(list(tmp_path.iterdir())) == there.sum()
    in_memory = lazy_embedding(LocalTile(slide, MPP, load, scales=scales), mask).compute()
    np.testing.assert_array_equal(lazy_embedding(tile, mask).compute(), in_memory)


def in_windows():
    """As a vision transformer sees the slide."""
    encoder = get_encoder("lite0", torch.device("cpu"))
    encoder.halo, encoder.window = 0, 128
    return encoder


@pytest.mark.parametrize("load", [partial(get_encoder, "lite0", torch.device("cpu")), in_windows])
def test_tiles_do_not_show_in_wider_fields(slide, mask, monkeypatch, load):
    encoder = load()
    n, share = local_channels(encoder), 0.5 if encoder.window else 0.0

    def fields(side):
        monkeypatch.setattr(raster, "ENCODED", side)
        tile = LocalTile(slide, MPP, lambda: encoder, share, scales=(1, 3))
        values = lazy_embedding(tile, mask).compute()
        assert values.shape[0] == 4 * n and not values[:, ~mask].any()
        return values[3 * n :, mask].astype(np.float64)

    whole, parts = fields(80), fields(24)
    change = np.abs(parts - whole).mean(axis=1) / whole.std(axis=1).clip(1e-3)
    assert change.max() < 0.01
    # Windows are the same whatever the tile.
    assert encoder.window or not np.array_equal(parts, whole), "the tiles were the same"


@pytest.mark.parametrize("scale", [2, 4])
def test_wider_fields_are_those_of_larger_pixels(slide, encoder, mask, embedding, scale):
    """All of the slide read in larger pixels, encoded at once, and laid on the superpixels by torch."""
    found = embed(slide, mask, scales=(1, scale)).compute()
    np.testing.assert_array_equal(found[: len(embedding)], embedding)
    cells = [-(-size // scale) + 1 for size in mask.shape]
    # From one cell before the slide to one behind it.
    edges = [edge for n in cells for edge in (-16 - encoder.halo, 16 * n + encoder.halo)]
    around = torch.from_numpy(slide.read(scale, *edges))[None]
    border = encoder.halo // 16
    core = around[..., encoder.halo : -encoder.halo, encoder.halo : -encoder.halo]
    seen = encoder.encode_dense(around)[..., border:-border, border:-border]
    features = torch.cat([seen, colour(core, 16)], dim=1)
    wide = F.interpolate(features, scale_factor=scale, mode="bilinear", align_corners=False)[0]
    expected = wide[:, scale:, scale:][:, : mask.shape[0], : mask.shape[1]].numpy()[:, mask]
    change = np.abs(found[len(embedding) :, mask] - expected).mean(axis=1) / expected.std(axis=1)
    assert change.max() < 0.01


def test_wider_fields_read_no_more_than_they_need(slide, encoder, mask):
    spy = Spy(slide)
    only = np.zeros_like(mask)
    only[30:34, 20:50] = True
    embed(spy, only, scales=(1, 4)).compute()
    scale, y0, y1, x0, x1, _ = spy.windows[-1]
    # Superpixels 30 to 33 lie between the centres of cells 7 and 8, 20 to 49 between those of 4 and 12.
    assert (scale, y0, y1) == (4, 7 * 16 - encoder.halo, 9 * 16 + encoder.halo)
    assert (x0, x1) == (4 * 16 - encoder.halo, 13 * 16 + encoder.halo)


def test_context_is_the_mean_of_the_tissue_around(embedding, encoder, mask):
    n = local_channels(encoder)
    local = embedding[:n].astype(np.float64)
    rng = np.random.default_rng(0)
    for y, x in rng.permutation(np.argwhere(mask))[:40]:
        for k, window in enumerate(CONTEXT_WINDOWS, start=1):
            around = tuple(slice(max(0, i - window // 2), i + window // 2 + 1) for i in (y, x))
            mean = local[:, *around][:, mask[around]].mean(axis=1)
            np.testing.assert_allclose(embedding[k * n : (k + 1) * n, y, x], mean, rtol=2e-3, atol=2e-3)


def test_tiles_without_tissue_are_never_read(slide, encoder, mask, monkeypatch):
    monkeypatch.setattr(raster, "ENCODED", 24)
    spy = Spy(slide)
    only = mask.copy()
    only[:, 24:] = False
    found = embed(spy, only).compute()
    tiles = {(y // 24, x // 24) for y, x in np.argwhere(only)}
    assert len(spy.windows) == len(tiles) < 9
    for scale, y0, y1, x0, x1, _ in spy.windows:
        assert scale == encoder.mpp / MPP
        assert ((y0 + encoder.halo) // 16 // 24, (x0 + encoder.halo) // 16 // 24) in tiles
        assert y1 - y0 <= 24 * 16 + 2 * encoder.halo and x1 - x0 <= 24 * 16 + 2 * encoder.halo
    assert not found[:, ~only].any()


def test_no_more_is_read_than_the_tissue_of_a_tile_needs(slide, encoder, mask):
    spy = Spy(slide)
    only = np.zeros_like(mask)
    only[30:34, 20:50] = True
    embed(spy, only).compute()
    ((_, y0, y1, x0, x1, _),) = spy.windows
    assert (y1 - y0, x1 - x0) == (4 * 16 + 2 * encoder.halo, 30 * 16 + 2 * encoder.halo)


@pytest.mark.parametrize("size", [(256, 1120), (200, 264), (16, 16)])
def test_images_smaller_than_the_surroundings(encoder, size):
    pixels = paint((256, 1120), MPP, 1).image[:, : size[0], : size[1]]
    shape = tuple(-(-n // 16) for n in size)
    found = embed(open_pixels(pixels), np.ones(shape, bool))
    assert found.shape[1:] == shape
    values = found.compute()
    assert values.shape == found.shape and np.isfinite(values).all()
    # The largest window sees all of a small image.
    if max(shape) <= max(CONTEXT_WINDOWS) // 2:
        n = local_channels(encoder)
        mean = values[:n].astype(np.float64).mean(axis=(1, 2))
        np.testing.assert_allclose(values[-n:, 0, 0], mean, rtol=2e-3, atol=2e-3)


def test_pixel_size_is_made_up_for():
    """The same picture in pixels of half the size."""
    pixels = paint((512, 512), MPP, 2).image
    mask = np.ones((32, 32), bool)
    coarse = embed(open_pixels(pixels), mask).compute()
    fine = embed(open_pixels(pixels.repeat(2, axis=1).repeat(2, axis=2)), mask, MPP / 2).compute()
    np.testing.assert_allclose(fine, coarse, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("side", [64, 24])
def test_statistics_equal_those_of_the_whole_image(monkeypatch, side):
    monkeypatch.setattr(raster, "TILE", side)
    pixels = paint((408, 560), 1.0, 0).image
    found = lazy_statistics(open_pixels(pixels), (51, 70), 1.0)
    assert found.shape == (4, 51, 70)
    np.testing.assert_allclose(
        found.compute(), superpixel_statistics(pixels.astype(np.float32), 8), rtol=1e-4, atol=1e-4
    )


def test_a_fingerprint_knows_its_image(slide):
    pixels = paint((300, 400), MPP, 0).image
    first = fingerprint(open_pixels(pixels))
    assert first == fingerprint(open_pixels(pixels.copy(), chunks=(3, 100, 100)))
    assert (
        len(
            {
                first,
                fingerprint(slide),
                fingerprint(open_pixels(pixels[:, ::-1])),
                fingerprint(open_pixels(255 - pixels)),
            }
        )
        == 4
    )
    plain = np.full((3, 300, 400), 200, np.uint8)
    assert fingerprint(open_pixels(plain)) != fingerprint(open_pixels(plain[:, :, :399]))
