"""Whether what a file says is of the types that it should be."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require_types(value: Any) -> None:
    """Refuse a dataclass of which a field is not as annotated, those in its fields included.

    Raises
    ------
    ValueError
        Names the field.
    """
    for name, hint in get_type_hints(type(value)).items():
        found = getattr(value, name)
        if not _conforms(found, hint):
            raise ValueError(f"its {name} is {str(found)[:40]!r}, which is no {hint}")
        for one in found if isinstance(found, list) else [found]:
            if dataclasses.is_dataclass(one):
                require_types(one)


def _conforms(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_conforms(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is dict:
        return isinstance(value, dict) and all(
            _conforms(key, arguments[0]) and _conforms(one, arguments[1]) for key, one in value.items()
        )
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_conforms(one, arguments[0]) for one in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    kind = origin or hint
    # An alias, as that of arrays in some versions of numpy, says nothing.
    return not isinstance(kind, type) or isinstance(value, kind)
