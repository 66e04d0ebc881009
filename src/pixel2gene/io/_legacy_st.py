"""Reader of legacy Spatial Transcriptomics: a table of counts, a table of spots and an image."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from skimage.io import imread
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import BaseTransformation, Identity, Scale

from pixel2gene.spatial.elements import table_element

_CHUNKS = (3, 1024, 1024)
_PYRAMID_FROM = 2048
_STRETCH = 1.05

logger = logging.getLogger("pixel2gene")


def legacy_st(
    counts: str | Path,
    spots: str | Path,
    image: str | Path,
    *,
    spot_um: float = 100.0,
    pitch_um: float = 200.0,
) -> SpatialData:
    """Read a section of legacy Spatial Transcriptomics (1k or 2k array).

    The pixel size follows from the lattice of the spots: neighbours in a row or column of the array are `pitch_um`
    apart. Spots without counts and counts without a spot are dropped, and their numbers logged.

    Parameters
    ----------
    counts
        Tab-separated table, plain or gzipped: raw counts of spots named ``{x}x{y}`` (rows) and genes (columns).
    spots
        Tab-separated table with the columns ``x`` and ``y`` (position on the array), ``pixel_x`` (to the right) and
        ``pixel_y`` (down; centre of the spot in pixels of the image); where there is a column ``selected``, only rows
        with 1 are used.
    image
        H&E with 8 bits per channel: JPEG, PNG or TIFF.
    spot_um
        Diameter of a spot in µm.
    pitch_um
        Distance in µm between the centres of neighbours in a row or column.

    Returns
    -------
    SpatialData with the coordinate systems ``"global"`` (full-resolution pixels) and ``"micrometers"`` and

    - ``images["he"]``, RGB, multiscale from 2048 px a side;
    - ``shapes["spots"]``, circles in pixels;
    - ``tables["counts"]`` on the spots: raw counts, ``obs["array_row"]`` (y), ``obs["array_col"]`` (x) and
      ``obsm["spatial"]`` in pixels.

    Raises
    ------
    FileNotFoundError
        If one of the files is missing.
    ValueError
        If a length is not positive or a file does not hold what is described above, if no spot has counts, if a spot
        lies outside the image, or if no two spots are neighbours.
    """
    if not (spot_um > 0 and pitch_um > 0):
        raise ValueError(f"spot_um={spot_um} and pitch_um={pitch_um} given; positive lengths in µm are expected.")
    table, places = _read_counts(Path(counts)), _read_spots(Path(spots))
    mpp = pitch_um / _pitch_px(places, spots)
    picture = _read_rgb(Path(image))
    measured = table.obs_names.intersection(places.index)
    if measured.empty:
        raise ValueError(
            f"No spot of {spots} has counts in {counts}: rows named like {places.index[0]!r} are expected, but the "
            f"table's are named like {table.obs_names[0]!r}; check that both files are of the same section."
        )
    if len(measured) < max(len(table), len(places)):
        logger.info(
            "Dropped %d spots without counts and %d rows of counts without a spot; %d remain.",
            len(places) - len(measured),
            len(table) - len(measured),
            len(measured),
        )
    table, places = table[measured].copy(), places.loc[measured]
    centres = places[["pixel_x", "pixel_y"]].to_numpy(float)
    _require_on_image(centres, picture.shape[1:], spots, image)

    table.obs = pd.DataFrame({"array_row": places["y"], "array_col": places["x"]})
    table.obsm["spatial"] = centres
    transformations = {"global": Identity(), "micrometers": Scale([mpp, mpp], axes=("x", "y"))}
    circles = gpd.GeoDataFrame({"radius": np.full(len(places), spot_um / 2 / mpp)}, geometry=shapely.points(centres))
    return SpatialData.init_from_elements(
        {
            "he": _image_element(picture, transformations),
            "spots": ShapesModel.parse(circles, transformations=dict(transformations)),
            "counts": table_element(table, "spots", circles.index.to_numpy()),
        }
    )


def _read_counts(path: Path) -> ad.AnnData:
    # Thousands of columns: pandas is many times slower when it infers their types block by block.
    frame = pd.read_csv(path, sep="\t", index_col=0, low_memory=False)
    if frame.empty:
        raise ValueError(f"{path} holds no counts; a tab-separated table of spots by genes is expected.")
    frame.index = frame.index.astype(str)
    _require_unique(frame.index, path)
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


def _read_spots(path: Path) -> pd.DataFrame:
    """Spots in use, named as in the table of counts."""
    frame = pd.read_csv(path, sep="\t")
    missing = [column for column in ("x", "y", "pixel_x", "pixel_y") if column not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; there are {list(frame.columns)}.")
    if "selected" in frame:
        frame = frame[frame["selected"] == 1]
    if frame.empty:
        raise ValueError(f"{path} holds no spots with selected == 1; select the spots under the tissue first.")
    numbers = frame[["x", "y", "pixel_x", "pixel_y"]].apply(pd.to_numeric, errors="coerce")
    position = numbers[["x", "y"]]
    if numbers.isna().any(axis=None) or (position != position.round()).any(axis=None):
        raise ValueError(
            f"{path} holds positions that are no numbers, or fractions in x or y; whole array positions x and y, and "
            "pixel positions pixel_x and pixel_y, are expected."
        )
    numbers = numbers.astype({"x": int, "y": int})
    numbers.index = pd.Index([f"{x}x{y}" for x, y in zip(numbers["x"], numbers["y"], strict=True)])
    _require_unique(numbers.index, path)
    return numbers


def _pitch_px(spots: pd.DataFrame, path: str | Path) -> float:
    """Distance in pixels between neighbours in a row or column of the array."""
    position, centre = spots[["x", "y"]].to_numpy(), spots[["pixel_x", "pixel_y"]].to_numpy()
    # A 2k array is two lattices of the same pitch, one in the middles of the other: its spots have positions with even
    # x + y only, and neighbours in a row are 2 positions apart. (Its 66 x 63 positions 100 µm apart are the capture
    # area of 6.2 x 6.6 mm.)
    step = 2 if len(np.unique(position.sum(axis=1) % 2)) == 1 else 1
    # All spots together tell the lattice better than pairs of them, whose own offsets only ever add to the distance.
    lattice, _, rank, _ = np.linalg.lstsq(np.column_stack([position, np.ones(len(position))]), centre)
    along_x, along_y = step * np.linalg.norm(lattice[:2], axis=1)
    if rank < 3 or min(along_x, along_y) <= 0:
        raise ValueError(
            f"The {len(spots)} spots of {path} lie on one line, so the pixel size cannot be told; spots in several "
            "rows and columns are expected."
        )
    if max(along_x, along_y) > _STRETCH * min(along_x, along_y):
        logger.warning(
            "Neighbouring spots of %s are %.4g px apart along x and %.4g px along y: the image seems to be stretched; "
            "the pixel size is their geometric mean.",
            path,
            along_x,
            along_y,
        )
    return float(np.sqrt(along_x * along_y))


def _read_rgb(path: Path) -> NDArray[np.uint8]:
    """(3, y, x)."""
    # imread would take a missing path for the name of a plugin's resource and complain of that.
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}; give the path of a JPEG, PNG or TIFF file.")
    # Pillow takes slides for decompression bombs, and its limit is global.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        pixels = imread(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(
            f"{path} holds {pixels.dtype} pixels of shape {pixels.shape}; an RGB image with 8 bits per channel is "
            "expected."
        )
    return np.moveaxis(pixels[..., :3], 2, 0)


def _image_element(picture: NDArray[np.uint8], transformations: dict[str, BaseTransformation]) -> Any:
    image = Image2DModel.parse(
        da.from_array(picture, chunks=_CHUNKS),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2, 2, 2] if max(picture.shape[1:]) >= _PYRAMID_FROM else None,
        chunks=_CHUNKS,
        transformations=dict(transformations),
    )
    # Else every look at a coarse level would go back to the full resolution, for seconds.
    return image.persist()


def _require_unique(names: pd.Index, path: Path) -> None:
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(
            f"{path} names {len(twice)} spots more than once, such as {twice[0]!r}; one row per spot is expected."
        )


def _require_on_image(
    centres: NDArray[np.float64], shape: tuple[int, ...], spots: str | Path, image: str | Path
) -> None:
    height, width = shape
    outside = int(((centres < 0) | (centres > (width, height))).any(axis=1).sum())
    if outside:
        raise ValueError(
            f"{outside} of {len(centres)} spots of {spots} lie outside {image} ({width} x {height} px): the image that "
            "pixel_x and pixel_y refer to, at the same resolution, is expected."
        )
