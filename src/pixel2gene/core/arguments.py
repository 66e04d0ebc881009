"""Arguments that several verbs take, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def require_number(name: str, value: Any) -> None:
    """Refuse what is no number; None stands for the default.

    Raises
    ------
    ValueError
        If it is text or something else, or NaN.
    """
    if value is not None and (not isinstance(value, Real) or value != value):
        raise ValueError(f"{name}={value!r} is no number; pass one, or leave it out.")


def require_whole(name: str, value: Any, least: int = 0) -> None:
    """Refuse what is no whole number, or too small; None stands for the default.

    Raises
    ------
    ValueError
        Says what is expected.
    """
    if value is not None and (not isinstance(value, Integral) or value < least):
        raise ValueError(f"{name}={value!r} given; a whole number of at least {least} is expected.")


def require_genes(genes: Sequence[str] | None) -> None:
    """Refuse what is no list of different genes; None stands for all of them.

    Raises
    ------
    ValueError
        If it is one gene as text, none, or a gene is named twice.
    """
    if genes is None:
        return
    if isinstance(genes, str):
        raise ValueError(f"genes={genes!r} is text; a list of genes is expected: pass genes=[{genes!r}].")
    names = list(genes)
    if not names:
        raise ValueError("genes= names no gene: name some, or leave it out for all.")
    twice = sorted({str(name) for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"genes= names {twice[:5]} more than once: name each once.")
