"""Whether a held-out gain is more than chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def clarity(gain: Floats) -> tuple[float, float]:
    """Mean gain, and the same in standard errors."""
    mean, error = float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))
    return mean, mean / error if error > 0 else 0.0


def require_same_length(**values: NDArray[np.generic]) -> None:
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"The arrays must be of one length above 0, a value per unit; they have {lengths}.")
