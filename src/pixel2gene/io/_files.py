"""What readers share: counts, images and spots, checked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from skimage.io import imread
from spatialdata.models import Image2DModel
from spatialdata.transformations import BaseTransformation

from pixel2gene.core.errors import first_line

CHUNKS = (3, 1024, 1024)
_PYRAMID_FROM = 2048


def counts_table(frame: pd.DataFrame, path: Path) -> ad.AnnData:
    """Table of raw counts from spots (rows) and genes (columns), or a ValueError that says why there is none."""
    require_unique(frame.index, path)
    words = frame.columns[[not pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]]
    if len(words):
        raise ValueError(f"{path} holds text in {len(words)} columns, such as {words[0]!r}; raw counts are expected.")
    values = frame.to_numpy()
    # NaN is caught as well, for it equals nothing.
    wrong = ~((values >= 0) & (values == np.rint(values)))
    if wrong.any():
        spot, gene = np.argwhere(wrong)[0]
        raise ValueError(
            f"{path} holds {wrong.sum()} values that are negative or not whole numbers, such as {values[spot, gene]:g} "
            f"for {frame.columns[gene]!r} in {frame.index[spot]!r}; raw counts are expected."
        )
    counts = sparse.csr_matrix(values.astype(np.float32))
    return ad.AnnData(counts, obs=pd.DataFrame(index=frame.index), var=pd.DataFrame(index=frame.columns.astype(str)))


def read_tsv(path: Path, *, named: bool) -> pd.DataFrame:
    """Tab-separated table, plain or gzipped; with `named`, rows by their first column.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no table, or names a column twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}; give the path of a tab-separated one.")
    try:
        header = pd.read_csv(path, sep="\t", header=None, nrows=1, dtype=str).iloc[0]
        # Thousands of columns: pandas is many times slower when it infers their types block by block.
        frame = pd.read_csv(path, sep="\t", index_col=0 if named else None, low_memory=False)
    except (OSError, EOFError, ValueError, LookupError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a table ({first_line(error)}); write it again.") from error
    twice = header[header.duplicated() & header.notna()].unique().tolist()
    if twice:
        raise ValueError(f"{path} names {len(twice)} columns more than once, such as {twice[:3]}; make them unique.")
    return frame


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(3, y, x)."""
    # imread would take a missing path for the name of a plugin's resource and complain of that.
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}; give the path of a JPEG, PNG or TIFF file.")
    # Pillow takes slides for decompression bombs, and its limit is global.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        pixels = imread(path)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, RuntimeError, struct.error) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({first_line(error)}); copy or export it again."
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(
            f"{path} holds {pixels.dtype} pixels of shape {pixels.shape}; an RGB image with 8 bits per channel is "
            "expected."
        )
    return np.moveaxis(pixels[..., :3], 2, 0)


def image_element(picture: NDArray[np.uint8] | da.Array, transformations: Mapping[str, BaseTransformation]) -> Any:
    """RGB image (3, y, x), in memory or lazy, multiscale where it is large."""
    image = Image2DModel.parse(
        da.asarray(picture).rechunk(CHUNKS),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2, 2, 2] if max(picture.shape[1:]) >= _PYRAMID_FROM else None,
        chunks=CHUNKS,
        transformations=dict(transformations),
    )
    # Else every look at a coarse level would go back to the full resolution, for seconds.
    return image if isinstance(picture, da.Array) else image.persist()


def require_unique(names: pd.Index, path: Path) -> None:
    """Refuse spots that are named more than once."""
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(
            f"{path} names {len(twice)} spots more than once, such as {twice[0]!r}; one row per spot is expected."
        )


def require_on_image(
    centres: NDArray[np.float64], shape: tuple[int, ...], spots: Path, image: Path, columns: str
) -> None:
    """Refuse spots whose centres, of which the columns tell, lie beyond the (y, x) shape of the image."""
    height, width = shape
    outside = int(((centres < 0) | (centres > (width, height))).any(axis=1).sum())
    if outside:
        swapped = bool(((centres >= 0) & (centres <= (height, width))).all())
        hint = " With x and y swapped all would lie on it." if swapped else ""
        raise ValueError(
            f"{outside} of {len(centres)} spots of {spots} lie outside {image} ({width} x {height} px): the image that "
            f"{columns} refer to, at the same resolution, is expected.{hint}"
        )
