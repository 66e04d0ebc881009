from __future__ import annotations

import warnings

from spatialdata import SpatialData

from pixel2gene.core.alignment import Alignment
from pixel2gene.core.arguments import require_number
from pixel2gene.spatial.alignment import measure_alignment, mirrored
from pixel2gene.spatial.pixel_size import pixel_size

# By which the correlation is better if counts are mirrored, to say that they are.
CLEAR = 0.1


def check_alignment(
    sdata: SpatialData,
    image_key: str,
    table_key: str,
    *,
    layer: str | None = None,
    max_shift: float = 100.0,
    mpp: float | None = None,
    force: bool = False,
    progress: bool = True,
) -> Alignment:
    """Check whether counts lie where the H&E says that they should.

    The density of counts is compared with that of haematoxylin and eosin at every shift of up to `max_shift`, and at
    rotations of up to 2° (less on slides over 2 mm, whose edges would move too far). Where they agree best is where the
    counts belong. Warns if they lie off by more than half a bin and by more than three standard deviations, and if
    there is no clear peak; then it also tries flipped, swapped and turned counts. Only reports, and moves nothing: to
    correct an offset, compose the transformation of the measured elements with its opposite
    (``spatialdata.transformations.set_transformation``).

    Parameters
    ----------
    sdata
        Holds the image and the counts.
    image_key
        8-bit RGB or RGBA image.
    table_key
        Table of counts on bins, spots or cells, or points with the transcripts themselves. Cells that were segmented on
        the H&E itself lie right whatever the transcripts do: give the transcripts.
    layer
        Layer of the table with the counts; X by default.
    max_shift
        Largest shift to look at, in µm.
    mpp, force
        As in `pixel2gene.tl.tissue`.
    progress
        Show a progress bar.

    Returns
    -------
    What was found, which :func:`pixel2gene.pl.alignment` draws:

    ``shift``, ``sd``
        How far the centre of the counts lies to the right of where it belongs, and below, in µm, and its standard
        deviation, by the jackknife over regions of the slide.
    ``rotation``, ``rotation_sd``
        How far the counts are turned clockwise, in degrees.
    ``known``
        Whether there is a clear peak.
    ``off``
        Whether the counts lie off by more than half a bin and by more than chance.
    ``bin_um``, ``shifts``, ``correlation``
        Side of a bin in µm, the shifts looked at in µm, and the multiple correlation at each (y, x).

    Raises
    ------
    KeyError
        If there is no such image, table, points element or layer.
    ValueError
        If the image is no 8-bit RGB or its pixel size is unknown or implausible, the values are no counts, fewer than
        50 units lie on the image, or `max_shift` is below 20 µm.

    Examples
    --------
    >>> found = p2g.tl.check_alignment(sdata, "he", "counts", progress=False)
    >>> bool(found.off)
    False
    """
    require_number("max_shift", max_shift)
    if not max_shift >= 20:
        raise ValueError(f"max_shift={max_shift} given; 20 µm or more are expected, to tell a peak from its sides.")
    mpp = pixel_size(sdata, image_key, mpp=mpp, force=force)
    found = measure_alignment(sdata, image_key, table_key, mpp, layer=layer, max_shift=max_shift, progress=progress)
    (dx, dy), (sd_x, sd_y) = found.shift, found.sd
    if not found.known:
        ways = mirrored(sdata, image_key, table_key, mpp, layer=layer, progress=progress)
        best = max(ways, key=lambda way: ways[way])
        # By chance, the best of all shifts agrees better than any of the few ways.
        if ways[best] > found.correlation.max() + CLEAR:
            message = (
                f"{table_key!r} and image {image_key!r} seem to be mirrored: {best} the counts would agree with the "
                f"image far better (correlation {ways[best]:.2f}, not {ways['as they are']:.2f}). Correct the "
                "transformation, or the image."
            )
        else:
            message = (
                f"How {table_key!r} is aligned to image {image_key!r} cannot be told: no shift of up to {max_shift:g} "
                "µm stands out. Look at both (pixel2gene.pl.expression), or raise max_shift."
            )
        warnings.warn(message, stacklevel=2)
    elif found.off:
        warnings.warn(
            f"{table_key!r} seems to lie {dx:+.1f} ± {sd_x:.1f} µm in x and {dy:+.1f} ± {sd_y:.1f} µm in y from where "
            f"image {image_key!r} says, turned by {found.rotation:+.2f} ± {found.rotation_sd:.2f}°: more than half a "
            f"bin of {found.bin_um:.3g} µm. Look at it (pixel2gene.pl.alignment) and correct the transformation.",
            stacklevel=2,
        )
    return found
