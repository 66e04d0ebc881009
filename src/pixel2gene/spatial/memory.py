"""Whether a result fits into memory, asked before the work begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import psutil

# Bytes that this process may take in all; None if all that is free.
_LIMIT: ContextVar[float | None] = ContextVar("_LIMIT", default=None)


@contextmanager
def memory_limit(gigabytes: float | None) -> Iterator[None]:
    """Let results take so much that the process stays within a limit."""
    if gigabytes is not None and not gigabytes > 0:
        raise ValueError(f"A limit of {gigabytes} GB of memory leaves nothing; give more than 0, or none.")
    token = _LIMIT.set(None if gigabytes is None else gigabytes * 1e9)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def free_memory() -> float:
    """Bytes that a result may take."""
    available, limit = float(psutil.virtual_memory().available), _LIMIT.get()
    return available if limit is None else min(available, limit - psutil.Process().memory_info().rss)


def genes_that_fit(rows: int, bytes_each: int, map_bytes: int = 0) -> int:
    """Number of genes of which a table of so many rows fits, that takes so many bytes per value while it is made.

    `map_bytes` are those of the map of a gene, where maps are held in memory, too.
    """
    return max(int(free_memory() // (bytes_each * max(rows, 1) + map_bytes)), 0)


def require_memory(rows: int, genes: int, bytes_each: int, remedy: str, map_bytes: int = 0) -> None:
    """Refuse a table that does not fit, or its maps.

    Raises
    ------
    MemoryError
        Says how much it takes, how much there is, and the remedy.
    """
    if genes > genes_that_fit(rows, bytes_each, map_bytes):
        with_maps = " and its maps take" if map_bytes else " takes"
        raise MemoryError(
            f"A table of {rows} x {genes} genes{with_maps} {(bytes_each * rows + map_bytes) * genes / 1e9:.1f} GB, and "
            f"{max(free_memory(), 0) / 1e9:.1f} GB of memory are free: {remedy}."
        )
