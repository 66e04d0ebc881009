"""What an interrupted run has finished, kept beside the store until all is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData


@contextmanager
def finished_tiles(
    sdata: SpatialData, key: str, record: Mapping[str, Any], mask: NDArray[np.bool_]
) -> Iterator[Path | None]:
    """Folder for the finished tiles of a raster, removed once the raster is written; None of a SpatialData in memory.

    It is found again by what decides the tiles: the same `record` and `mask`. Those of other attempts at the same
    raster go with it.
    """
    if sdata.path is None:
        yield None
        return
    store = Path(str(sdata.path))
    attempts = f".{store.name}.{key}.tiles-"
    known = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode() + np.packbits(mask).tobytes())
    folder = store.with_name(attempts + known.hexdigest()[:16])
    folder.mkdir(exist_ok=True)
    yield folder
    for attempt in store.parent.glob(f"{attempts}*"):
        shutil.rmtree(attempt, ignore_errors=True)
