"""Haematoxylin and eosin brought to one colour and strength (Macenko et al., ISBI 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixel2gene.core.encoders.colour import STAINS
from pixel2gene.core.tissue import DARKEST_GLASS

# Optical density below which a pixel is glass, and percentile of angles and strengths that stands for their end.
GLASS_DENSITY, PERCENTILE = 0.15, 99
# Degrees within which a dye is still haematoxylin, or eosin.
MAX_ANGLE = 45


@dataclass(frozen=True)
class Stain:
    """The stain of a slide.

    Attributes
    ----------
    dyes
        (3, 2) optical density of haematoxylin and eosin in red, green and blue, of unit length.
    strength
        (2,) of a strongly stained pixel.
    glass
        (3,) intensity of glass, 0 to 255.
    """

    dyes: NDArray[np.float64]
    strength: NDArray[np.float64]
    glass: NDArray[np.float64]


_DYES = np.array(STAINS[:2]).T
# What slides are brought to: the dyes of Ruifrok and Johnston (2001), and strengths of a usual section.
STANDARD = Stain(_DYES / np.linalg.norm(_DYES, axis=0), np.array([2.0, 1.0]), np.array([245.0, 245.0, 245.0]))


def fit_stain(tissue: NDArray[np.float32], everywhere: NDArray[np.float32]) -> Stain:
    """Find the stain of a slide.

    The optical densities of two dyes span a plane, that of the two largest eigenvalues of their covariance; the dyes
    themselves are the outermost directions in it.

    Parameters
    ----------
    tissue
        (3, pixels) of 0 to 255.
    everywhere
        (3, places) means over places all over the slide, for the colour of its glass.

    Raises
    ------
    ValueError
        If there is too little tissue, or its dyes are not haematoxylin and eosin.
    """
    glass = np.maximum(np.percentile(everywhere, 98, axis=1), DARKEST_GLASS)
    density = _density(tissue, glass)
    density = density[:, density.max(axis=0) > GLASS_DENSITY]
    if density.shape[1] < 100:
        raise ValueError(f"The stain cannot be found: {density.shape[1]} stained pixels were seen; 100 are needed.")
    plane = np.linalg.eigh(np.cov(density))[1][:, 1:]
    plane *= np.where(plane.sum(axis=0) < 0, -1, 1)
    angle = np.arctan2(*(plane.T @ density))
    ends = np.percentile(angle, [100 - PERCENTILE, PERCENTILE])
    dyes = plane @ np.array([np.sin(ends), np.cos(ends)])
    if (dyes[:, ::-1] * STANDARD.dyes).sum() > (dyes * STANDARD.dyes).sum():
        dyes = dyes[:, ::-1]
    off = np.degrees(np.arccos(np.clip((dyes * STANDARD.dyes).sum(axis=0), -1, 1)))
    if off.max() > MAX_ANGLE:
        raise ValueError(
            f"The stain is not haematoxylin and eosin: its dyes are {off.round().tolist()} degrees off; up to "
            f"{MAX_ANGLE} expected. Leave stain out."
        )
    strength = np.percentile(np.linalg.pinv(dyes) @ density, PERCENTILE, axis=1)
    return Stain(dyes, strength.clip(1e-3), glass)


def restain(rgb: NDArray[np.float32], own: Stain, target: Stain = STANDARD) -> NDArray[np.float32]:
    """Replace the dyes of an image by others, pixel by pixel: (3, height, width) of 0 to 255 to the same."""
    change = target.dyes @ np.diag(target.strength / own.strength) @ np.linalg.pinv(own.dyes)
    density = np.einsum("ij,jyx->iyx", change, _density(rgb, own.glass))
    light: NDArray[np.float64] = (target.glass[:, None, None] + 1) * np.exp(-density) - 1
    return light.clip(0, 255).astype(np.float32)


def _density(rgb: NDArray[np.float32], glass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Optical density over that of glass, natural logarithm; shape unchanged."""
    above = (glass + 1).reshape(-1, *[1] * (rgb.ndim - 1))
    return -np.log((rgb + 1.0) / above)
