"""Errors of libraries, said again in our words."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says, without its advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
