"""Reader of folders laid out for iStar or Pixel2Gene: counts, positions, image, pixel size and radius by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import tifffile
import zarr
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale

from pixel2gene.core.errors import first_line
from pixel2gene.io._files import (
    CHUNKS,
    counts_table,
    image_element,
    read_rgb,
    read_tsv,
    require_on_image,
    require_unique,
)
from pixel2gene.spatial.elements import table_element

_TABLES = ("tsv", "parquet")
_PICTURES = ("jpg", "jpeg", "png")
_TIFFS = ("tif", "tiff", "ome.tif", "btf")
MOST_OF_A_NUMBER = 1000
_FINEST, _COARSEST = 0.05, 10.0  # µm per pixel


def folder(path: str | Path) -> SpatialData:
    """Read a folder that was laid out for iStar or Pixel2Gene.

    TIFF images stay on disk and are read window by window. Write the result to a store (``sdata.write``) before you
    work on a large one: JPEG and PNG are read whole, and TIFFs are decoded at every look.

    Parameters
    ----------
    path
        Folder that holds

        - ``cnts.tsv`` or ``cnts.parquet``: raw counts of units (rows, named by the index) and genes (columns);
        - ``locs-raw.tsv`` or ``locs-raw.parquet``: columns ``x`` (to the right) and ``y`` (down), the centre of each
          unit in pixels of the image; index as in ``cnts``, in any order;
        - ``he-raw.jpg``, ``.jpeg``, ``.png``, ``.tif``, ``.tiff``, ``.ome.tif`` or ``.btf``: 8-bit RGB;
        - ``pixel-size-raw.txt``: µm per pixel of the image;
        - ``radius-raw.txt``: radius of a unit in pixels of the image.

    Returns
    -------
    SpatialData with the coordinate systems ``"global"`` (full-resolution pixels) and ``"micrometers"`` and

    - ``images["he"]``, RGB, multiscale from 2048 px a side;
    - ``shapes["spots"]``, circles in pixels;
    - ``tables["counts"]`` on them: raw counts, with ``obsm["spatial"]`` in pixels.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If a file is there in two formats or does not hold what is described above, the units of counts and positions
        differ, one lies outside the image, or the pixel size is implausible (finer than 0.05 or coarser than 10 µm).

    Examples
    --------
    >>> sdata = p2g.io.folder("section")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}; the folder that holds cnts.tsv and he-raw.* is expected.")
    counts, locations = _find(path, "cnts", _TABLES), _find(path, "locs-raw", _TABLES)
    image = _find(path, "he-raw", (*_PICTURES, *_TIFFS))
    mpp = _number(_find(path, "pixel-size-raw", ("txt",)))
    if not _FINEST <= mpp <= _COARSEST:
        raise ValueError(
            f"{path / 'pixel-size-raw.txt'} says {mpp:g} µm per pixel; {_FINEST:g} to {_COARSEST:g} are plausible for "
            "an H&E: correct it (µm per pixel of he-raw, not its inverse)."
        )
    radius = _radius(path, mpp)
    picture = _lazy_rgb(image) if image.name.endswith(_TIFFS) else read_rgb(image)
    table = counts_table(_frame(counts), counts)
    places = _places(locations, table.obs_names, counts)
    centres = places.to_numpy(float)
    require_on_image(centres, picture.shape[1:], locations, image, "x and y")

    table.obsm["spatial"] = centres
    transformations = {"global": Identity(), "micrometers": Scale([mpp, mpp], axes=("x", "y"))}
    circles = gpd.GeoDataFrame({"radius": np.full(len(places), radius)}, geometry=shapely.points(centres))
    return SpatialData.init_from_elements(
        {
            "he": image_element(picture, transformations),
            "spots": ShapesModel.parse(circles, transformations=dict(transformations)),
            "counts": table_element(table, "spots", circles.index.to_numpy()),
        }
    )


def _find(path: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    """Find the one file of a name."""
    found = [path / f"{stem}.{suffix}" for suffix in suffixes if (path / f"{stem}.{suffix}").is_file()]
    if not found:
        raise FileNotFoundError(
            f"There is no {' or '.join(f'{stem}.{suffix}' for suffix in suffixes)} in {path}; there are "
            f"{sorted(file.name for file in path.iterdir())}."
        )
    if len(found) > 1:
        raise ValueError(f"{path} has {' and '.join(file.name for file in found)}; keep the one that is meant.")
    return found[0]


def _number(path: Path) -> float:
    with open(path, errors="replace") as file:
        text = file.read(MOST_OF_A_NUMBER).strip()
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 < value < np.inf:
        raise ValueError(f"{path} holds {text[:40]!r}; one positive number is expected.")
    return value


def _radius(path: Path, mpp: float) -> float:
    try:
        return _number(_find(path, "radius-raw", ("txt",)))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no radius-raw.txt in {path}: write the radius of a unit in pixels of he-raw into it, at "
            f"{mpp:g} µm per pixel {27.5 / mpp:.4g} for Visium spots of 55 µm, {4 / mpp:.4g} for bins of 8 µm."
        ) from error


def _frame(path: Path) -> pd.DataFrame:
    """Table whose index names the units."""
    frame = _read_parquet(path) if path.suffix == ".parquet" else read_tsv(path, named=True)
    if frame.empty:
        raise ValueError(f"{path} holds no values; a table with one row per unit, named by its index, is expected.")
    frame.index = frame.index.astype(str)
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as a table ({first_line(error)}); write it again.") from error


def _places(path: Path, units: pd.Index, counts: Path) -> pd.DataFrame:
    """(units, 2) x and y, in the order of the counts."""
    frame = _frame(path)
    missing = [column for column in ("x", "y") if column not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; there are {list(frame.columns)}.")
    require_unique(frame.index, path)
    unplaced, uncounted = units.difference(frame.index), frame.index.difference(units)
    if len(unplaced) or len(uncounted):
        raise ValueError(
            f"The units of {counts} and {path} differ: {len(unplaced)} have no position, such as "
            f"{unplaced[:3].tolist()}, and {len(uncounted)} no counts, such as {uncounted[:3].tolist()}; the same "
            "index is expected in both."
        )
    places = frame.loc[units, ["x", "y"]].apply(pd.to_numeric, errors="coerce")
    if not np.isfinite(places.to_numpy(float)).all():
        raise ValueError(f"{path} holds positions that are no numbers; x and y in pixels of he-raw are expected.")
    return places


def _lazy_rgb(path: Path) -> da.Array:
    """(3, y, x) of the full resolution of a TIFF, uint8, read window by window."""
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, contiguous = series.axes, series.dataoffset is not None
        if contiguous:
            # As chunks such a file has but one, all of the image.
            values: Any = tifffile.memmap(path, series=0, mode="r")
        else:
            values = zarr.open_array(tifffile.imread(path, aszarr=True, series=0, level=0), mode="r")
        order = [axes.find("S") if "S" in axes else axes.find("C"), axes.find("Y"), axes.find("X")]
        if (
            sorted(order) != list(range(values.ndim))
            or values.dtype != np.uint8
            or values.shape[order[0]] not in (3, 4)
        ):
            raise ValueError(f"{values.dtype} pixels of shape {values.shape} ({axes}), not RGB with 8 bits per channel")
        chunks = tuple(size for _, size in sorted(zip(order, CHUNKS, strict=True)))
        lazy = da.from_array(values, chunks=chunks).transpose(order)
        # What cannot be decoded, or was cut short, shows here and not hours later.
        for corner in (0, -1):
            lazy[:, corner, corner].compute()
    except (LookupError, OSError, RuntimeError, TypeError, ValueError, tifffile.TiffFileError) as error:
        raise ValueError(
            f"{path} cannot be read as an RGB image ({first_line(error)}); export it as a tiled TIFF with 8 bits per "
            "channel."
        ) from error
    return lazy[:3]
