"""What a command says: a summary on stdout, all else on stderr, and for errors of the user one sentence and code 1."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import typer

USER_ERRORS = (ImportError, KeyError, MemoryError, ValueError, OSError)


def say(text: str) -> None:
    """Tell what goes on."""
    typer.secho(text, bold=True, err=True)


def progress() -> bool:
    """Bars are for people, not for the logs of a workflow."""
    return sys.stderr.isatty()


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what the user can mend into one sentence and exit code 1."""
    try:
        # What verbs and libraries print must not end up in the JSON.
        with redirect_stdout(sys.stderr):
            yield
    except USER_ERRORS as error:
        # A KeyError prints its message in quotes.
        typer.echo(f"pixel2gene: {error.args[0] if isinstance(error, KeyError) else error}", err=True)
        raise typer.Exit(1) from None


def show(summary: Mapping[str, Any], as_json: bool) -> None:
    """Print a summary on stdout."""
    typer.echo(json.dumps(_plain(summary), indent=1) if as_json else "\n".join(_lines(_plain(summary))))


def _plain(value: Any) -> Any:
    """Only what JSON knows: no NaN, no scalars of numpy."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _lines(summary: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in summary.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")
        elif value not in (None, [], {}):
            yield f"{indent}{key}: {_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
