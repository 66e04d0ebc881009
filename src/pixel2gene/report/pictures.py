"""Pictures as text: in the page itself, so that it needs no other file."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from pixel2gene.pl._panels import COLOURS, GeneMaps, Panel, brightest, filled_window
from pixel2gene.pl._raster import Window, read_image

# Of the genes all together, as text; a browser opens a page of that size at once.
BUDGET = 12_000_000
LONGEST, LONGEST_IMAGE = 300, 1000  # pixels of the longer side, of a gene's map and of the H&E
PANELS = ("measured", "denoised", "predicted")
_LEVELS = 64  # of the colour scale: more are not told apart, and take twice the space
_QUALITY = 82
_PALETTE = (255 * COLOURS(np.linspace(0, 1, _LEVELS))[:, :3]).round().astype(np.uint8)
GRADIENT = ", ".join(
    f"rgb{tuple(int(value) for value in colour)}" for colour in _PALETTE[np.linspace(0, _LEVELS - 1, 9).astype(int)]
)


@dataclass(frozen=True)
class GenePictures:
    """Maps of a gene.

    Attributes
    ----------
    top
        Upper end of their colour scale.
    maps
        PNG by the name of the panel.
    """

    top: float
    maps: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(len, self.maps.values()))


class SlidePictures:
    """Makes the pictures of genes of a slide, all of the same part of it and of the same size."""

    def __init__(self, maps: GeneMaps, gene: str) -> None:
        self._maps = maps
        panels = maps.panels(gene)
        # What is known of one gene is known of all.
        self.window = filled_window(panels.values(), maps.window)
        left, right, bottom, top = self.window
        superpixel = next(iter(panels.values())).matrix[0, 0]
        pixel = max(superpixel, max(right - left, bottom - top) / LONGEST)
        self._shape = max(1, round((bottom - top) / pixel)), max(1, round((right - left) / pixel))

    def image(self) -> str:
        """The H&E of that part."""
        pixels, _ = read_image(self._maps.sdata, self._maps.image_key, self.window, LONGEST_IMAGE)
        return _encoded(Image.fromarray(pixels), "webp", quality=_QUALITY)

    def gene(self, name: str) -> GenePictures:
        """Maps of a gene."""
        panels = {key: panel for key, panel in self._maps.panels(name).items() if key in PANELS}
        top = brightest(panels)
        return GenePictures(top, {key: self._map(panel, top) for key, panel in panels.items()})

    def _map(self, panel: Panel, top: float) -> str:
        values = on_frame(panel, self.window, self._shape)
        level = np.nan_to_num(values / top * (_LEVELS - 1)).clip(0, _LEVELS - 1).round()
        picture = Image.fromarray(np.where(np.isfinite(values), level, _LEVELS).astype(np.uint8))
        picture.putpalette([*_PALETTE.ravel().tolist(), 255, 255, 255])
        return _encoded(picture, "png", optimize=True)


def on_frame(panel: Panel, window: Window, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(rows, columns) values of a panel in the middle of each pixel of a window, NaN beyond it."""
    left, right, bottom, top = window
    (rows, columns), size = shape, panel.values.shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    column = np.floor((x - panel.matrix[0, 2]) / panel.matrix[0, 0]).astype(int)
    row = np.floor((y - panel.matrix[1, 2]) / panel.matrix[1, 1]).astype(int)
    found = panel.values[row.clip(0, size[0] - 1)[:, None], column.clip(0, size[1] - 1)]
    inside = ((row >= 0) & (row < size[0]))[:, None] & (column >= 0) & (column < size[1])
    return np.where(inside, found, np.nan).astype(np.float32)


def figure(axes: Axes | NDArray[np.object_]) -> str:
    """The figure that axes are of, which is closed."""
    (one, *_) = np.ravel(np.asarray(axes, dtype=object))
    buffer = BytesIO()
    one.figure.savefig(buffer, format="webp", dpi=130, bbox_inches="tight", pil_kwargs={"quality": _QUALITY})
    plt.close(one.figure)
    return _as_text(buffer, "webp")


def _encoded(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = BytesIO()
    picture.save(buffer, format=kind, **options)
    return _as_text(buffer, kind)


def _as_text(buffer: BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
