from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import torch
from numpy.typing import NDArray
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
    Measured,
    measure_for_model,
    open_for_model,
    slide_measurement,
    training_slide,
)

UNIT = "expected counts per unit"
# Units that suffice to tell the shape of each gene's prior.
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

    The expectation is the mean over all members. How far it is trusted is learnt per gene from the members that did
    not see a unit (out-of-fold): its rate is gamma distributed around their expectation with a shape of maximum
    likelihood. The result is the posterior given the count.

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
    None. Adds ``tables[key_added]``: units on tissue x those genes of the model that were measured, linked to the same
    elements as the counts; X and ``layers["sd"]`` are the posterior mean and standard deviation in expected counts per
    unit, ``var`` has the held-out scores and the ``prior_shape``. Adds ``images[f"{key_added}_map"]``: (genes, y, x)
    float16, expected counts per superpixel where units were measured, NaN elsewhere. For transcripts, whose units are
    superpixels, also ``labels[f"{key_added}_superpixels"]``.

    Raises
    ------
    KeyError
        If there is no such table, layer or embedding, or none of the model's genes was measured.
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
    model, units, measured = measure_for_model(sdata, model, embedded, table_key, layer)
    data = slide_measurement(model, embedded, measured, chosen_device)

    shape = _prior_shape(model, data, chosen_device, seed)
    prior = np.empty((len(measured.rows), len(model.genes)), np.float32)
    posterior, sd = np.empty_like(prior), np.empty_like(prior)
    for rows, mean in predict_units(model.network, data, chosen_device, held_out=False):
        prior[rows] = mean
        posterior[rows], sd[rows] = gamma_poisson_posterior(data.counts[rows].toarray(), mean, shape)
    covered, dense = _on_superpixels(model, measured, data, posterior / np.maximum(prior, 1e-8), chosen_device)
    table = ad.AnnData(posterior, var=model.scores.assign(prior_shape=shape), layers={"sd": sd})
    table.uns["pixel2gene"] = record = {
        "verb": "denoise",
        "version": __version__,
        "image_key": embedded.image_key,
        "table_key": source,
        "unit": UNIT,
        "encoder": model.encoder["name"],
        "trained_on_this_slide": training_slide(model, embedded) is not None,
    }
    elements: dict[str, Any] = {keys[1]: image_element(rows_as_raster(dense, covered, grid), grid, model.genes)}
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
    elements[keys[0]] = table
    write_elements(sdata, elements, record, progress=progress, label="denoise")


def _prior_shape(model: Model, data: Measurement, device: torch.device, seed: int) -> NDArray[np.float64]:
    estimator = ShapeEstimator(len(model.genes))
    sample = np.sort(np.random.default_rng(seed).permutation(len(data.fold))[:SHAPE_UNITS])
    some = data.rows(sample)
    for rows, mean in predict_units(model.network, some, device, held_out=True):
        estimator.add(some.counts[rows].toarray(), mean)
    return estimator.shape


def _on_superpixels(
    model: Model, measured: Measured, data: Measurement, correction: NDArray[np.floating], device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat indices of the measured superpixels and their expectation times the correction of the units over them."""
    share = np.asarray(data.overlap.sum(axis=0)).ravel()
    columns = np.flatnonzero(share > 0)
    rate, _ = predict_rates(model.network, data.features[columns], np.arange(len(model.genes)), device)
    weight = data.overlap[:, columns].T
    return measured.superpixels[columns], rate * (weight @ (correction * data.depth[:, None])) / share[columns, None]
