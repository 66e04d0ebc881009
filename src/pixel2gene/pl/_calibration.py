from __future__ import annotations

import os

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap

from pixel2gene.pl._raster import save_figure

_COLOURS = "viridis"
_BRIGHTEST = 0.92  # beyond, yellow is hard to see on white


def calibration(table: pd.DataFrame, *, ax: Axes | None = None, save: str | os.PathLike[str] | None = None) -> Axes:
    """Draw how often counts lie in their central interval, against how often they should.

    One line per decile of expression, from the genes of fewest counts (dark) to those of most (light). On the diagonal
    intervals are right; above it they are too wide, below it too narrow.

    Parameters
    ----------
    table
        From :func:`pixel2gene.tl.calibration`.
    ax
        Axes to draw on; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If the table lacks a column.

    Examples
    --------
    >>> ax = p2g.pl.calibration(p2g.tl.calibration(sdata, model))
    """
    needed = ["decile", "mean_count", "nominal", "covered"]
    missing = [name for name in needed if name not in table]
    if missing:
        raise KeyError(
            f"The table lacks {missing}; it has {table.columns.tolist()}. It is one of pixel2gene.tl.calibration."
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--")
    deciles = sorted(table["decile"].unique())
    colours = mpl.colormaps[_COLOURS](np.linspace(0, _BRIGHTEST, len(deciles)))
    labels = []
    for decile, colour in zip(deciles, colours, strict=True):
        part = table[table["decile"] == decile]
        labels.append(f"{decile} ({part['mean_count'].iloc[0]:.2g})")
        ax.plot(part["nominal"], part["covered"], color=colour, linewidth=1.5, label=labels[-1])
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="nominal coverage", ylabel="share of counts covered")
    ends = np.arange(len(deciles) + 1) - 0.5
    key = ScalarMappable(BoundaryNorm(ends.tolist(), len(deciles)), ListedColormap(colours))
    bar = ax.figure.colorbar(key, ax=ax, ticks=range(len(deciles)), label="decile of genes (counts per unit)")
    bar.ax.set_yticklabels(labels)
    bar.ax.tick_params(which="both", length=0)
    save_figure(ax, save)
    return ax
