"""Readers of formats that the ecosystem has none for."""

from pixel2gene.io._legacy_st import legacy_st

__all__ = ["legacy_st"]
