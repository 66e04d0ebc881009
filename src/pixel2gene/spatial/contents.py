"""What a SpatialData holds, in words and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from spatialdata import SpatialData

from pixel2gene.spatial.elements import RECORDS
from pixel2gene.spatial.geometry import raster_levels, system_matrices
from pixel2gene.spatial.pixel_size import pixel_size
from pixel2gene.spatial.provenance import SOURCE


def contents(sdata: SpatialData) -> dict[str, Any]:
    """Elements, with what matters to pixel2gene of each, and the records of its results.

    Returns
    -------
    By kind and name, and the store that it is a copy of; of images that may be an H&E also the pixel size (``mpp``), or
    why there is none (``problem``).
    """
    return {
        "images": {key: _raster(sdata, key, image) | _pixel_size(sdata, key) for key, image in sdata.images.items()},
        "labels": {key: _raster(sdata, key, labels) for key, labels in sdata.labels.items()},
        "shapes": {
            key: {"elements": len(shapes), "kind": sorted(set(shapes.geom_type)), **_systems(sdata, key)}
            for key, shapes in sdata.shapes.items()
        },
        "points": {key: {"points": len(points), **_systems(sdata, key)} for key, points in sdata.points.items()},
        "tables": {
            key: {
                "units": table.n_obs,
                "genes": table.n_vars,
                "layers": sorted(name for name in table.layers if name is not None),
                "annotates": table.uns.get("spatialdata_attrs", {}).get("region"),
            }
            for key, table in sdata.tables.items()
        },
        "source": sdata.attrs.get(SOURCE),
        "results": {key: record for key, record in sdata.attrs.get(RECORDS, {}).items() if key in sdata},
    }


def _raster(sdata: SpatialData, key: str, raster: Any) -> dict[str, Any]:
    levels = raster_levels(raster)
    full = levels[0]
    return {"shape": list(full.shape), "dtype": str(full.dtype), "levels": len(levels), **_systems(sdata, key)}


def _systems(sdata: SpatialData, key: str) -> dict[str, Any]:
    return {"coordinate_systems": sorted(system_matrices(sdata, key))}


def _pixel_size(sdata: SpatialData, key: str) -> dict[str, Any]:
    full = raster_levels(sdata.images[key])[0]
    if full.dtype != np.uint8 or full.sizes["c"] not in (3, 4):
        return {}
    try:
        return {"mpp": pixel_size(sdata, key)}
    except ValueError as error:
        return {"problem": str(error)}
