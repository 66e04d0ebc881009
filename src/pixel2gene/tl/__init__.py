"""Tools: from tissue to predicted and denoised expression."""

from pixel2gene.tl._aggregate import aggregate
from pixel2gene.tl._calibration import calibration
from pixel2gene.tl._check_alignment import check_alignment
from pixel2gene.tl._cross_validate import cross_validate
from pixel2gene.tl._denoise import denoise
from pixel2gene.tl._embed import embed
from pixel2gene.tl._evaluate import evaluate
from pixel2gene.tl._fit import fit
from pixel2gene.tl._open_map import open_map
from pixel2gene.tl._predict import predict
from pixel2gene.tl._tissue import tissue

__all__ = [
    "aggregate",
    "calibration",
    "check_alignment",
    "cross_validate",
    "denoise",
    "embed",
    "evaluate",
    "fit",
    "open_map",
    "predict",
    "tissue",
]
