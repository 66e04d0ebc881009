"""Plots of the H&E, its tissue and the expression on it."""

from pixel2gene.pl._alignment import alignment
from pixel2gene.pl._calibration import calibration
from pixel2gene.pl._expression import expression
from pixel2gene.pl._tissue import tissue

__all__ = ["alignment", "calibration", "expression", "tissue"]
