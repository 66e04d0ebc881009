from __future__ import annotations

import numpy as np
from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.core.tissue import is_dark, tissue_mask
from pixel2gene.spatial.elements import compute, labels_element, require_new, write_elements
from pixel2gene.spatial.grid import SUPERPIXEL_UM, superpixel_grid
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.pixel_size import pixel_size
from pixel2gene.spatial.provenance import digests, made_by
from pixel2gene.spatial.raster import lazy_statistics
from pixel2gene.spatial.store import alone


@alone
def tissue(
    sdata: SpatialData,
    image_key: str,
    *,
    mpp: float | None = None,
    force: bool = False,
    key_added: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Find the tissue on an H&E.

    A superpixel (8 µm) is tissue where it is denser than the glass by more than Otsu's threshold, or paler but
    textured; pieces and holes of under 10 superpixels are dropped and filled.

    Parameters
    ----------
    sdata
        Holds the image.
    image_key
        8-bit RGB or RGBA image.
    mpp
        µm per full-resolution pixel. Derived from the coordinate systems, bins and spots where they tell it, and
        then only checked.
    force
        Accept a pixel size that the data contradict, or that is coarser than 1 µm.
    key_added
        Name of the result, ``f"{image_key}_tissue"`` by default.
    overwrite
        Replace a result of that name.
    progress
        Show a progress bar.

    Returns
    -------
    None. Adds ``labels[key_added]``: on the superpixel grid, 1 for tissue and 0 for background. The pixel size is
    recorded in ``sdata.attrs["pixel2gene"][key_added]``.

    Raises
    ------
    KeyError
        If there is no such image.
    ValueError
        If the image is no 8-bit RGB or no H&E, or cannot be decoded, its pixel size is unknown or implausible, there is
        no tissue on it, or the result exists.

    Examples
    --------
    >>> sdata = p2g.datasets.simulate(size=(512, 512), n_genes=5)
    >>> p2g.tl.tissue(sdata, "he")
    he: 0.5 µm/px, 0.0... mm² of tissue
    >>> sdata["he_tissue"].shape  # superpixels
    (32, 32)
    """
    slide = open_image(sdata, image_key)
    key_added = key_added or f"{image_key}_tissue"
    require_new(sdata, {key_added: "labels"}, overwrite)
    arguments = {"image_key": image_key, "mpp": mpp, "force": force, "key_added": key_added}
    mpp = pixel_size(sdata, image_key, mpp=mpp, force=force)
    grid = superpixel_grid(sdata, image_key, mpp)
    statistics = compute(lazy_statistics(slide, grid.shape, mpp), "tissue", progress)
    if is_dark(statistics):
        raise ValueError(
            f"Nothing on image {image_key!r} is bright, so it is fluorescence and no H&E: load the bright-field image."
        )
    mask = tissue_mask(statistics)
    if not mask.any():
        raise ValueError(
            f"No tissue was found on image {image_key!r} ({mpp:.4g} µm/px): if there is some, draw it as labels or "
            "shapes and pass their name as tissue_key to pixel2gene.tl.embed."
        )
    record = {
        "verb": "tissue",
        "version": __version__,
        "image_key": image_key,
        "mpp": mpp,
        "superpixel_um": SUPERPIXEL_UM,
        "force": force,
        **made_by(arguments, digests(sdata, image_key, [])),
    }
    element = labels_element(mask.astype(np.uint8), grid)
    write_elements(sdata, {key_added: element}, record, progress=False, label="tissue")
    if progress:
        print(f"{image_key}: {mpp:.4g} µm/px, {mask.sum() * (SUPERPIXEL_UM / 1000) ** 2:.2f} mm² of tissue")
