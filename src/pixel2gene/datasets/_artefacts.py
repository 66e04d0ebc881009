"""What goes wrong with a slide, planted in its H&E: ink, blur, folds, bubbles and another stain."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from ._paint import EOSIN, GLASS, HAEMATOXYLIN

Image = NDArray[np.uint8]
Planted = tuple[Image, NDArray[np.bool_]]

# Of light that passes a stroke of ink, per unit of density.
_INKS = np.array([[1.0, 0.6, 0.1], [0.9, 0.15, 0.7], [0.1, 0.9, 0.8], [0.9, 0.9, 0.9]], np.float32)
_OPAQUE, _TRANSLUCENT = 3.0, 0.7
_DEFOCUS_UM = 3.0
# Sizes as shares of the shorter side of the image.
_PEN, _FOLD, _BLUR, _BUBBLE = 0.05, 0.03, 0.25, 0.12
_BUBBLES = 3


def plant_artefact(image: Image, kind: str, *, mpp: float = 0.5, seed: int = 0) -> Planted:
    """Spoil a part of an H&E, or all of it.

    Parameters
    ----------
    image
        (3, y, x) H&E.
    kind
        ``"pen"`` and ``"thin pen"``, a stroke of opaque or translucent ink; ``"blur"``, a region out of focus;
        ``"fold"``, a band in which the tissue lies double; ``"bubble"``, discs with a dark rim that refract and
        fade what is below; ``"stain"``, other colours and strengths of both stains on the whole image.
    mpp
        µm per pixel.
    seed
        Draws place, shape and colour.

    Returns
    -------
    The spoilt image, and the (y, x) mask of what was spoilt. All sizes but the defocus (3 µm) go with the image's.

    Raises
    ------
    ValueError
        If there is no such kind, or the image is no uint8 of shape (3, y, x).

    Examples
    --------
    >>> spoilt, where = p2g.datasets.plant_artefact(sdata["he"].to_numpy(), "pen")
    >>> spoilt.shape, where.shape
    ((3, 768, 768), (768, 768))
    """
    if kind not in _KINDS:
        raise ValueError(f"There is no artefact {kind!r}: choose from {list(_KINDS)}.")
    if image.dtype != np.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(f"uint8 of shape (3, y, x) is expected, not {image.dtype} of shape {image.shape}.")
    return _KINDS[kind](image, mpp, np.random.default_rng([seed, *kind.encode()]))


def _pen(density: float) -> Callable[[Image, float, np.random.Generator], Planted]:
    def draw(image: Image, mpp: float, rng: np.random.Generator) -> Planted:
        mask = np.abs(_curve(image, rng)[0]) < _PEN * min(image.shape[1:])
        ink = density * rng.permutation(_INKS)[0]
        spoilt = image.copy()
        spoilt[:, mask] = image[:, mask] * np.exp(-ink)[:, None]
        return spoilt, mask

    return draw


def _blur(image: Image, mpp: float, rng: np.random.Generator) -> Planted:
    mask = _disc(image, _BLUR, rng)[0] < 1
    sigma = (0, _DEFOCUS_UM / mpp, _DEFOCUS_UM / mpp)
    return np.where(mask, ndi.gaussian_filter(image, sigma, output=np.float32), image).astype(np.uint8), mask


def _fold(image: Image, mpp: float, rng: np.random.Generator) -> Planted:
    """What lies beyond an edge of the band is turned over it, like a page."""
    distance, normal = _curve(image, rng)
    half = np.float32(_FOLD * min(image.shape[1:]))
    mask = np.abs(distance) < half
    place = np.stack(np.nonzero(mask))
    source = place + np.rint(2 * (half - distance[mask]) * normal[:, None]).astype(np.intp)
    y, x = (np.clip(a, 0, n - 1) for a, n in zip(source, mask.shape, strict=True))
    spoilt = image.copy()
    spoilt[:, mask] = np.minimum(image[:, mask] * (image[:, y, x] / GLASS[:, None]), 255)
    return spoilt, mask


def _bubble(image: Image, mpp: float, rng: np.random.Generator) -> Planted:
    spoilt, mask = image.copy(), np.zeros(image.shape[1:], bool)
    for _ in range(_BUBBLES):
        radius, offset = _disc(image, _BUBBLE * rng.uniform(0.5, 1), rng)
        inside = radius < 1
        r, shift = radius[inside], offset[:, inside]
        # A lens that magnifies in the middle and shows its surroundings at the rim.
        source = np.rint(np.stack(np.nonzero(inside)) + shift * (0.8 * r**2 - 0.4)).astype(np.intp)
        y, x = (np.clip(a, 0, n - 1) for a, n in zip(source, mask.shape, strict=True))
        faded = 0.5 * image[:, y, x] + 0.5 * 0.95 * GLASS[:, None]
        spoilt[:, inside] = faded * (1 - 0.7 * np.clip((r - 0.8) / 0.1, 0, 1))
        mask |= inside
    return spoilt, mask


def _stain(image: Image, mpp: float, rng: np.random.Generator) -> Planted:
    """Haematoxylin and eosin are unmixed and each is replaced by a dye of another hue and strength."""
    old = np.stack([HAEMATOXYLIN, EOSIN])
    new = np.abs(old + rng.choice([-1, 1], (2, 1)) * [[0.25, 0, -0.25]]) * np.exp(rng.choice([-0.4, 0.4], (2, 1)))
    density = -np.log((image.reshape(3, -1).astype(np.float32) + 1) / (GLASS[:, None] + 1))
    dyes = np.linalg.pinv(old.T).astype(np.float32) @ density
    changed = density + (new - old).T.astype(np.float32) @ dyes.clip(0)
    light = (GLASS[:, None] + 1) * np.exp(-changed) - 1
    return light.clip(0, 255).astype(np.uint8).reshape(image.shape), np.ones(image.shape[1:], bool)


_KINDS: dict[str, Callable[[Image, float, np.random.Generator], Planted]] = {
    "pen": _pen(_OPAQUE),
    "thin pen": _pen(_TRANSLUCENT),
    "blur": _blur,
    "fold": _fold,
    "bubble": _bubble,
    "stain": _stain,
}
ARTEFACTS = tuple(_KINDS)


def _curve(image: Image, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(y, x) signed distance, about, to a wave across the middle of the image; and the way in which it grows."""
    height, width = image.shape[1:]
    side, angle = min(height, width), rng.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(angle), np.sin(angle)], np.float32)
    y = np.arange(height, dtype=np.float32)[:, None] - height * rng.uniform(0.35, 0.65)
    x = np.arange(width, dtype=np.float32) - width * rng.uniform(0.35, 0.65)
    along = x * normal[0] - y * normal[1]
    wave = 2 * np.pi / (side * rng.uniform(0.7, 1.3))
    bend = rng.uniform(0.2, 0.5)
    distance = y * normal[0] + x * normal[1] - bend / wave * np.sin(along * wave + rng.uniform(0, 2 * np.pi))
    return (distance / np.hypot(1, bend / np.sqrt(2))).astype(np.float32), normal


def _disc(image: Image, share: float, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance to a random centre in radii of a share of the image's side, and (2, y, x) offset from the centre."""
    height, width = image.shape[1:]
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(height * rng.uniform(0.25, 0.75))
    x = np.arange(width, dtype=np.float32) - np.float32(width * rng.uniform(0.25, 0.75))
    offset = np.stack(np.broadcast_arrays(y, x))
    return np.hypot(y, x) / np.float32(share * min(height, width)), offset
