from __future__ import annotations

import os

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Ellipse

from pixel2gene.core.alignment import Alignment
from pixel2gene.pl._raster import save_figure

_MARK = "#d62728"
_NONE = "#00a0d0"  # seen on black and on white


def alignment(found: Alignment, *, ax: Axes | None = None, save: str | os.PathLike[str] | None = None) -> Axes:
    """Draw the correlation of counts with the H&E over the shifts by which they could lie off.

    The dashed circle is half a bin around no shift: with its peak inside, counts are aligned. The peak is drawn with
    two standard deviations each way, if there is a clear one.

    Parameters
    ----------
    found
        From :func:`pixel2gene.tl.check_alignment`.
    ax
        Axes to draw on; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes, in µm.

    Examples
    --------
    >>> ax = p2g.pl.alignment(p2g.tl.check_alignment(sdata, "he", "counts", progress=False))
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
    half = (found.shifts[1] - found.shifts[0]) / 2
    ends = found.shifts[0] - half, found.shifts[-1] + half
    picture = ax.imshow(found.correlation, extent=(*ends, *ends[::-1]), cmap="Greys_r")
    ax.axhline(0, color=_NONE, linewidth=0.5)
    ax.axvline(0, color=_NONE, linewidth=0.5)
    ax.add_patch(Circle((0, 0), found.bin_um / 2, fill=False, color=_NONE, linestyle="--"))
    (dx, dy), (sd_x, sd_y) = found.shift, found.sd
    if found.known:
        ax.add_patch(Ellipse((dx, dy), 4 * sd_x, 4 * sd_y, fill=False, color=_MARK))
    ax.plot(dx, dy, "+", color=_MARK)
    verdict = f"({dx:+.1f} ± {sd_x:.1f}, {dy:+.1f} ± {sd_y:.1f}) µm" if found.known else "no clear peak"
    ax.set(xlim=ends, ylim=ends[::-1], title=verdict)
    ax.set(xlabel="counts lie to the right by (µm)", ylabel="counts lie below by (µm)")
    ax.figure.colorbar(picture, ax=ax, label="correlation with the H&E")
    save_figure(ax, save)
    return ax
