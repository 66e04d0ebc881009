"""What an interrupted run has finished, kept in the store until all is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.spatial.store import OWN, TILES, store_of


def finished_tiles(sdata: SpatialData, key: str, record: Mapping[str, Any], mask: NDArray[np.bool_]) -> Path | None:
    """Folder for the finished tiles of a raster; None of a SpatialData in memory.

    It is found again by what decides the tiles: the same `record` and `mask`. Once the raster is in the store, it is
    removed, and with it those of other attempts at the same raster.
    """
    store = store_of(sdata)
    if store is None:
        return None
    known = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode() + np.packbits(mask).tobytes())
    folder = store / OWN / f"{TILES}{key}-{known.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
