"""All effects of a platform on one slide."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """What a platform did to the counts of a slide, as far as it is clear; 0 is nothing.

    Attributes
    ----------
    row_stripes, column_stripes
        Standard deviation of the factors of the rows and of the columns of an array of bins, which have a mean of 1.
    diffusion_um
        Standard deviation, in µm and along each axis, of the way that molecules drifted.
    capture
        Standard deviation of the log of an efficiency that varies slowly over the slide.
    """

    row_stripes: float = 0.0
    column_stripes: float = 0.0
    diffusion_um: float = 0.0
    capture: float = 0.0


NO_EFFECTS = Platform()
