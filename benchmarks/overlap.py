"""Time and memory of the overlap between rotated 8 µm bins and an 8 µm superpixel grid."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import shapely

from pixel2gene.spatial.overlap import polygon_overlap

_ANGLE = np.deg2rad(17.0)
_BIN = 8.0  # µm


def measure(units: int) -> dict[str, float]:
    """Overlap of a square field of rotated bins, all of it inside the grid."""
    side = int(np.ceil(np.sqrt(units)))
    row, column = (index.ravel()[:units] * _BIN for index in np.indices((side, side)))
    bins = shapely.box(column, row, column + _BIN, row + _BIN)
    cos, sin = np.cos(_ANGLE) / _BIN, np.sin(_ANGLE) / _BIN
    matrix = np.array([[cos, -sin, side * np.sin(_ANGLE) + 1], [sin, cos, 1], [0, 0, 1]])
    extent = int(np.ceil(side * (np.cos(_ANGLE) + np.sin(_ANGLE)))) + 3
    start = time.perf_counter()
    overlap = polygon_overlap(bins, matrix, (extent, extent))
    return {
        "units": units,
        "seconds": round(time.perf_counter() - start, 2),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "row_sum_error": float(np.abs(overlap.sum(axis=1) - 1).max()),
    }


def main() -> None:
    """Print one table; write it as JSON with ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = [measure(units) for units in (5_000, 50_000, 500_000)]
    print(*(f"{name:>14}" for name in rows[0]))
    for row in rows:
        print(*(f"{value:>14.3g}" if isinstance(value, float) else f"{value:>14}" for value in row.values()))
    if out:
        out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
