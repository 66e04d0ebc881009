from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.spatial.aggregation import aggregate as sum_over
from pixel2gene.spatial.aggregation import find_elements, find_expression
from pixel2gene.spatial.elements import require_new, table_element, write_elements
from pixel2gene.spatial.geometry import affine
from pixel2gene.spatial.provenance import digests, made_by
from pixel2gene.spatial.store import alone

UNIT = "expected counts in the covered part of each element"


@alone
def aggregate(
    sdata: SpatialData,
    key: str,
    elements_key: str,
    *,
    genes: Sequence[str] | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Sum predicted or denoised expression over cells, nuclei, spots or annotated regions.

    The expected count of an element is the sum over superpixels of what ``images[f"{key}_map"]`` holds, each by the
    share of it that the element covers. So elements that tile the slide add up to the total of the map, and
    elements that overlap count what they share twice. Within a superpixel expression is taken as even: nucleus and
    cytoplasm in one superpixel differ by area alone.

    Where the map has no values (off the tissue; for denoised expression, where nothing was measured) nothing is known
    and nothing is counted. ``obs["covered"]`` is the share of an element's area that has values; an element that has
    none is left out, as :func:`pixel2gene.tl.denoise` leaves out units off the tissue.

    The standard deviation supposes that all superpixels of an element are missed together, in the same direction: it
    is the sum of theirs. That is right for what the model gets wrong about a place, hence for cells; it is an upper
    bound for regions, over which errors cancel in part, and for the noise of denoised units, which is each unit's
    own. Denoised units spread theirs evenly over their area.

    Parameters
    ----------
    sdata
        Holds the result and the elements, in a coordinate system that they share with the H&E.
    key
        Of the result of `pixel2gene.tl.predict`, also with ``lazy=True``, or `pixel2gene.tl.denoise`. Genes and units
        that were dropped from its table are left out here; normalised or otherwise changed values of its X do not
        matter.
    elements_key
        Shapes (polygons or circles), or labels.
    genes
        To sum, all by default.
    key_added
        Name of the new table, ``f"{key}_{elements_key}"`` by default.
    overwrite
        Replace a result of that name.
    progress
        Show a progress bar.

    Returns
    -------
    None. Adds ``tables[key_added]``, elements x genes, linked to the elements: expected counts in X, their standard
    deviation in ``layers["sd"]``, ``obs["covered"]``, the centres of the elements in full-resolution pixels of the
    H&E in ``obsm["spatial"]``, and what ``tables[key]`` has in ``var``, as the held-out scores of the genes.

    Raises
    ------
    KeyError
        If there is no such result, or there are no such shapes, labels or genes.
    ValueError
        If the elements are empty, named more than once, or all without values; or the result exists.
    MemoryError
        If the result does not fit into the memory that is free.

    Examples
    --------
    >>> p2g.tl.predict(sdata, model, progress=False)
    >>> p2g.tl.aggregate(sdata, "predicted", "square_008um", progress=False)
    >>> bool((sdata["predicted_square_008um"].obs["covered"] > 0).all())
    True
    """
    expression = find_expression(sdata, key, genes)
    elements = find_elements(sdata, elements_key)
    key_added = key_added or f"{key}_{elements_key}"
    require_new(sdata, {key_added: "tables"}, overwrite)
    image_key = expression.record["image_key"]
    to_pixels = affine(sdata, elements_key, image_key)

    result = sum_over(sdata, expression, elements_key, elements, progress)
    kept = result.covered > 0
    if not kept.any():
        raise ValueError(
            f"None of the {len(kept)} elements of {elements_key!r} overlaps the values of {expression.map_key!r}: "
            f"check that they are aligned to image {image_key!r} and lie on its tissue."
        )
    centres = elements.centres @ to_pixels[:2, :2].T + to_pixels[:2, 2]
    table = ad.AnnData(
        result.mean if kept.all() else result.mean[kept],
        obs=pd.DataFrame({"covered": result.covered[kept]}, index=elements.ids[kept].astype(str)),
        var=expression.scores,
        layers={"sd": result.sd if kept.all() else result.sd[kept]},
    )
    table.obsm["spatial"] = centres[kept]
    record = {
        "verb": "aggregate",
        "version": __version__,
        "key": key,
        "image_key": image_key,
        "elements_key": elements_key,
        "unit": UNIT,
        "elements_without_values": int(np.sum(~kept)),
    }
    table.uns["pixel2gene"] = dict(record)
    linked = table_element(table, elements_key, elements.ids[kept])
    record |= made_by(
        {"key": key, "elements_key": elements_key, "genes": genes, "key_added": key_added},
        digests(sdata, image_key, [elements_key]),
    )
    write_elements(sdata, {key_added: linked}, record, progress=False, label="aggregate")
