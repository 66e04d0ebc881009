"""One slide or several, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spatialdata import SpatialData


def by_name(sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData]) -> dict[str, SpatialData]:
    """Name the slides: a single one ``slide``, those of a list ``slide_0``, ``slide_1`` and so on.

    Raises
    ------
    ValueError
        If there is no slide.
    """
    if isinstance(sdata, SpatialData):
        return {"slide": sdata}
    named = dict(sdata) if isinstance(sdata, Mapping) else {f"slide_{i}": one for i, one in enumerate(sdata)}
    if not named:
        raise ValueError("No slide was given: pass a SpatialData, or a list or dict of them.")
    return named
