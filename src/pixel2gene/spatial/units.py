"""Measured units - bins, spots, cells, superpixels with transcripts - as arrays on the superpixel grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array, vstack
from spatialdata import SpatialData

from pixel2gene.core.arguments import require_genes
from pixel2gene.spatial.dnb_bins import dnb_bins
from pixel2gene.spatial.elements import get_table
from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.overlap import overlap, point_overlap

# Probes that measure background, by the names that vendors give them.
CONTROL_PROBES = (
    "BLANK",
    "Blank",
    "NegControlCodeword",
    "NegControlProbe",
    "NegPrb",
    "UnassignedCodeword",
    "DeprecatedCodeword",
    "antisense_",
    "Intergenic_Region",
    "Negative",
    "SystemControl",
    "FalseCode",
)
# Columns of a table with the place of each unit in an array. Units tile if they fill this share of a square between
# neighbours: spots fill a quarter.
ARRAY = ("array_row", "array_col")
TILED = 0.8
# Share of the units that must lie on the image, else it is another one.
MOSTLY = 0.5
# Pixels of the image taken for others: y upwards from its upper edge, as in a plot of mathematics, among them.
EYE = np.eye(3)
CONFUSED = {
    "x and y swapped": EYE[[1, 0, 2]],
    "y flipped": np.diag([1.0, -1, 1]),
    "x flipped": np.diag([-1.0, 1, 1]),
}
# Superpixels between which and others this close all was measured.
MEASURED_REACH = 5
# Of the usual density of transcripts, what the emptiest tissue has; as many of them leave no hole; in superpixels, the
# largest that lumina and vacuoles leave.
EMPTIEST, NO_HOLE, VACUOLE = 0.02, 10, 2


@dataclass(frozen=True)
class Units:
    """What was measured, and where.

    Attributes
    ----------
    genes
        (genes,) names.
    counts
        (units, genes).
    overlap
        (units, superpixels) overlapping area as a share of a superpixel.
    superpixels
        For transcripts, whose units are the superpixels themselves, their flat indices; None for a table.
    array
        (units, 2) row and column of bins that tile an array; None for other units.
    var
        (genes, columns) what the table says of its genes.
    """

    genes: pd.Index[str]
    counts: csr_array
    overlap: csr_array
    superpixels: NDArray[np.int64] | None = None
    array: NDArray[np.int64] | None = None
    var: pd.DataFrame | None = None

    def centres(self, grid: Grid) -> NDArray[np.float64]:
        """(units, 2) centre of each unit's overlap in grid coordinates, NaN outside the grid."""
        area = self.overlap.sum(axis=1)
        with np.errstate(invalid="ignore"):
            centres: NDArray[np.float64] = (self.overlap @ grid.centres) / area[:, None]
        return centres


def measured_units(sdata: SpatialData, key: str, image_key: str, grid: Grid, layer: str | None = None) -> Units:
    """Read counts and lay the units that they were measured in over the superpixel grid.

    Genes of one name are told apart, with a warning.

    Parameters
    ----------
    sdata
        Holds the counts and the image.
    key
        Table of counts that annotates shapes, labels or points; or a points element of transcripts with a feature
        key, whose counts are taken per superpixel.
    image_key
        Image that the grid belongs to.
    grid
        Superpixel grid.
    layer
        Layer of the table with the counts; X by default.

    Raises
    ------
    KeyError
        If there is no such table, points element or layer.
    ValueError
        If the values are no counts, the table annotates nothing, or less than half of it lies on the image.
    """
    if key in sdata.points and key not in sdata.tables:
        return _transcripts(sdata, key, image_key, grid)
    table = get_table(sdata, key)
    counts = _counts(table, key, layer)
    overlapping = table_overlap(sdata, key, image_key, grid)
    units = Units(_gene_names(table, key), counts, overlapping, var=table.var)  # type: ignore[arg-type]
    inside = int((np.diff(units.overlap.indptr) > 0).sum())
    hint = "" if inside >= MOSTLY * len(table) else _better(sdata, key, image_key, grid, inside)
    if inside == 0:
        raise ValueError(
            f"No unit of table {key!r} overlaps image {image_key!r}{hint}: check that both are aligned to the same "
            f"coordinate system (those of the image: {sorted(grid.transformations)})."
        )
    if inside < MOSTLY * len(table):
        full = raster_levels(get_element(sdata, image_key, "images"))[0].sizes
        size = f"{full['x']} x {full['y']} px"
        raise ValueError(
            f"Only {inside} of {len(table)} units of table {key!r} lie on image {image_key!r} ({size}){hint}: load "
            "the image that their coordinates are for, at full resolution, or crop the table to the image with "
            "spatialdata.bounding_box_query."
        )
    place = array_places(table)
    if place is None:
        place = _places_of_bins(sdata, table, key)
    return replace(units, array=tiled_array(place, units, grid))


def _better(sdata: SpatialData, key: str, image_key: str, grid: Grid, inside: int) -> str:
    """Say in which of the ways that are often confused far more units would lie on the image; nothing if in none."""
    for way, matrix in CONFUSED.items():
        found = int((np.diff(table_overlap(sdata, key, image_key, grid, matrix).indptr) > 0).sum())
        if found > 2 * inside:
            return f"; with {way} {found} would lie on it"
    return ""


def table_overlap(
    sdata: SpatialData, key: str, image_key: str, grid: Grid, way: NDArray[np.floating] = EYE
) -> csr_array:
    """(units, superpixels) overlap of the elements that a table annotates, in the order of the table.

    Its pixels are mapped by `way` first, a matrix (3, 3).
    """
    to_grid = grid.from_pixels @ way
    rows, matrices = [], []
    for region, positions, ids in annotated(get_table(sdata, key), key):
        element = unit_element(sdata, region)
        matrices.append(overlap(element, ids, to_grid @ affine(sdata, region, image_key), grid.shape))
        rows.append(positions)
    order = np.argsort(np.concatenate(rows))
    return csr_array(vstack(matrices, format="csr")[order])


def unit_element(sdata: SpatialData, key: str) -> Any:
    """Shapes, labels or points in which counts were measured; of bins that come as points, their squares."""
    element = get_element(sdata, key, "shapes", "labels", "points")
    bins = dnb_bins(key, element) if key in sdata.points else None
    return element if bins is None else bins.squares()


def select_genes(units: Units, genes: list[str] | None, min_counts: int) -> NDArray[np.intp]:
    """Positions of the genes to model: those asked for, or all but control probes with enough counts.

    Raises
    ------
    KeyError
        If a gene asked for was not measured.
    ValueError
        If a gene is asked for twice or has no counts, or if no gene has enough.
    """
    totals = np.asarray(units.counts.sum(axis=0)).ravel()
    if genes is None:
        control = units.genes.str.startswith(CONTROL_PROBES)
        chosen = np.flatnonzero((totals >= min_counts) & ~control)
        if len(chosen) == 0:
            raise ValueError(
                f"None of the {int((~control).sum())} genes that are no control probes has {min_counts} counts or more "
                f"(the most is {totals[~control].max(initial=0):g}): there is nothing to learn from; check the table, "
                "or lower min_counts."
            )
        return chosen
    require_genes(genes)
    chosen = units.genes.get_indexer(pd.Index(genes))
    if (chosen < 0).any():
        missing = [gene for gene, position in zip(genes, chosen, strict=True) if position < 0]
        raise KeyError(
            f"{len(missing)} of the genes asked for were not measured: {missing[:5]}; there are {len(units.genes)}, "
            f"such as {units.genes[:5].tolist()}{column_with(units, missing)}."
        )
    if (totals[chosen] == 0).any():
        empty = [gene for gene, total in zip(genes, totals[chosen], strict=True) if total == 0]
        raise ValueError(f"{len(empty)} of the genes asked for have no counts: {empty[:5]}; leave them out.")
    return chosen


def column_with(units: Units, genes: Sequence[str]) -> str:
    """Say which column of the table has most of the genes that its names lack, and what to do; nothing if none has."""
    if units.var is None:
        return ""
    for column in units.var:
        if pd.Index(genes).isin(units.var[column].astype(str)).mean() > 0.5:
            return f"; they are in its column var[{column!r}]: rename by table.var_names = table.var[{column!r}]"
    return ""


def array_places(table: ad.AnnData) -> NDArray[np.int64] | None:
    """(units, 2) row and column in an array, as readers give them; None where there is none."""
    if not set(ARRAY) <= set(table.obs.columns):
        return None
    place = np.stack([np.asarray(table.obs[name]) for name in ARRAY], axis=1)
    return place.astype(np.int64) if np.issubdtype(place.dtype, np.integer) else None


def tiled_array(place: NDArray[np.int64] | None, units: Units, grid: Grid) -> NDArray[np.int64] | None:
    """(units, 2) row and column of bins that tile; None of units that do not, such as spots."""
    if place is None:
        return None
    flat = place @ np.array([np.ptp(place[:, 1]) + 2, 1])
    order = np.argsort(flat)
    next_one = order[np.searchsorted(flat, flat + 1, sorter=order).clip(max=len(flat) - 1)]
    beside = flat[next_one] == flat + 1
    area, centres = units.overlap.sum(axis=1), units.centres(grid)
    pitch = np.linalg.norm(centres[next_one] - centres, axis=1)[beside]
    pitch = pitch[np.isfinite(pitch)]
    if len(pitch) == 0:
        return None
    return place if np.median(area[area > 0]) > TILED * np.median(pitch) ** 2 else None


def _places_of_bins(sdata: SpatialData, table: ad.AnnData, key: str) -> NDArray[np.int64] | None:
    """(units, 2) row and column of bins of Stereo-seq; None of other units."""
    (region, _, ids), *others = annotated(table, key)
    bins = dnb_bins(region, sdata.points[region]) if region in sdata.points and not others else None
    return None if bins is None else bins.places(ids)


def _gene_names(table: ad.AnnData, key: str) -> pd.Index[str]:
    names = table.var_names.astype(str)
    if names.is_unique:
        return names
    twice = names.duplicated()
    unique: pd.Index[str] = ad.utils.make_index_unique(names)
    warnings.warn(
        f"Table {key!r} has {len(set(names[twice]))} gene names more than once; they are told apart as AnnData does, "
        f"such as {names[twice][0]!r} as {unique[twice][0]!r}.",
        stacklevel=2,
    )
    return unique


def _counts(table: ad.AnnData, key: str, layer: str | None) -> csr_array:
    if layer is not None and layer not in table.layers:
        raise KeyError(f"No layer {layer!r} in table {key!r}; there are {_layers(table)}.")
    if table.n_obs == 0 or table.n_vars == 0:
        raise ValueError(f"Table {key!r} is empty ({table.n_obs} units, {table.n_vars} genes); counts are expected.")
    where = f"table {key!r}" + ("" if layer is None else f", layer {layer!r}")
    values: Any = table.X if layer is None else table.layers[layer]
    if values is None:
        raise ValueError(f"No X in {where}: pass layer= with the counts (layers: {_layers(table)}).")
    counts = csr_array(values)
    if not np.isfinite(counts.data).all():
        raise ValueError(f"The values of {where} contain NaN or infinity; raw counts are expected.")
    if (counts.data < 0).any():
        raise ValueError(f"The values of {where} are partly negative; raw counts are expected.")
    if (counts.data != np.rint(counts.data)).any():
        raise ValueError(
            f"The values of {where} are not whole numbers, so they are not raw counts: pass layer= with the counts "
            f"(layers: {_layers(table)})."
        )
    return counts


def _layers(table: ad.AnnData) -> list[str]:
    # AnnData lists X among them, as None.
    return sorted(name for name in table.layers.keys() if name is not None)


def annotated(table: ad.AnnData, key: str) -> Iterator[tuple[str, NDArray[np.intp], NDArray[Any]]]:
    """Each element that a table annotates, with the positions of the rows that do and their instance ids."""
    if "spatialdata_attrs" not in table.uns:
        raise ValueError(
            f"Table {key!r} annotates no element: link it to the bins, spots or cells with TableModel.parse(region=, "
            "region_key=, instance_key=)."
        )
    link = table.uns["spatialdata_attrs"]
    regions = table.obs[link["region_key"]].astype(str).to_numpy()
    instances = table.obs[link["instance_key"]].to_numpy()
    for region in pd.unique(regions):
        positions = np.flatnonzero(regions == region)
        yield region, positions, instances[positions]


def feature_of(points: Any) -> str:
    """Column of a points element that names each transcript's gene."""
    name: str = points.attrs.get("spatialdata_attrs", {}).get("feature_key", "feature_name")
    return name


def _transcripts(sdata: SpatialData, key: str, image_key: str, grid: Grid) -> Units:
    points = sdata.points[key]
    feature = feature_of(points)
    if feature not in points.columns:
        raise ValueError(
            f"Points {key!r} have no column {feature!r} that names each transcript's gene; there are "
            f"{list(points.columns)}: set feature_key in PointsModel.parse."
        )
    frame = points[["x", "y", feature]].compute()
    where = point_overlap(frame[["x", "y"]].to_numpy(), grid.from_pixels @ affine(sdata, key, image_key), grid.shape)
    inside = np.diff(where.indptr) > 0
    if inside.mean() < MOSTLY:
        raise ValueError(
            f"Only {inside.mean():.0%} of the transcripts {key!r} lie on image {image_key!r}: check that both are "
            f"aligned to the same coordinate system (those of the image: {sorted(grid.transformations)})."
        )
    genes = pd.Categorical(frame[feature].astype(str)[inside])
    found = np.bincount(where.indices, minlength=grid.size).reshape(grid.shape)
    measured = np.flatnonzero(_joined(found > 0, _hole(found)))
    row = np.searchsorted(measured, where.indices)
    counts = csr_array(
        (np.ones(len(row), np.float32), (row, genes.codes.astype(np.int64))),
        shape=(len(measured), len(genes.categories)),
    )
    identity = csr_array(
        (np.ones(len(measured), np.float32), measured, np.arange(len(measured) + 1)), shape=(len(measured), grid.size)
    )
    return Units(pd.Index(genes.categories), counts, identity, measured)


def measured_area(occupied: NDArray[np.bool_], reach: int = MEASURED_REACH) -> NDArray[np.bool_]:
    """(rows, columns) superpixels that were measured, and what lies between them."""
    area: NDArray[np.bool_] = ndimage.binary_fill_holes(_joined(occupied, reach))
    return area


def _hole(found: NDArray[np.int64]) -> int:
    """Radius in superpixels of a hole that no tissue leaves among so many transcripts: a field of view is missing."""
    usual = found[found > 0].mean()
    return int(np.clip(np.ceil(np.sqrt(NO_HOLE / (np.pi * EMPTIEST * usual))), VACUOLE, MEASURED_REACH))


def _joined(occupied: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """(rows, columns) superpixels that were measured, and the gaps between those that are this close."""
    near = ndimage.distance_transform_edt(~np.pad(occupied, reach)) <= reach
    closed = ndimage.distance_transform_edt(near) > reach
    inner = slice(reach, -reach)
    joined: NDArray[np.bool_] = closed[inner, inner] | occupied
    return joined
