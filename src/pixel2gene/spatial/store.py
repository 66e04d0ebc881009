"""Changing a store: one process at a time, and whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, cast

import zarr
from anndata import AnnData
from spatialdata import SpatialData, read_zarr

from pixel2gene.core.lock import locked

RECORDS = "pixel2gene"
KINDS = ("images", "labels", "shapes", "points", "tables")
# In the store, so that moves stay within one file system, and what is unfinished goes where the store goes.
OWN, TILES = ".pixel2gene", "tiles-"
# Half precision hardly shrinks: files are a sixth larger than by the default, in a third of the time.
COMPRESSOR: dict[Literal["lz4", "zstd"], int] = {"lz4": 1}
# Of an element; nothing that leads out of the store.
_NAME = re.compile(r"\w[\w.-]*")
_LOCK, _READY = ".pixel2gene.lock", "ready"


def alone[Verb: Callable[..., None]](verb: Verb) -> Verb:
    """Let a verb have the store of its SpatialData for itself, once what died there before is finished or undone.

    Raises
    ------
    TypeError
        If its first argument is no SpatialData.
    BlockingIOError
        If another process is at the store.
    OSError
        If the store cannot be written, or its disk is full; what was there is as it was.
    ValueError
        If the store was written by an early version of SpatialData.
    """

    @wraps(verb)
    def with_store(sdata: SpatialData, *args: Any, **options: Any) -> None:
        require_spatialdata(sdata)
        store = store_of(sdata)
        if store is None:
            verb(sdata, *args, **options)
            return
        with _writing(store):
            _reload(sdata, store, _finish(store))
            verb(sdata, *args, **options)

    return cast(Verb, with_store)


def require_spatialdata(sdata: object, name: str = "sdata") -> None:
    """Refuse what is no SpatialData, by name."""
    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"{name} is a {type(sdata).__name__}; a SpatialData is expected, such as spatialdata.read_zarr returns."
        )


def store_of(sdata: SpatialData) -> Path | None:
    """Folder of the store that backs a SpatialData, None of one in memory."""
    return None if sdata.path is None else Path(str(sdata.path)).resolve()


def set_records(sdata: SpatialData, records: Mapping[str, Any]) -> None:
    """Replace what verbs recorded, in this SpatialData alone: crops and subsets share their attrs with the whole."""
    sdata.attrs = {**sdata.attrs, RECORDS: dict(records)}


def put(
    sdata: SpatialData, store: Path, elements: Mapping[str, Any], records: Mapping[str, Any], dropped: Sequence[str]
) -> None:
    """Write elements into the store, computed block by block, with their records; drop others.

    All is first written whole to a folder of its own. A process that dies before that has changed nothing; of one that
    dies later, the next verb moves in the rest. The SpatialData then holds rasters as read from the store, and tables
    as they are.
    """
    own = store / OWN
    # After a failure dask's threads finish what they are at, which must not end up in the next attempt.
    new = own / uuid.uuid4().hex
    replaced = [key for key in elements if _paths(store, key)]
    try:
        SpatialData.init_from_elements(
            dict(elements), attrs={RECORDS: dict(records), "replaced": replaced, "dropped": list(dropped)}
        ).write(new, raster_compressor=COMPRESSOR)
        os.rename(new, own / _READY)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    tables = {key: element for key, element in elements.items() if isinstance(element, AnnData)}
    _reload(sdata, store, _finish(store), tables)


def _finish(store: Path) -> dict[str, str]:
    """Move in what was written whole, by this process or one that died, and remove what was not.

    Returns
    -------
    By name, the kinds of the elements that were moved in or dropped.
    """
    own, kinds = store / OWN, dict[str, str]()
    ready = own / _READY
    if ready.exists():
        staged = _staged(ready)
        new = {path.name: path for kind in KINDS for path in (ready / kind).glob("*") if path.is_dir()}
        # What the user has put there since the process died stays.
        for key in [key for key in new if key not in staged["replaced"] and _paths(store, key)]:
            del new[key], staged[RECORDS][key]
        root = zarr.open_group(store, mode="r+", use_consolidated=False)
        # From here on without consolidated metadata, which would name elements that for a moment are not there.
        root.update_attributes({RECORDS: {**_records(root), **staged[RECORDS]}})
        for key in [*new, *filter(_NAME.fullmatch, staged["dropped"])]:
            for old in _paths(store, key):
                kinds[key] = old.parent.name
                os.rename(old, own / uuid.uuid4().hex)
            if key in new:
                kinds[key] = new[key].parent.name
                root.require_group(kinds[key])
                os.rename(new[key], store / kinds[key] / key)
        for tiles in [path for key in staged[RECORDS] for path in own.glob(f"{TILES}{key}-*")]:
            shutil.rmtree(tiles, ignore_errors=True)
        _consolidate(store)
        os.rename(ready, own / uuid.uuid4().hex)
    for left in own.glob("*"):
        if not left.name.startswith(TILES):
            shutil.rmtree(left, ignore_errors=True)
    return kinds


def _staged(ready: Path) -> dict[str, Any]:
    try:
        root = json.loads((ready / "zarr.json").read_text())["attributes"]
        return {name: root[name] for name in (RECORDS, "replaced", "dropped")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"What a process that died has left in {ready} is damaged: remove it.") from error


def _records(root: zarr.Group) -> dict[str, Any]:
    return cast(dict[str, Any], root.attrs.get(RECORDS, {}))


def _paths(store: Path, key: str) -> list[Path]:
    return [path for kind in KINDS if (path := store / kind / key).exists()]


def _consolidate(store: Path) -> None:
    for left in store.glob("zarr.*.partial"):
        left.unlink()
    with warnings.catch_warnings():
        # What is neither group nor array, as a file of Parquet, is none of its business.
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(store)


def _reload(sdata: SpatialData, store: Path, kinds: Mapping[str, str], known: Mapping[str, Any] | None = None) -> None:
    """Bring into memory what was moved in; those that are known are not read again."""
    known = known or {}
    selection = {kind for key, kind in kinds.items() if key not in known}
    fresh = _read_quietly(store, tuple(selection)) if selection else SpatialData()
    for key in kinds:
        if key in sdata:
            del sdata[key]
        if key in known or key in fresh:
            sdata[key] = known[key] if key in known else fresh[key]
    records = _records(zarr.open_group(store, mode="r"))
    set_records(sdata, {**sdata.attrs.get(RECORDS, {}), **{key: records[key] for key in kinds if key in records}})


def _read_quietly(store: Path, kinds: tuple[str, ...]) -> SpatialData:
    # For every labels element ome_zarr warns that it has no image as its parent; in SpatialData none has.
    reader = logging.getLogger("ome_zarr.reader")
    level = reader.level
    reader.setLevel(logging.ERROR)
    try:
        return read_zarr(store, selection=kinds)
    finally:
        reader.setLevel(level)


@contextmanager
def _writing(store: Path) -> Iterator[None]:
    _require_writable(store)
    try:
        with locked(store / _LOCK, f"the store {store}"):
            try:
                yield
            finally:
                if (own := store / OWN).exists() and not any(own.iterdir()):
                    own.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"The disk of {store} is full: make room and run the same again; what was there before is as it was."
        ) from error


def _require_writable(store: Path) -> None:
    if not store.is_dir():
        raise FileNotFoundError(f"There is no store {store}: write the SpatialData to a folder on this machine first.")
    if not os.access(store, os.W_OK):
        raise PermissionError(f"The store {store} cannot be written; copy it to where it can, and read it from there.")
    if not (store / "zarr.json").exists():
        raise ValueError(
            f"The store {store} has the format of early versions of SpatialData: write it to a new one with "
            "sdata.write, and read it from there."
        )
