"""The plot shows the correlation where it is, in µm."""

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from pixel2gene import pl
from pixel2gene.core.alignment import Alignment


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def found(known: bool = True) -> Alignment:
    shifts = np.arange(-24.0, 25, 4)
    y, x = np.meshgrid(shifts, shifts, indexing="ij")
    peak = np.exp(-(((x - 8) / 10) ** 2) - ((y + 12) / 10) ** 2)
    return Alignment((8.0, -12.0), (1.0, 2.0), 0.1, 0.2, 8.0, shifts, peak, known, True)


def test_the_peak_is_drawn_where_the_picture_is_brightest() -> None:
    ax = pl.alignment(found())
    (mark,) = (line for line in ax.lines if line.get_marker() == "+")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (8, -12)
    picture = ax.images[0]
    left, right, bottom, top = picture.get_extent()
    row, column = np.unravel_index(picture.get_array().argmax(), picture.get_array().shape)
    assert left + (column + 0.5) * (right - left) / 13 == pytest.approx(8)
    # Downwards, as on the image.
    assert top + (row + 0.5) * (bottom - top) / 13 == pytest.approx(-12)
    assert ax.get_ylim() == (26, -26)
    assert ax.get_title() == "(+8.0 ± 1.0, -12.0 ± 2.0) µm"
    circle, ellipse = ax.patches
    assert circle.radius == 4 and circle.center == (0, 0)
    assert (ellipse.width, ellipse.height) == (4, 8)


def test_what_is_not_known_is_not_told() -> None:
    ax = pl.alignment(found(known=False))
    assert ax.get_title() == "no clear peak"
    (circle,) = ax.patches
    assert circle.radius == 4


def test_axes_given() -> None:
    _, given = plt.subplots()
    assert pl.alignment(found(), ax=given) is given
