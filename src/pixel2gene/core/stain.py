"""Haematoxylin and eosin brought to one colour and strength, or all colours of the tissue to those of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixel2gene.core.encoders.colour import STAINS
from pixel2gene.core.tissue import DARKEST_GLASS

# Optical density below which a pixel is glass, and percentile of angles and strengths that stands for their end.
GLASS_DENSITY, PERCENTILE = 0.15, 99
# Degrees within which a dye is still haematoxylin, or eosin.
MAX_ANGLE = 45
# Of the l1 norm of the amounts of dye (Vahadane et al., 2016), and turns until dyes no longer change.
SPARSITY, TURNS = 0.1, 100
# Red, green and blue to the response of cones (Reinhard et al., 2001), and their logarithms to l, alpha and beta
# (Ruderman et al., 1998).
CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
OPPONENTS = np.diag(np.array([3.0, 6.0, 2.0]) ** -0.5) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])

type StainMethod = Literal["macenko", "vahadane", "reinhard"]
METHODS: tuple[StainMethod, ...] = ("macenko", "vahadane", "reinhard")


@dataclass(frozen=True)
class Stain:
    """The dyes of a slide.

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


@dataclass(frozen=True)
class Colours:
    """The colours of the tissue of a slide.

    Attributes
    ----------
    mean, sd
        (3,) of l, alpha and beta, to the natural logarithm.
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


_DYES = np.array(STAINS[:2]).T
# What slides are brought to: the dyes of Ruifrok and Johnston (2001) and strengths of a usual section; and the colours
# that the tissue of simulated slides has in these.
STANDARD = Stain(_DYES / np.linalg.norm(_DYES, axis=0), np.array([2.0, 1.0]), np.array([245.0, 245.0, 245.0]))
STANDARD_COLOURS = Colours(np.array([8.71, -0.275, 0.045]), np.array([0.38, 0.094, 0.028]))


def fit_stain(
    tissue: NDArray[np.float32], everywhere: NDArray[np.float32], method: StainMethod = "macenko"
) -> Stain | Colours:
    """Find the stain of a slide.

    Parameters
    ----------
    tissue
        (3, pixels) of 0 to 255.
    everywhere
        (3, places) means over places all over the slide, for the colour of its glass.
    method
        ``"macenko"``: the optical densities of two dyes span a plane, that of the two largest eigenvalues of their
        covariance, and the dyes are the outermost directions in it (Macenko et al., 2009). ``"vahadane"``: each pixel
        has few dyes, and none less than nothing of one (sparse non-negative factors; Vahadane et al., 2016).
        ``"reinhard"``: no dyes, but mean and spread of the colours (Reinhard et al., 2001).

    Raises
    ------
    ValueError
        If there is too little tissue, or its dyes are not haematoxylin and eosin.
    """
    glass = np.maximum(np.percentile(everywhere, 98, axis=1), DARKEST_GLASS)
    density = _density(tissue, glass)
    stained = density.max(axis=0) > GLASS_DENSITY
    if stained.sum() < 100:
        raise ValueError(f"The stain cannot be found: {stained.sum()} stained pixels were seen; 100 are needed.")
    density = density[:, stained]
    if method == "reinhard":
        opponents = _opponents(tissue[:, stained])
        return Colours(opponents.mean(axis=1, dtype=np.float64), opponents.std(axis=1, dtype=np.float64).clip(1e-3))
    dyes = _outermost_dyes(density) if method == "macenko" else _sparse_dyes(density)
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


def to_standard(rgb: NDArray[np.float32], own: Stain | Colours) -> NDArray[np.float32]:
    """An image as if its slide were stained as all others: (3, height, width) of 0 to 255 to the same."""
    return restain(rgb, own) if isinstance(own, Stain) else recolour(rgb, own)


def restain(rgb: NDArray[np.float32], own: Stain, target: Stain = STANDARD) -> NDArray[np.float32]:
    """Replace the dyes of an image by others, pixel by pixel: (3, height, width) of 0 to 255 to the same."""
    change = target.dyes @ np.diag(target.strength / own.strength) @ np.linalg.pinv(own.dyes)
    density = np.einsum("ij,jyx->iyx", change, _density(rgb, own.glass))
    light: NDArray[np.float64] = (target.glass[:, None, None] + 1) * np.exp(-density) - 1
    return light.clip(0, 255).astype(np.float32)


def recolour(rgb: NDArray[np.float32], own: Colours, target: Colours = STANDARD_COLOURS) -> NDArray[np.float32]:
    """Bring mean and spread of the colours to others, pixel by pixel: (3, height, width) of 0 to 255 to the same."""
    ratio = target.sd / own.sd
    shift = target.mean - ratio * own.mean
    change = (np.linalg.inv(OPPONENTS) * ratio).astype(np.float32)
    values = change @ _opponents(rgb.reshape(3, -1)) + np.linalg.inv(OPPONENTS) @ shift[:, None]
    light: NDArray[np.float32] = np.linalg.inv(CONES).astype(np.float32) @ (np.exp(values, dtype=np.float32) - 1)
    return light.clip(0, 255).reshape(rgb.shape)


def _outermost_dyes(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 2) of unit length, in the order of their angles."""
    plane = np.linalg.eigh(np.cov(density))[1][:, 1:]
    plane *= np.where(plane.sum(axis=0) < 0, -1, 1)
    angle = np.arctan2(*(plane.T @ density))
    ends = np.percentile(angle, [100 - PERCENTILE, PERCENTILE])
    dyes: NDArray[np.float64] = plane @ np.array([np.sin(ends), np.cos(ends)])
    return dyes


def _sparse_dyes(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 2) of unit length: amounts and dyes in turns, one dye after the other, from the standard ones."""
    dyes, amounts = STANDARD.dyes.copy(), np.zeros((2, density.shape[1]))
    for _ in range(TURNS):
        before = dyes.copy()
        for _ in range(2):
            for i, other in ((0, 1), (1, 0)):
                alone = dyes[:, i] @ density - dyes[:, i] @ dyes[:, other] * amounts[other]
                amounts[i] = (alone - SPARSITY).clip(0)
        products, squares = density @ amounts.T, amounts @ amounts.T
        for i, other in ((0, 1), (1, 0)):
            dye = (products[:, i] - dyes[:, other] * squares[i, other]).clip(0)
            if dye.any():
                dyes[:, i] = dye / np.linalg.norm(dye)
        if np.abs(dyes - before).max() < 1e-4:
            break
    return dyes


def _opponents(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, pixels) of red, green and blue to l, alpha and beta."""
    values: NDArray[np.float32] = OPPONENTS.astype(np.float32) @ np.log(CONES.astype(np.float32) @ rgb + 1)
    return values


def _density(rgb: NDArray[np.float32], glass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Optical density over that of glass, natural logarithm; shape unchanged."""
    above = (glass + 1).reshape(-1, *[1] * (rgb.ndim - 1))
    return -np.log((rgb + 1.0) / above)
