"""Read gene expression off the H&E: denoise, complete and predict spatial transcriptomics."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixel2gene import datasets, io, pl, tl
    from pixel2gene.core.encoders.registry import encoders
    from pixel2gene.core.model import Model

__version__ = version("pixel2gene")
__all__ = ["Model", "__version__", "datasets", "encoders", "io", "pl", "tl"]

_MODULES = {"datasets", "io", "pl", "tl"}


def __getattr__(name: str) -> Any:
    # torch and SpatialData take seconds to import: on first use, not before.
    if name in _MODULES:
        return import_module(f"pixel2gene.{name}")
    if name == "Model":
        return import_module("pixel2gene.core.model").Model
    if name == "encoders":
        return import_module("pixel2gene.core.encoders.registry").encoders
    raise AttributeError(f"module 'pixel2gene' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
