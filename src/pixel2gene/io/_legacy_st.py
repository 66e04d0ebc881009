"""Reader of legacy Spatial Transcriptomics: a table of counts, a table of spots and an image."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale

from pixel2gene.io._files import counts_table, image_element, read_rgb, read_tsv, require_on_image, require_unique
from pixel2gene.spatial.elements import table_element

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

    Examples
    --------
    >>> sdata = p2g.io.legacy_st("counts.tsv.gz", "spots.tsv", "he.jpg")  # doctest: +SKIP
    """
    if not (spot_um > 0 and pitch_um > 0):
        raise ValueError(f"spot_um={spot_um} and pitch_um={pitch_um} given; positive lengths in µm are expected.")
    table, places = _read_counts(Path(counts)), _read_spots(Path(spots))
    mpp = pitch_um / _pitch_px(places, spots)
    picture = read_rgb(Path(image))
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
    require_on_image(centres, picture.shape[1:], Path(spots), Path(image), "pixel_x and pixel_y")

    table.obs = pd.DataFrame({"array_row": places["y"], "array_col": places["x"]})
    table.obsm["spatial"] = centres
    transformations = {"global": Identity(), "micrometers": Scale([mpp, mpp], axes=("x", "y"))}
    circles = gpd.GeoDataFrame({"radius": np.full(len(places), spot_um / 2 / mpp)}, geometry=shapely.points(centres))
    return SpatialData.init_from_elements(
        {
            "he": image_element(picture, transformations),
            "spots": ShapesModel.parse(circles, transformations=dict(transformations)),
            "counts": table_element(table, "spots", circles.index.to_numpy()),
        }
    )


def _read_counts(path: Path) -> ad.AnnData:
    frame = read_tsv(path, named=True)
    if frame.empty:
        raise ValueError(f"{path} holds no counts; a tab-separated table of spots by genes is expected.")
    frame.index = frame.index.astype(str)
    return counts_table(frame, path)


def _read_spots(path: Path) -> pd.DataFrame:
    """Spots in use, named as in the table of counts."""
    frame = read_tsv(path, named=False)
    missing = [column for column in ("x", "y", "pixel_x", "pixel_y") if column not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; there are {list(frame.columns)}.")
    if "selected" in frame:
        frame = frame[frame["selected"] == 1]
    if frame.empty:
        raise ValueError(f"{path} holds no spots with selected == 1; select the spots under the tissue first.")
    numbers = frame[["x", "y", "pixel_x", "pixel_y"]].apply(pd.to_numeric, errors="coerce")
    position = numbers[["x", "y"]]
    if not np.isfinite(numbers.to_numpy(float)).all() or (position != position.round()).any(axis=None):
        raise ValueError(
            f"{path} holds positions that are no numbers, or fractions in x or y; whole array positions x and y, and "
            "pixel positions pixel_x and pixel_y, are expected."
        )
    numbers = numbers.astype({"x": int, "y": int})
    numbers.index = pd.Index([f"{x}x{y}" for x, y in zip(numbers["x"], numbers["y"], strict=True)])
    require_unique(numbers.index, path)
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
