"""What the platform did to the counts: stripes of bins, drift of molecules, and capture that varies over the slide.

Each is estimated from totals of the units, and kept only if it foretells totals that it was not estimated from.
"""

from pixel2gene.core.platform.capture import Capture, capture_field
from pixel2gene.core.platform.diffusion import Diffusion, blur, diffusion_width
from pixel2gene.core.platform.effects import NO_EFFECTS, Platform
from pixel2gene.core.platform.stripes import Lines, Stripes, stripes

__all__ = [
    "NO_EFFECTS",
    "Capture",
    "Diffusion",
    "Lines",
    "Platform",
    "Stripes",
    "blur",
    "capture_field",
    "diffusion_width",
    "stripes",
]
