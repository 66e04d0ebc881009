from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import anndata as ad
import numpy as np
from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.core.arguments import require_whole
from pixel2gene.core.ceiling import bounded_message
from pixel2gene.core.denoising import denoise_counts
from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model
from pixel2gene.spatial.denoised import denoised_map
from pixel2gene.spatial.elements import (
    get_table,
    image_element,
    labels_element,
    require_new,
    table_element,
    write_elements,
)
from pixel2gene.spatial.memory import require_memory
from pixel2gene.spatial.modelled import (
    chosen_genes,
    counts_key,
    layer_of,
    measure_for_model,
    open_for_model,
    slide_measurement,
    training_slide,
)
from pixel2gene.spatial.platform import without_effects
from pixel2gene.spatial.provenance import digests, made_by
from pixel2gene.spatial.store import alone, store_of

UNIT = "expected counts per unit"
# Twelve numbers in single precision, as `benchmarks/memory.py denoise` measures.
VALUE_BYTES = 48
# Of a value of the map, in half precision.
MAP_BYTES = 2
REMEDY = "name fewer genes, set min_score=, or work on a SpatialData in a store"


@alone
def denoise(
    sdata: SpatialData,
    model: Model,
    *,
    genes: Sequence[str] | None = None,
    min_score: float | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    layer: str | None = None,
    embedding_key: str | None = None,
    key_added: str = "denoised",
    overwrite: bool = False,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Denoise what was measured: weigh each count against what the H&E and the neighbours let expect there.

    The H&E's expectation is the mean over all members. Neighbours correct it by what was counted around over what it
    expected there, and the other genes of a unit by what they have in common with it; the rate of a unit is gamma
    distributed around that. How far each source is trusted is learnt per
    gene, on units that neither the members nor the neighbours that predict them have seen, and genes of few counts
    lean on the others (see "Denoising" in the documentation of the method).

    What the platform did to the counts is undone, as far as it is clear: stripes of rows and columns of bins, molecules
    that drifted, capture that varies over the slide. ``uns["pixel2gene"]["platform"]`` says how much of each was
    found, 0 where none, and ``obs["efficiency"]`` what a unit catches in relation to the mean.

    Parameters
    ----------
    sdata
        Slide with counts and an embedding like that of the training.
    model
        From `pixel2gene.tl.fit`.
    genes, min_score
        To denoise, as in `pixel2gene.tl.predict`: all of the model's by default. They are what "the other genes" are
        taken from.
    table_key, image_key, layer, embedding_key
        Those of the training by default.
    key_added
        Name of the results.
    overwrite
        Replace results of that name.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.
    seed
        Of the units that the weights are learnt on, where there are over 20,000.
    progress
        Show a progress bar.

    Returns
    -------
    None. Adds ``tables[key_added]``: units on tissue x those genes of the model that were measured, linked to the same
    elements as the counts, in expected counts per unit. X and ``layers["sd"]`` are the posterior mean and standard
    deviation given all three sources; ``layers["expected"]`` is what histology and neighbours expect, without the
    unit's own count and so without its noise, and ``layers["expected_sd"]`` how far the truth may lie from it. ``var``
    has the held-out scores, the average weights of the sources in X (``weight_histology``, ``weight_neighbours``,
    ``weight_own``) and the ``shape`` of the gamma distribution of a unit around its expectation.

    Adds ``images[f"{key_added}_map"]``: (genes, y, x) float16, expected counts per superpixel of tissue where units
    were measured, and between them, also in holes that they enclose, by histology and neighbours; NaN elsewhere. For
    transcripts, whose units are superpixels, also ``labels[f"{key_added}_superpixels"]``.

    Raises
    ------
    KeyError
        If there is no such table, layer or embedding, or none of the model's genes was measured.
    ValueError
        If the embedding is of another encoder or scale than the model's, the values are no counts, no gene reaches
        `min_score`, or a result exists.
    MemoryError
        If the result does not fit into the memory that is free.

    Warns
    -----
    UserWarning
        If rates that the H&E lets expect are far beyond all that was measured in training. They are bounded there, and
        ``uns["pixel2gene"]["bounded"]`` is their number, at least.

    Examples
    --------
    >>> p2g.tl.denoise(sdata, model, progress=False)
    >>> sorted(name for name in sdata["denoised"].layers if name)
    ['expected', 'expected_sd', 'sd']
    >>> sources = sdata["denoised"].var[["weight_histology", "weight_neighbours", "weight_own"]]
    >>> bool((sources.sum(axis=1) - 1).abs().max() < 1e-4)
    True
    """
    require_whole("seed", seed)
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    source = counts_key(model, table_key)
    grid = embedded.grid
    keys = [key_added, f"{key_added}_map", f"{key_added}_superpixels"]
    # Transcripts are counted per superpixel.
    kinds = ("tables", "images", "labels") if source in sdata.points else ("tables", "images")
    require_new(sdata, dict(zip(keys, kinds, strict=False)), overwrite)
    chosen_device = choose_device(device)
    model.network.to(chosen_device)
    model = model.of_genes(chosen_genes(model, genes, min_score))
    model, units, measured = measure_for_model(sdata, model, embedded, table_key, layer)
    # Into a store, the map is written block by block.
    map_bytes = MAP_BYTES * grid.size if store_of(sdata) is None else 0
    require_memory(len(measured.rows), len(model.genes), VALUE_BYTES, REMEDY, map_bytes)
    data, measured = slide_measurement(model, embedded, measured, table_key, chosen_device)

    undisturbed = without_effects(data, measured)
    result = denoise_counts(model.network, data, undisturbed, measured.centres, chosen_device, seed)
    filled = denoised_map(model.network, undisturbed, measured, result, grid, chosen_device)
    if (bounded := filled.bounded()).any():
        warnings.warn(bounded_message(bounded, model.genes), stacklevel=3)
    table = ad.AnnData(
        result.mean,
        var=model.scores.assign(
            weight_histology=result.histology,
            weight_neighbours=result.neighbours,
            weight_own=result.own,
            shape=result.shape,
        ),
        layers={"sd": result.sd, "expected": result.expected, "expected_sd": result.expected_sd},
    )
    record = {
        "verb": "denoise",
        "version": __version__,
        "image_key": embedded.image_key,
        "table_key": source,
        "unit": UNIT,
        "encoder": model.encoder["name"],
        "trained_on_this_slide": training_slide(model, embedded) is not None,
        "platform": asdict(measured.platform),
        "bounded": int(bounded.sum()),
    }
    table.uns["pixel2gene"] = dict(record)
    record |= {"fit": model.fitted} | made_by(
        {
            "genes": genes,
            "min_score": min_score,
            "table_key": table_key,
            "image_key": image_key,
            "layer": layer,
            "embedding_key": embedding_key,
            "key_added": key_added,
            "seed": seed,
        },
        digests(
            sdata,
            embedded.image_key,
            [source],
            layer_of(model, table_key, layer),
            image=embedded.record["fingerprint"],
        ),
        chosen_device,
    )
    elements: dict[str, Any] = {keys[1]: image_element(filled.raster(), grid, model.genes)}
    if units.superpixels is not None:
        ids = units.superpixels[measured.rows] + 1
        mask = np.isin(np.arange(1, grid.size + 1), ids).reshape(grid.shape)
        table.obs_names = ids.astype(str).tolist()
        table.obsm["spatial"] = grid.centres[ids - 1] * grid.factor
        elements[keys[2]] = labels_element(grid.ids(mask), grid)
        table = table_element(table, keys[2], ids)
    else:
        original = get_table(sdata, source)
        table.obs = original.obs.iloc[measured.rows].copy()  # type: ignore[assignment]
        table.uns["spatialdata_attrs"] = dict(original.uns["spatialdata_attrs"])
        if "spatial" in original.obsm:
            table.obsm["spatial"] = original.obsm["spatial"][measured.rows]
    table.obs["efficiency"] = measured.efficiency.astype(np.float32)
    elements[keys[0]] = table
    write_elements(sdata, elements, record, progress=progress, label="denoise")
