"""Mean and standard deviation of channels, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def moments(blocks: Iterable[NDArray[np.floating]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(channels,) mean and standard deviation over the rows of all (rows, channels) blocks, of which there are some."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        values = block.astype(np.float64)
        count += len(values)
        total = total + values.sum(axis=0)
        squares = squares + np.einsum("rc,rc->c", values, values)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
