"""Results made again from what was recorded of them, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.spatial.elements import RECORDS
from pixel2gene.spatial.geometry import raster_levels
from pixel2gene.spatial.provenance import digests, versions

# Each needs what those before it write.
ORDER = ("tissue", "embed", "predict", "denoise", "aggregate")
# Of the standard deviation of the recorded result; float16 resolves 1/2048 of a value. docs/memory.md has measured
# differences.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Step:
    """One call of a verb.

    Attributes
    ----------
    key
        Of its result.
    record
        What it recorded.
    """

    key: str
    record: dict[str, Any]

    @property
    def verb(self) -> str:
        """That was called."""
        name: str = self.record["verb"]
        return name

    @property
    def fit(self) -> dict[str, Any] | None:
        """How the model was fitted that it was called with."""
        found: dict[str, Any] | None = self.record.get("fit")
        return found


def recorded_steps(sdata: SpatialData) -> list[Step]:
    """Find the calls that the results of a SpatialData came from, in an order in which they can be made again.

    Raises
    ------
    ValueError
        If there are none, or one cannot be made again.
    """
    found = sdata.attrs.get(RECORDS, {})
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ValueError(f"sdata.attrs[{RECORDS!r}] is damaged: it does not say how results came about.")
    records = {key: record for key, record in found.items() if key in sdata}
    if not records:
        raise ValueError(
            "There is nothing to repeat: the store holds no result of pixel2gene. Name one that `pixel2gene run` wrote."
        )
    early = sorted(key for key, record in records.items() if "arguments" not in record)
    if early:
        raise ValueError(
            f"How {early} came about was not recorded, as in early versions of pixel2gene: make them again with this "
            "one."
        )
    damaged = sorted(key for key, record in records.items() if not _is_whole(record))
    if damaged:
        raise ValueError(f"What is recorded of {damaged} is damaged: make them again.")
    # What else a verb wrote has the same record.
    steps = [Step(key, record) for key, record in records.items() if record["arguments"].get("key_added") == key]
    for step in steps:
        if step.verb in ("predict", "denoise"):
            _require_own_model(step)
    return sorted(steps, key=lambda step: ORDER.index(step.verb))


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether what is needed is there, also of the fit."""
    fit = record.get("fit")
    calls = [record] if fit is None else [record, fit]
    return (
        record.get("verb") in ORDER
        and isinstance(record.get("image_key"), str)
        and all(isinstance(call, dict) for call in calls)
        and all(isinstance(call.get(part), dict) for call in calls for part in ("arguments", "inputs", "environment"))
        and (fit is None or {"image_key", "layer", "recipe"} <= fit["arguments"].keys())
    )


def _require_own_model(step: Step) -> None:
    fit = step.fit
    if fit is None or fit.get("reference") or len(fit["inputs"]) != 1 or not step.record.get("trained_on_this_slide"):
        raise ValueError(
            f"{step.key!r} cannot be repeated from this store alone: its model was fitted to other slides, or by an "
            f"early version. Load that model and call pixel2gene.tl.{step.verb} with what `pixel2gene info` shows."
        )


def require_same_inputs(sdata: SpatialData, steps: list[Step]) -> None:
    """Refuse a SpatialData in which what the steps read is missing, or is not as it was.

    Raises
    ------
    ValueError
        Names the elements.
    """
    results = sdata.attrs[RECORDS].keys()
    for step in steps:
        arguments = step.record["arguments"]
        image_key = step.record["image_key"]
        _require_same(sdata, step, image_key, step.record["inputs"], arguments.get("layer"), results)
        if step.fit is not None:
            (read,) = step.fit["inputs"].values()
            _require_same(
                sdata, step, step.fit["arguments"]["image_key"], read, step.fit["arguments"]["layer"], results
            )


def _require_same(
    sdata: SpatialData, step: Step, image_key: str, read: Mapping[str, str], layer: str | None, results: Any
) -> None:
    own = {key: digest for key, digest in read.items() if key not in results}
    missing = sorted(key for key in own if key not in sdata)
    if missing:
        raise ValueError(f"{missing}, of which {step.key!r} was made, are no longer in the store: put them back.")
    found = digests(sdata, image_key, [key for key in own if key != image_key], layer)
    changed = sorted(key for key, digest in own.items() if found[key] != digest)
    if changed:
        raise ValueError(
            f"{changed}, of which {step.key!r} was made, have changed since (their SHA-256 is another): put back what "
            "was there, or run it anew."
        )


def without_results(sdata: SpatialData) -> SpatialData:
    """Leave out what pixel2gene wrote and recorded."""
    results = sdata.attrs[RECORDS].keys()
    return SpatialData.init_from_elements(
        {name: element for _, name, element in sdata.gen_elements() if name not in results},
        attrs={name: value for name, value in sdata.attrs.items() if name != RECORDS},
    )


def changed_versions(steps: list[Step]) -> list[str]:
    """Packages that are of another version than when the steps were made, in words."""
    now = versions()
    recorded = [step.record["environment"] for step in steps]
    recorded += [step.fit["environment"] for step in steps if step.fit is not None]
    then = {(name, one.get(name)) for one in recorded for name in now}
    return sorted(f"{name} was {old}, is {now[name]}" for name, old in then if old != now[name])


def differences(recorded: SpatialData, repeated: SpatialData) -> dict[str, float]:
    """Compare results block by block.

    Returns
    -------
    By key, the largest difference of two values as a share of the standard deviation of those recorded; infinite where
    shape, names or missing values differ. Labels are compared as they are: 0 or infinite.
    """
    records = recorded.attrs[RECORDS]
    written = {path.split("/")[-1] for path in recorded.elements_paths_on_disk()}
    return {key: _difference(recorded, repeated, key) for key in records if key in written}


def _difference(recorded: SpatialData, repeated: SpatialData, key: str) -> float:
    if key not in repeated:
        return np.inf
    if key in recorded.tables:
        first, second = recorded.tables[key], repeated.tables[key]
        same = first.obs_names.equals(second.obs_names) and first.var_names.equals(second.var_names)
        if not same or (first.X is None) != (second.X is None):
            return np.inf
        # Of lazy predictions there is no X.
        return 0.0 if first.X is None else _largest([(first.X, second.X)])
    first, second = (raster_levels(one[key])[0].data for one in (recorded, repeated))
    if first.shape != second.shape:
        return np.inf
    if key in recorded.labels:
        return np.inf if bool((first != second).any().compute()) else 0.0
    return _largest(_blocks(first, second.rechunk(first.chunks)))


def _blocks(first: da.Array, second: da.Array) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for place in np.ndindex(first.numblocks):
        yield first.blocks[place].compute(), second.blocks[place].compute()


def _largest(pairs: Any) -> float:
    largest, moments = 0.0, np.zeros(3)
    for one, other in pairs:
        first, second = (np.asarray(part, np.float64) for part in (one, other))
        known = np.isfinite(first)
        if not np.array_equal(known, np.isfinite(second)):
            return np.inf
        first, second = first[known], second[known]
        largest = max(largest, float(np.abs(first - second).max(initial=0)))
        moments += [first.size, first.sum(), np.square(first).sum()]
    if largest == 0:
        return 0.0
    mean, square = moments[1:] / moments[0]
    return largest / float(np.sqrt(max(square - mean**2, np.finfo(float).tiny)))
