from __future__ import annotations

import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pixel2gene.core.model import Model
from pixel2gene.pl._raster import save_figure

# Told apart without colour vision (Wong, 2011).
_DEVIANCE, _LOSS = "#0072b2", "#d55e00"


def training(model: Model, *, ax: Axes | None = None, save: str | os.PathLike[str] | None = None) -> Axes:
    """Draw loss and held-out deviance during training, and where the model was taken from.

    The deviance is that of held-out units, per unit; the dashed line marks its lowest, which is the model. The loss is
    that of the training units, in its own units on the right; models of older versions and of ``recipe="paper"`` have
    not kept it.

    Parameters
    ----------
    model
        From :func:`pixel2gene.tl.fit`.
    ax
        Axes to draw on; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes of the deviance.

    Raises
    ------
    ValueError
        If the model kept no history.

    Examples
    --------
    >>> ax = p2g.pl.training(model)
    """
    history = model.history
    if not history.step:
        raise ValueError("The model kept no history of its training: fit it again with pixel2gene.tl.fit.")
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    best = history.step[history.best]
    lines = ax.plot(history.step, history.deviance, "o-", color=_DEVIANCE, markersize=3, label="held-out deviance")
    lines.append(ax.axvline(best, color="0.4", linestyle="--", label=f"model: step {best}"))
    ax.set(xlabel="step", ylabel="held-out deviance per unit")
    loss = np.array(history.loss, float)
    if np.isfinite(loss).any():
        right = ax.twinx()
        lines += right.plot(history.step, loss, "s-", color=_LOSS, markersize=3, label="training loss")
        right.set_ylabel("training loss per unit")
    ax.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines), frameon=False)
    save_figure(ax, save)
    return ax
