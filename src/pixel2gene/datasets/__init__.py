"""Data to try things on: simulated slides with known truth, and a public section of breast cancer."""

from pixel2gene.datasets._artefacts import plant_artefact
from pixel2gene.datasets._her2st import her2st
from pixel2gene.datasets._simulate import simulate
from pixel2gene.datasets._truth import true_counts

__all__ = ["her2st", "plant_artefact", "simulate", "true_counts"]
