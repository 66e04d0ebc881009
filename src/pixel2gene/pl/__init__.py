"""Plots of slides, of the results on them, and of models."""

from pixel2gene.pl._accuracy import accuracy
from pixel2gene.pl._alignment import alignment
from pixel2gene.pl._calibration import calibration
from pixel2gene.pl._clusters import clusters
from pixel2gene.pl._embedding import embedding
from pixel2gene.pl._expression import expression
from pixel2gene.pl._tissue import tissue
from pixel2gene.pl._training import training
from pixel2gene.pl._trust import trust

__all__ = ["accuracy", "alignment", "calibration", "clusters", "embedding", "expression", "tissue", "training", "trust"]
