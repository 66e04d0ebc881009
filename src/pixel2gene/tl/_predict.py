from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from spatialdata import SpatialData
from tqdm.auto import tqdm

from pixel2gene import __version__
from pixel2gene.core.ceiling import bounded_message, bounded_places_message, count_bounded
from pixel2gene.core.device import choose_device
from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.model import Model
from pixel2gene.core.regression import predict_rates
from pixel2gene.core.uncertainty import truth_sd
from pixel2gene.spatial.elements import (
    compute,
    image_element,
    labels_element,
    require_new,
    rows_as_raster,
    table_element,
    write_elements,
)
from pixel2gene.spatial.embedded import Embedded
from pixel2gene.spatial.latent import (
    LATENT_SIDE,
    lazy_latents,
    lazy_trust,
    link_of,
    open_latent_map,
    outputs_of,
)
from pixel2gene.spatial.memory import require_memory
from pixel2gene.spatial.modelled import chosen_genes, open_for_model, slide_depth, training_slide
from pixel2gene.spatial.provenance import digests, made_by
from pixel2gene.spatial.store import alone

UNIT = "expected counts per superpixel of 8 µm"
# Mean and standard deviation, in single precision.
VALUE_BYTES = 8
REMEDY = (
    "name fewer genes, set min_score=, or pass lazy=True, which makes no table and computes the raster of a gene when "
    "it is looked at"
)


@alone
def predict(
    sdata: SpatialData,
    model: Model,
    *,
    genes: Sequence[str] | None = None,
    min_score: float | None = None,
    lazy: bool = False,
    image_key: str | None = None,
    embedding_key: str | None = None,
    key_added: str = "predicted",
    overwrite: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Predict expression wherever the H&E shows tissue.

    Parameters
    ----------
    sdata
        Slide with an embedding like that of the training; counts are not needed.
    model
        From `pixel2gene.tl.fit`.
    genes
        To predict, all of the model's by default.
    min_score
        Leave out genes whose held-out ``pearson`` in ``model.scores`` is lower or NaN, also of those asked for.
    lazy
        For whole transcriptomes, and slides whose table does not fit into memory: keep what all genes have in common,
        and compute the raster of a gene when it is looked at.
    image_key, embedding_key
        Those of the training by default.
    key_added
        Name of the results.
    overwrite
        Replace results of that name.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.
    progress
        Show a progress bar.

    Returns
    -------
    None. Adds, in expected counts per superpixel (at the depth of the slide if the model was trained on it, else at
    the mean depth of the training slides):
    ``tables[key_added]``, tissue superpixels x genes, with the held-out scores of each gene in ``var`` and in
    ``layers["sd"]`` how far the true rate may lie from the predicted one, by the spread between the members and by what
    held-out units were missed by; ``labels[f"{key_added}_superpixels"]``, which it annotates;
    ``images[f"{key_added}_map"]``, (genes, y, x) float16, NaN outside the tissue.
    Also ``images[f"{key_added}_trust"]``, (1, y, x) float16, NaN outside the tissue, and the same in ``obs["trust"]``:
    how familiar the H&E is to the model. It is the share of training tissue that, held out, is at least as unlike the
    rest of it (`pixel2gene.core.trust.Familiarity`): evenly between 0 and 1 on tissue like that, near 0 on ink, blur,
    folds, another stain or other tissue.

    With `lazy`, the table has neither X nor standard deviations, and instead of the map there is
    ``images[f"{key_added}_latent"]``, (members * width, y, x) float16, the last hidden units of the network;
    ``varm["outputs"]`` has the weights that make rates of them. ``images[f"{key_added}_map"]`` is then in memory only,
    see `pixel2gene.tl.open_map`; ``sdata.write`` writes all of it, unless it is deleted before.

    Raises
    ------
    KeyError
        If there is no such embedding, or the model lacks a gene.
    ValueError
        If the embedding is of another encoder or scale than the model's, a result exists, or no gene reaches
        `min_score`.
    MemoryError
        If the table does not fit into the memory that is free.

    Warns
    -----
    UserWarning
        If predicted rates are far beyond all that was measured in training. They are bounded there, and
        ``uns["pixel2gene"]["bounded"]`` is their number; with `lazy` that of superpixels, at least.

    Examples
    --------
    >>> p2g.tl.predict(sdata, model, genes=model.genes[:3], progress=False)
    >>> sdata["predicted"].n_vars
    3
    >>> sdata["predicted_map"].dims
    ('c', 'y', 'x')
    >>> familiar = sdata["predicted"][sdata["predicted"].obs["trust"] > 0.05]
    """
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    keys = [key_added, *(f"{key_added}_{what}" for what in ("superpixels", "trust", "latent" if lazy else "map"))]
    # A lazy map is on disk only if the user wrote it.
    other = f"{key_added}_{'map' if lazy else 'latent'}"
    kinds = ("tables", "labels", "images", "images", "images")
    require_new(sdata, dict(zip([*keys, other], kinds, strict=True)), overwrite)
    model = model.of_genes(chosen_genes(model, genes, min_score))
    depth = slide_depth(model, embedded)
    chosen_device = choose_device(device)
    network = model.network.to(chosen_device)
    grid, superpixels = embedded.grid, embedded.statistics.superpixels
    tissue = np.zeros(grid.size, bool)
    tissue[superpixels] = True
    record = {
        "verb": "predict",
        "version": __version__,
        "image_key": embedded.image_key,
        "unit": UNIT,
        "encoder": model.encoder["name"],
        "training_slides": [s.name for s in model.slides],
        "trained_on_this_slide": training_slide(model, embedded) is not None,
    }
    if lazy:
        head = network.head().cpu()
        record |= link_of(head, depth)
        table = ad.AnnData(obs=pd.DataFrame(index=(superpixels + 1).astype(str)), var=model.scores)
        table.varm["outputs"] = outputs_of(head)
        latents = lazy_latents(embedded, network, chosen_device)
        chunks = (latents.shape[0], LATENT_SIDE, LATENT_SIDE)
        raster = image_element(latents, grid, _latent_names(head), chunks=chunks)
        checks = compute(lazy_trust(embedded, model.familiarity, network, chosen_device), "trust", progress)
        trust, beyond = checks.reshape(2, -1)[:, superpixels]
        record["bounded"] = int(beyond.sum(dtype=np.int64))
        if record["bounded"]:
            warnings.warn(bounded_places_message(record["bounded"]), stacklevel=3)
    else:
        rows = _predicted_rows(embedded, model, chosen_device, progress)
        trust, record["bounded"] = rows.trust, int(rows.bounded.sum())
        if record["bounded"]:
            warnings.warn(bounded_message(rows.bounded, model.genes), stacklevel=3)
        for values in (rows.mean, rows.sd):
            values *= np.float32(depth)
        table = ad.AnnData(
            rows.mean,
            obs=pd.DataFrame(index=(superpixels + 1).astype(str)),
            var=model.scores,
            layers={"sd": rows.sd},
        )
        raster = image_element(rows_as_raster(rows.mean, superpixels, grid), grid, model.genes)
    table.obs["trust"] = trust.astype(np.float32)
    table.obsm["spatial"] = grid.centres[superpixels] * grid.factor
    table.uns["pixel2gene"] = dict(record)
    record |= {"fit": model.fitted} | made_by(
        {
            "genes": genes,
            "min_score": min_score,
            "lazy": lazy,
            "image_key": image_key,
            "embedding_key": embedding_key,
            "key_added": key_added,
        },
        digests(sdata, embedded.image_key, [], image=embedded.record["fingerprint"]),
        chosen_device,
    )
    write_elements(
        sdata,
        {
            keys[1]: labels_element(grid.ids(tissue.reshape(grid.shape)), grid),
            keys[3]: raster,
            keys[2]: image_element(rows_as_raster(trust[:, None], superpixels, grid), grid, ["trust"]),
            keys[0]: table_element(table, keys[1], superpixels + 1),
        },
        record,
        progress=progress,
        label="write",
        instead_of=[other],
    )
    if lazy:
        sdata[other] = open_latent_map(sdata, key_added)


@dataclass(frozen=True)
class _Rows:
    """Of the superpixels of the tissue: (superpixels, genes) rates and how far the truth may lie from them; trust.

    Also the (genes,) number of superpixels at which a rate was bounded.
    """

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    trust: NDArray[np.float32]
    bounded: NDArray[np.int64]


def _predicted_rows(embedded: Embedded, model: Model, device: torch.device, progress: bool) -> _Rows:
    superpixels = embedded.statistics.superpixels
    size = (len(superpixels), len(model.genes))
    require_memory(*size, VALUE_BYTES, REMEDY)
    rows = _Rows(
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size[0], np.float32),
        np.zeros(size[1], np.int64),
    )
    misfit = model.scores["misfit"].to_numpy(np.float32)
    everything = np.arange(size[1])
    blocks = tqdm(
        embedded.blocks(), total=embedded.values.npartitions, desc="predict", disable=not progress, leave=False
    )
    for index, raw, features in blocks:
        at = np.searchsorted(superpixels, index)
        mean, sd = predict_rates(model.network, features, everything, device)
        rows.bounded[:] += count_bounded(model.network, features, mean, everything, device)
        rows.mean[at], rows.sd[at] = mean, truth_sd(sd, mean, misfit)
        rows.trust[at] = model.familiarity.trust(raw)
    return rows


def _latent_names(head: Ensemble) -> list[str]:
    width = head.architecture.channels
    return [f"member{i // width}_{i % width}" for i in range(head.architecture.members * width)]
