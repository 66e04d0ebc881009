"""Where there is tissue, from the colour and texture of every superpixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

# Mean optical density that parts tissue from glass lies between these, whatever Otsu says: a slide that is all
# tissue, or all glass, has no valley to find.
FAINTEST, DENSEST_THRESHOLD = 0.03, 0.08
# Texture (sd of the optical density) of pale tissue such as fat and oedema.
TEXTURED = 0.05
DARKEST_GLASS = 215.0
SMALLEST = 10
# Glass and pale tissue are brighter than this on any H&E, fluorescence is nowhere; black is padding.
BRIGHT, BLACK = 110.0, 8.0


def superpixel_statistics(rgb: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Mean R, G, B and the sd of the optical density of each superpixel.

    Parameters
    ----------
    rgb
        (3, rows * side, columns * side) of 0 to 255.
    side
        Pixels per superpixel and axis.

    Returns
    -------
    (4, rows, columns).
    """
    tiles = rgb.reshape(3, rgb.shape[1] // side, side, rgb.shape[2] // side, side)
    density = -np.log10((tiles.mean(axis=0) + 1) / 256)
    return np.concatenate([tiles.mean(axis=(2, 4)), density.std(axis=(1, 3))[None]]).astype(np.float32)


def is_dark(statistics: NDArray[np.float32]) -> bool:
    """Whether nothing on a slide is bright, as in fluorescence."""
    brightness = statistics[:3].mean(axis=0)
    lit = brightness[brightness > BLACK]
    return lit.size == 0 or bool(np.percentile(lit, 95) < BRIGHT)


def tissue_mask(statistics: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell tissue from glass.

    Dense superpixels are tissue (Otsu's threshold on the optical density over that of the glass, within absolute
    bounds), and paler ones too where they are textured, as HistoSweep has it (Pixel2Gene, 2026). Pieces and holes of
    under 10 superpixels are dropped and filled.

    Parameters
    ----------
    statistics
        (4, rows, columns) of `superpixel_statistics`.

    Returns
    -------
    (rows, columns); all false where there is no tissue.
    """
    rgb, texture = statistics[:3], statistics[3]
    glass = np.maximum(np.percentile(rgb, 98, axis=(1, 2)), DARKEST_GLASS)
    density = -np.log10((rgb + 1) / (glass[:, None, None] + 1)).mean(axis=0)
    density = ndimage.gaussian_filter(np.clip(density, 0, 1), 0.7)
    threshold = float(np.clip(threshold_otsu(density), FAINTEST, DENSEST_THRESHOLD)) if np.ptp(density) else FAINTEST
    mask = (density > threshold) | ((density > FAINTEST / 2) & (texture > TEXTURED))
    mask = remove_small_objects(mask, max_size=SMALLEST - 1)
    cleaned: NDArray[np.bool_] = remove_small_holes(mask, max_size=SMALLEST - 1)
    return cleaned
