"""The course of training is drawn as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import pixel2gene as p2g
from pixel2gene import pl
from pixel2gene.core.regression import History


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def test_the_course_of_training(fitted: p2g.Model, tmp_path: Path) -> None:
    history = fitted.history
    ax = pl.training(fitted, save=tmp_path / "training.png")
    deviance, best = ax.lines
    np.testing.assert_array_equal(deviance.get_xydata().T, [history.step, history.deviance])
    lowest = history.step[int(np.argmin(history.deviance))]
    assert best.get_xdata() == [lowest, lowest]
    (right,) = set(ax.figure.axes) - {ax}
    np.testing.assert_array_equal(right.lines[0].get_xydata().T, [history.step, history.loss])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["held-out deviance", f"model: step {lowest}", "training loss"]
    assert plt.imread(tmp_path / "training.png").std() > 0


def test_models_that_kept_no_loss(fitted: p2g.Model) -> None:
    _, given = plt.subplots()
    old = replace(fitted, history=History([0, 20], [1.5, 1.0]))
    assert pl.training(old, ax=given) is given
    assert given.figure.axes == [given]
    # Before the first step of what starts from a reference there is none.
    started = replace(fitted, history=History([0, 20], [1.5, 1.0], [None, 0.5]))
    right = pl.training(started).figure.axes[1]
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [np.nan, 0.5])


def test_models_without_history(fitted: p2g.Model) -> None:
    with pytest.raises(ValueError, match="kept no history of its training: fit it again"):
        pl.training(replace(fitted, history=History()))
