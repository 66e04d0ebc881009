"""The reliability diagram shows the table."""

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from pixel2gene import pl

LEVELS = [0.1, 0.5, 0.9]


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def a_table(deciles: list[int]) -> pd.DataFrame:
    """Coverage is the level to the power of the decile."""
    decile = np.repeat(deciles, len(LEVELS))
    nominal = np.tile(LEVELS, len(deciles))
    return pd.DataFrame(
        {"decile": decile, "genes": 3, "mean_count": decile / 8, "nominal": nominal, "covered": nominal**decile}
    )


def test_a_line_per_decile() -> None:
    ax = pl.calibration(a_table([1, 4, 10]))
    diagonal, *lines = ax.lines
    assert [tuple(point) for point in diagonal.get_xydata()] == [(0, 0), (1, 1)]
    for decile, line in zip([1, 4, 10], lines, strict=True):
        x, y = line.get_xydata().T
        assert x == pytest.approx(LEVELS)
        assert y == pytest.approx(np.array(LEVELS) ** decile)
    assert ax.get_xlim() == ax.get_ylim() == (0, 1)


def test_the_key_names_each_line_in_its_colour() -> None:
    ax = pl.calibration(a_table([10, 2]))
    (key,) = (other for other in ax.figure.axes if other is not ax)
    assert [label.get_text() for label in key.get_yticklabels()] == ["2 (0.25)", "10 (1.2)"]
    shown = key.collections[-1].cmap(np.arange(2))
    lines = mpl.colors.to_rgba_array([line.get_color() for line in ax.lines[1:]])
    assert shown == pytest.approx(lines)
    # Of more counts, lighter.
    brightness = lines[:, :3] @ [0.21, 0.72, 0.07]
    assert brightness[0] < brightness[1]


def test_axes_given() -> None:
    _, given = plt.subplots()
    assert pl.calibration(a_table([1]), ax=given) is given


def test_another_table_is_refused() -> None:
    with pytest.raises(KeyError, match=r"lacks \['nominal', 'covered'\]; it has \['decile', 'genes', 'mean_count'\]"):
        pl.calibration(a_table([1])[["decile", "genes", "mean_count"]])
