"""One slide or several, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spatialdata import SpatialData

from pixel2gene.spatial.store import require_spatialdata


@dataclass(frozen=True)
class Capture:
    """Counts that were measured on a slide, one of several perhaps."""

    slide: str
    table_key: str
    described: str


def by_name(sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData]) -> dict[str, SpatialData]:
    """Name the slides: a single one ``slide``, those of a list ``slide_0``, ``slide_1`` and so on.

    Raises
    ------
    ValueError
        If there is no slide.
    TypeError
        If one is no SpatialData.
    """
    if isinstance(sdata, SpatialData):
        return {"slide": sdata}
    if isinstance(sdata, str) or not isinstance(sdata, Mapping | Sequence):
        require_spatialdata(sdata)
    named = dict(sdata) if isinstance(sdata, Mapping) else {f"slide_{i}": one for i, one in enumerate(sdata)}
    if not named:
        raise ValueError("No slide was given: pass a SpatialData, or a list or dict of them.")
    for name, one in named.items():
        require_spatialdata(one, f"Slide {name!r}")
    return named


def captures_of(slides: Mapping[str, SpatialData], table_key: str | Sequence[str]) -> dict[str, Capture]:
    """Name the captures: by their slide, or by slide and table where a slide has several.

    A single key is looked for on every slide; of several, each slide has some.

    Raises
    ------
    KeyError
        If a slide has none of several tables, or none has one of them.
    ValueError
        If no table is named, or one twice.
    """
    keys = list(table_key) if isinstance(table_key, Sequence) and not isinstance(table_key, str) else [table_key]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"The tables {keys} were given: name at least one in table_key, and none twice.")
    captures = {}
    for slide, sdata in slides.items():
        found = keys if len(keys) == 1 else [key for key in keys if key in sdata.tables or key in sdata.points]
        if not found:
            raise KeyError(
                f"The slide {slide!r} has none of the tables {keys}; there are {[*sdata.tables, *sdata.points]}."
            )
        for key in found:
            name = slide if len(found) == 1 else f"{slide}/{key}"
            captures[name] = Capture(slide, key, key if len(slides) == 1 else f"{key} of {slide}")
    missing = sorted(set(keys) - {one.table_key for one in captures.values()})
    if missing:
        there = sorted({key for sdata in slides.values() for key in (*sdata.tables, *sdata.points)})
        raise KeyError(f"No slide has the tables {missing}; there are {there}.")
    return captures
