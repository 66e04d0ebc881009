from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model
from pixel2gene.core.posterior import ShapeEstimator, gamma_poisson_posterior
from pixel2gene.core.regression import Measurement, predict_rates, predict_units
from pixel2gene.spatial.elements import (
    get_table,
    image_element,
    labels_element,
    require_new,
    rows_as_raster,
    table_element,
    write_elements,
)
from pixel2gene.spatial.embedded import (
    Embedded,
    Measured,
    held_out_fold,
    measure_for_model,
    open_for_model,
    slide_measurement,
    training_slide,
)

UNIT = "expected counts per unit"
# Units that suffice to estimate the shape of each gene's prior.
SHAPE_UNITS = 20_000


def denoise(
    sdata: SpatialData,
    model: Model,
    *,
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
    """Denoise what was measured: weigh each count against what the H&E lets expect there.

    The expectation comes from the members that did not see the unit (out-of-fold). How far it is trusted is learnt
    per gene: its rate is gamma distributed around the expectation with a shape of maximum likelihood, and the result
    is the posterior given the count.

    Parameters
    ----------
    sdata
        Slide with counts and an embedding like that of the training.
    model
        From `pixel2gene.tl.fit`.
    table_key, image_key, layer, embedding_key
        Those of the training by default.
    key_added
        Name of the results.
    overwrite
        Replace results of that name.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.
    seed
        Of the units that estimate the shapes, where there are over 20,000.
    progress
        Show a progress bar.

    Returns
    -------
    None. Adds ``tables[key_added]``: units on tissue x genes of the model, linked to the same elements as the counts;
    X and ``layers["sd"]`` are the posterior mean and standard deviation in expected counts per unit, ``var`` has the
    held-out scores and the ``prior_shape``. Adds ``images[f"{key_added}_map"]``: (genes, y, x) float16, expected
    counts per superpixel where units were measured, NaN elsewhere. For transcripts, whose units are superpixels, also
    ``labels[f"{key_added}_superpixels"]``.

    Raises
    ------
    KeyError
        If there is no such table, layer or embedding, or genes of the model were not measured.
    ValueError
        If the embedding is of another encoder or scale than the model's, the values are no counts, or a result exists.
    """
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    source = table_key or str(model.inputs["table_key"])
    grid = embedded.grid
    keys = [key_added, f"{key_added}_map", f"{key_added}_superpixels"]
    require_new(sdata, keys if source in sdata.points else keys[:2], overwrite)
    chosen_device = choose_device(device)
    model.network.to(chosen_device)
    units, measured = measure_for_model(sdata, model, embedded, table_key, layer)
    data = slide_measurement(model, embedded, measured, chosen_device)

    prior = np.empty((len(measured.rows), len(model.genes)), np.float32)
    for rows, mean in predict_units(model.network, data, chosen_device, held_out=True):
        prior[rows] = mean
    shape = _prior_shape(data.counts, prior, seed)
    posterior, sd = np.empty_like(prior), np.empty_like(prior)
    for rows in np.array_split(np.arange(len(prior)), len(prior) // SHAPE_UNITS + 1):
        posterior[rows], sd[rows] = gamma_poisson_posterior(data.counts[rows].toarray(), prior[rows], shape)

    covered, dense = _on_superpixels(model, embedded, measured, data, posterior / np.maximum(prior, 1e-8), chosen_device)
    table = ad.AnnData(
        posterior,
        var=model.scores.assign(prior_shape=shape),
        layers={"sd": sd},
    )
    table.uns["pixel2gene"] = record = {
        "verb": "denoise",
        "version": __version__,
        "image_key": embedded.image_key,
        "table_key": source,
        "unit": UNIT,
        "encoder": model.encoder["name"],
        "trained_on_this_slide": training_slide(model, embedded) is not None,
    }
    elements = {keys[1]: image_element(rows_as_raster(dense, covered, grid), grid, model.genes)}
    if units.superpixels is not None:
        ids = units.superpixels[measured.rows] + 1
        mask = np.isin(np.arange(1, grid.size + 1), ids).reshape(grid.shape)
        table.obs_names = ids.astype(str)
        table.obsm["spatial"] = grid.centres[ids - 1] * grid.factor
        elements[keys[2]] = labels_element(grid.ids(mask), grid)
        table = table_element(table, keys[2], ids)
    else:
        original = get_table(sdata, source)
        table.obs = original.obs.iloc[measured.rows].copy()
        table.uns["spatialdata_attrs"] = dict(original.uns["spatialdata_attrs"])
        if "spatial" in original.obsm:
            table.obsm["spatial"] = original.obsm["spatial"][measured.rows]
    elements[keys[0]] = table
    write_elements(sdata, elements, record, progress=progress, label="denoise")


def _prior_shape(counts: csr_array, prior: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    estimator = ShapeEstimator(prior.shape[1])
    sample = np.sort(np.random.default_rng(seed).permutation(len(prior))[:SHAPE_UNITS])
    for rows in np.array_split(sample, len(sample) // 1000 + 1):
        estimator.add(counts[rows].toarray(), prior[rows])
    return estimator.shape


def _on_superpixels(
    model: Model,
    embedded: Embedded,
    measured: Measured,
    data: Measurement,
    correction: NDArray[np.float32],
    device: torch.device,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat indices of the measured superpixels and their expectation times the correction of the units over them."""
    share = np.asarray(data.overlap.sum(axis=0)).ravel()
    columns = np.flatnonzero(share > 0)
    covered = measured.superpixels[columns]
    slide = training_slide(model, embedded)
    fold = held_out_fold(slide, embedded.grid.centres[covered])
    rate = np.empty((len(columns), len(model.genes)), np.float32)
    every_gene = np.arange(len(model.genes))
    for one in np.unique(fold):
        members = slice(one, one + 1) if one >= 0 else slice(None)
        chosen = fold == one
        rate[chosen] = predict_rates(model.network, data.features[columns[chosen]], every_gene, device, members)[0]
    spread = data.overlap[:, columns].T @ correction / share[columns, None]
    depth = np.float32(data.depth.mean() if slide is None else slide.depth)
    return covered, rate * spread * depth
