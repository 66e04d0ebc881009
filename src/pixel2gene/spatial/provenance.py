"""How a result came about: arguments, hashes of what was read, versions."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import shapely
import torch
from scipy.sparse import csr_array
from spatialdata import SpatialData

from pixel2gene.spatial.geometry import affine, raster_levels
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.raster import fingerprint
from pixel2gene.spatial.units import annotated, feature_of

PACKAGES = ("pixel2gene", "spatialdata", "anndata", "torch", "numpy", "zarr")
# In the attrs of a store: that which it is a copy of.
SOURCE = "pixel2gene_source"
# Rows of a table that are hashed at once.
ROWS = 65_536


def made_by(
    arguments: Mapping[str, Any], inputs: Mapping[str, Any], device: torch.device | None = None
) -> dict[str, Any]:
    """What a verb records, besides its name, so that it can be repeated.

    Parameters
    ----------
    arguments
        By the names that the verb gives them; without those that change no result.
    inputs
        Hash of each element that was read, by key; for several slides, those of each.
    device
        That was computed on; None where only the CPU is used.
    """
    return {
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        "inputs": dict(inputs),
        "environment": versions() | {"device": str(device or "cpu"), "threads": torch.get_num_threads()},
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages on which a result depends most."""
    return {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def digests(
    sdata: SpatialData, image_key: str, keys: Iterable[str], layer: str | None = None, *, image: str | None = None
) -> dict[str, str]:
    """Hash elements and tables by their values and their place on an image; of an image, a lattice of its pixels.

    A table's hash is of its counts (of `layer`), names and instances; the elements that it annotates are added. The
    hash of the image is not taken again if it is given: of one without pyramid, most is decoded for it.
    """
    found = {image_key: image or fingerprint(open_image(sdata, image_key))}
    for key in keys:
        if key in sdata.tables:
            found[key] = _hash(_of_table(sdata, key, layer))
            others = [region for region, _, _ in annotated(sdata.tables[key], key)]
        else:
            others = [key]
        found |= {other: _hash(_of_element(sdata, other, image_key)) for other in others}
    return found


def _of_table(sdata: SpatialData, key: str, layer: str | None) -> Iterable[Any]:
    table = sdata.tables[key]
    values: Any = table.X if layer is None else table.layers[layer]
    yield from table.var_names.astype(str)
    for region, positions, ids in annotated(table, key):
        yield from (region, positions.astype(np.int64), *np.asarray(ids).astype(str))
    for start in range(0, table.n_obs, ROWS):
        rows = csr_array(values[start : start + ROWS])
        rows.sort_indices()
        # Whatever types they are kept in.
        yield from (rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data.astype(np.float64))


def _of_element(sdata: SpatialData, key: str, image_key: str) -> Iterable[Any]:
    yield affine(sdata, key, image_key).round(6) + 0.0
    if key in sdata.shapes:
        shapes = sdata.shapes[key]
        yield from (*shapes.index.astype(str), *shapely.to_wkb(shapes.geometry.to_numpy()))
        if "radius" in shapes:
            yield shapes["radius"].to_numpy(np.float64)
    elif key in sdata.points:
        points = sdata.points[key]
        names = [name for name in ("x", "y", "z", feature_of(points)) if name in points.columns]
        for part in points[names].partitions:
            yield pd.util.hash_pandas_object(part.compute(), index=False).to_numpy()
    else:
        labels = raster_levels(sdata.labels[key])[0].data
        yield str(labels.shape)
        for band in range(labels.numblocks[0]):
            yield labels.blocks[band].compute().astype(np.int64)


def _hash(parts: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else b"\0" + _bytes(part))
    return found.hexdigest()


def _bytes(part: Any) -> bytes:
    return part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()


def _plain(value: Any) -> Any:
    """Only what JSON knows."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value]
