from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from tqdm.auto import tqdm

from pixel2gene import __version__
from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model
from pixel2gene.core.regression import predict_rates
from pixel2gene.spatial.elements import (
    image_element,
    labels_element,
    require_new,
    rows_as_raster,
    table_element,
    write_elements,
)
from pixel2gene.spatial.modelled import open_for_model, training_slide

UNIT = "expected counts per superpixel of 8 µm"


def predict(
    sdata: SpatialData,
    model: Model,
    *,
    genes: Sequence[str] | None = None,
    min_score: float | None = None,
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

    Raises
    ------
    KeyError
        If there is no such embedding, or the model lacks a gene.
    ValueError
        If the embedding is of another encoder or scale than the model's, a result exists, or no gene reaches
        `min_score`.
    """
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    keys = [key_added, *(f"{key_added}_{what}" for what in ("superpixels", "map", "trust"))]
    require_new(sdata, keys, overwrite)
    names = _chosen_genes(model, genes, min_score)
    positions = pd.Index(model.genes).get_indexer(pd.Index(names))

    chosen_device = choose_device(device)
    network = model.network.to(chosen_device)
    slide = training_slide(model, embedded)
    blocks = tqdm(
        embedded.blocks_with_raw(), total=embedded.values.npartitions, desc="predict", disable=not progress, leave=False
    )
    parts = [
        (index, *predict_rates(network, features, positions, chosen_device), model.familiarity.trust(raw))
        for index, raw, features in blocks
    ]
    superpixels, mean, sd, trust = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(superpixels)
    superpixels, mean, sd, trust = superpixels[order], mean[order], sd[order], trust[order]
    sd = np.sqrt(np.square(sd) + mean * model.scores.loc[names, "misfit"].to_numpy(np.float32))
    if slide is not None:
        mean, sd = mean * np.float32(slide.depth), sd * np.float32(slide.depth)

    grid = embedded.grid
    tissue = np.zeros(grid.size, bool)
    tissue[superpixels] = True
    table = ad.AnnData(
        mean,
        obs=pd.DataFrame({"trust": trust}, index=(superpixels + 1).astype(str)),
        var=model.scores.loc[names],
        layers={"sd": sd},
        obsm={"spatial": grid.centres[superpixels] * grid.factor},
    )
    table.uns["pixel2gene"] = record = {
        "verb": "predict",
        "version": __version__,
        "image_key": embedded.image_key,
        "unit": UNIT,
        "encoder": model.encoder["name"],
        "training_slides": [s.name for s in model.slides],
        "trained_on_this_slide": slide is not None,
    }
    write_elements(
        sdata,
        {
            keys[1]: labels_element(grid.ids(tissue.reshape(grid.shape)), grid),
            keys[2]: image_element(rows_as_raster(mean, superpixels, grid), grid, names),
            keys[3]: image_element(rows_as_raster(trust[:, None], superpixels, grid), grid, ["trust"]),
            keys[0]: table_element(table, keys[1], superpixels + 1),
        },
        record,
        progress=progress,
        label="write",
    )


def _chosen_genes(model: Model, genes: Sequence[str] | None, min_score: float | None) -> list[str]:
    names = list(model.genes if genes is None else genes)
    unknown = [name for name in names if name not in model.scores.index]
    if unknown:
        raise KeyError(f"The model lacks {unknown[:5]}; it has {len(model.genes)} genes, such as {model.genes[:5]}.")
    if min_score is None:
        return names
    scores = model.scores.loc[names, "pearson"]
    if not (scores >= min_score).any():
        raise ValueError(
            f"None of the {len(names)} genes has a held-out Pearson of min_score={min_score}; the best has "
            f"{scores.max():.3f}."
        )
    return [name for name in names if scores[name] >= min_score]
