"""Readers of formats that the ecosystem has none for."""

from pixel2gene.io._folder import folder
from pixel2gene.io._legacy_st import legacy_st

__all__ = ["folder", "legacy_st"]
