from __future__ import annotations

import os
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

from pixel2gene.pl._raster import save_figure

_COLOUR, _BEST, _WORST = "0.55", "#0072b2", "#d55e00"  # the last two told apart without colour vision (Wong, 2011)
_APART = 0.055  # of the height of the axes, between two names


def accuracy(
    scores: pd.DataFrame,
    *,
    score: str = "pearson",
    names: int = 6,
    axes: Iterable[Axes] | None = None,
    save: str | os.PathLike[str] | None = None,
) -> NDArray[np.object_]:
    """Draw how well each gene is predicted, against its expression and against the most that noise allows.

    Left: score by counts per unit, with the best and the worst genes named. Right: score by its noise ceiling; on the
    dashed line a gene is told as well as counts of that noise can show.

    Parameters
    ----------
    scores
        From :func:`pixel2gene.tl.evaluate` or :func:`pixel2gene.tl.cross_validate`, of one slide or several; or
        ``model.scores``.
    score
        ``"pearson"``, ``"pearson_counts"`` or ``"spearman"``.
    names
        How many of the best genes to name, and how many of the worst.
    axes
        Two axes to draw on; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    (2,) axes.

    Raises
    ------
    KeyError
        If the table lacks a column.
    ValueError
        If no gene has a score, or there are not two axes.

    Examples
    --------
    >>> axes = p2g.pl.accuracy(model.scores)
    """
    ceiling = f"{score}_ceiling"
    missing = [name for name in ("mean_count", score, ceiling) if name not in scores]
    if missing:
        raise KeyError(
            f"The table lacks {missing}; it has {scores.columns.tolist()}. It is one of pixel2gene.tl.evaluate."
        )
    table = scores[scores[score].notna()].sort_values(score)
    if table.empty:
        raise ValueError(f"No gene of the table has a {score!r}: it was predicted nowhere that was measured.")
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=(1.25, 1))
    drawn = np.array(list(axes), dtype=object)
    if len(drawn) != 2:
        raise ValueError(f"{len(drawn)} axes given for 2 panels: by expression, and by noise ceiling.")
    worst = np.arange(len(table)) < min(names, len(table) // 2)
    best = np.arange(len(table)) >= len(table) - min(names, len(table) - int(worst.sum()))
    colours = np.select([worst, best], [_WORST, _BEST], _COLOUR)
    label = f"held-out {score.replace('_', ' of ').replace('pearson', 'Pearson').replace('spearman', 'Spearman')}"
    for ax, column in zip(drawn, ("mean_count", ceiling), strict=True):
        ax.scatter(table[column], table[score], c=colours, s=14, linewidths=0, alpha=0.8)
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.set_ylabel(label)
    drawn[0].set(xscale="log", xlabel="counts per unit")
    low = min(0.0, float(table[score].min()))
    drawn[1].plot([low, 1], [low, 1], color="0.5", linewidth=1, linestyle="--")
    drawn[1].set_xlabel("noise ceiling")
    named = table[worst | best]
    _name_beside(drawn[0], named, score, colours[worst | best])
    save_figure(drawn[0], save)
    return drawn


def _name_beside(ax: Axes, table: pd.DataFrame, score: str, colours: NDArray[np.str_]) -> None:
    """Write the names of genes, sorted by score, in a column beside the axes, none over another."""
    bottom, top = ax.get_ylim()
    places = spread((table[score].to_numpy() - bottom) / (top - bottom), _APART)
    ax.set_ylim(bottom, top)
    for gene, x, y, place, colour in zip(table.index, table["mean_count"], table[score], places, colours, strict=True):
        name = gene if isinstance(gene, str) else ", ".join(map(str, reversed(gene)))
        ax.annotate(
            name,
            (x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkB": 0},
        )


def spread(wanted: NDArray[np.floating], apart: float) -> NDArray[np.float64]:
    """Ascending places near those wanted, at least so far apart, between 0 and 1 as long as they fit."""
    if len(wanted) == 0:
        return np.empty(0)
    steps = apart * np.arange(len(wanted))
    nearest: NDArray[np.float64] = isotonic_regression(np.asarray(wanted, float) - steps) + steps
    return np.minimum(np.maximum(nearest, steps), np.maximum(1.0, steps[-1]) - steps[::-1])
