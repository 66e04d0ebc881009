from __future__ import annotations

import os

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.pl._raster import Crop, cut, draw_image, draw_raster, frame, new_axes, save_figure, window_of
from pixel2gene.spatial.embedded import SMALLEST_SD, open_embedding
from pixel2gene.spatial.geometry import affine

_SAMPLE = 10_000  # superpixels that the components are found on
_LONGEST = 400  # superpixels of the longer side that are drawn: each has hundreds of channels
_ENDS = (1, 99)  # percentiles that are black and full colour


def embedding(
    sdata: SpatialData,
    image_key: str = "he",
    *,
    embedding_key: str | None = None,
    crop: Crop | None = None,
    scalebar: float | None = None,
    ax: Axes | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Draw the first three principal components of the embedding as red, green and blue.

    Superpixels of alike colours look alike to the model. Channels are standardised over the tissue first, and each
    component goes from its 1st to its 99th percentile. Components and colours are those of the whole slide, whatever
    is shown of it; what they are of follows from the slide, so that colours of different slides cannot be compared.

    Parameters
    ----------
    sdata
        Holds the image and its embedding.
    image_key
        H&E.
    embedding_key
        Of :func:`pixel2gene.tl.embed`; ``f"{image_key}_embedding"`` by default.
    crop
        Left, top, right and bottom of the part to show, in full-resolution pixels of the image.
    scalebar
        Length of the scale bar in µm; by default a round one, where the pixel size is known. 0 draws none.
    ax
        Axes to draw on; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes, in full-resolution pixels of the image.

    Raises
    ------
    KeyError
        If there is no such image, or no embedding written by `pixel2gene.tl.embed`.
    ValueError
        If the embedding does not lie on the superpixels of the image, has no tissue, or the crop shows none of it.

    Examples
    --------
    >>> ax = p2g.pl.embedding(sdata)
    """
    whole, window = window_of(sdata, image_key), window_of(sdata, image_key, crop)
    key = embedding_key or f"{image_key}_embedding"
    open_embedding(sdata, image_key, key)
    matrix = affine(sdata, key, image_key)
    part, place = cut(sdata.images[key], matrix, window, _LONGEST)
    values = part.to_numpy()
    sample = values if crop is None else cut(sdata.images[key], matrix, whole, _LONGEST)[0].to_numpy()
    ax = ax or new_axes(window)
    draw_image(ax, sdata, image_key, window, scalebar)
    draw_raster(ax, _Colours(sample, key)(values), place, interpolation="nearest")
    frame(ax, window)
    save_figure(ax, save)
    return ax


class _Colours:
    """From embeddings to colours, by the principal components of a sample."""

    def __init__(self, values: NDArray[np.float16], key: str) -> None:
        row, column = np.nonzero(_tissue(values))
        if len(row) == 0:
            raise ValueError(f"Embedding {key!r} has no tissue to draw: all of it is 0.")
        some = np.linspace(0, len(row) - 1, min(len(row), _SAMPLE)).astype(int)
        sample = values[:, row[some], column[some]].T.astype(np.float32)
        self.mean, sd = sample.mean(axis=0), sample.std(axis=0).clip(SMALLEST_SD)
        standard = (sample - self.mean) / sd
        _, axes = np.linalg.eigh(standard.T @ standard)
        axes = axes[:, :-4:-1]
        # The sign of a component is arbitrary: its largest weight is positive, so that it is the same in every run.
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        self.weights = axes / sd[:, None]
        self.low, self.high = np.percentile(standard @ axes, _ENDS, axis=0)

    def __call__(self, values: NDArray[np.float16]) -> NDArray[np.float32]:
        """(channels, rows, columns) to (rows, columns, 4), transparent outside the tissue."""
        _, rows, columns = values.shape
        # Row by row, because single precision takes twice the memory.
        score = np.stack([self.weights.T @ values[:, row].astype(np.float32) for row in range(rows)], axis=1)
        score -= (self.mean @ self.weights)[:, None, None]
        low, high = self.low[:, None, None], np.maximum(self.high, self.low + SMALLEST_SD)[:, None, None]
        colours = np.zeros((rows, columns, 4), np.float32)
        colours[..., : len(score)] = ((score - low) / (high - low)).clip(0, 1).transpose(1, 2, 0)
        colours[..., 3] = _tissue(values)
        return colours


def _tissue(values: NDArray[np.float16]) -> NDArray[np.bool_]:
    """(rows, columns) where any channel is not 0."""
    tissue = values[0] != 0
    for channel in values[1:]:
        # Of most superpixels the first channels tell.
        if tissue.all():
            break
        tissue |= channel != 0
    return tissue
