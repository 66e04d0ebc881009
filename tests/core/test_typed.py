from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pixel2gene.core.typed import require_types


@dataclass
class Part:
    share: float = 0.5


@dataclass
class Whole:
    names: list[str] = field(default_factory=lambda: ["a"])
    number: int = 1
    sizes: tuple[int, ...] = (1, 2)
    keys: dict[str, str | None] = field(default_factory=lambda: {"a": None})
    parts: list[Part] = field(default_factory=lambda: [Part()])
    how: Literal["well", "badly"] = "well"
    more: Any = None


def test_what_is_as_annotated_passes():
    require_types(Whole())
    require_types(Whole(parts=[Part(1)], more=object()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("names", "a"),
        ("names", ["a", 1]),
        ("number", True),
        ("number", 1.0),
        ("sizes", [1, 2]),
        ("sizes", (1, "2")),
        ("keys", {"a": 1}),
        ("keys", []),
        ("parts", [1]),
        ("how", "so"),
    ],
)
def test_other_types_are_refused(name, value):
    with pytest.raises(ValueError, match=f"its {name} is "):
        require_types(Whole(**{name: value}))


@pytest.mark.parametrize("share", ["0.5", None, float("nan"), float("inf"), False])
def test_parts_are_looked_at(share):
    with pytest.raises(ValueError, match="its share is "):
        require_types(Whole(parts=[Part(), Part(share)]))
