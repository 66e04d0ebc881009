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
from pixel2gene.spatial.embedded import open_for_model, training_slide

UNIT = "expected counts per superpixel of 8 µm"


def predict(
    sdata: SpatialData,
    model: Model,
    *,
    genes: Sequence[str] | None = None,
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
    ``tables[key_added]``, tissue superpixels x genes, with the spread between the members in ``layers["sd"]`` and the
    held-out scores of each gene in ``var``; ``labels[f"{key_added}_superpixels"]``, which it annotates;
    ``images[f"{key_added}_map"]``, (genes, y, x) float16, NaN outside the tissue.

    Raises
    ------
    KeyError
        If there is no such embedding, or the model lacks a gene.
    ValueError
        If the embedding is of another encoder or scale than the model's, or a result exists.
    """
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    keys = [key_added, f"{key_added}_superpixels", f"{key_added}_map"]
    require_new(sdata, keys, overwrite)
    names = list(model.genes if genes is None else genes)
    positions = pd.Index(model.genes).get_indexer(pd.Index(names))
    if (positions < 0).any():
        unknown = [name for name, position in zip(names, positions, strict=True) if position < 0]
        raise KeyError(f"The model lacks {unknown[:5]}; it has {len(model.genes)} genes, such as {model.genes[:5]}.")

    chosen_device = choose_device(device)
    network = model.network.to(chosen_device)
    slide = training_slide(model, embedded)
    blocks = tqdm(
        embedded.blocks(), total=embedded.values.npartitions, desc="predict", disable=not progress, leave=False
    )
    parts = [(index, *predict_rates(network, features, positions, chosen_device)) for index, features in blocks]
    superpixels, mean, sd = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(superpixels)
    superpixels, mean, sd = superpixels[order], mean[order], sd[order]
    if slide is not None:
        mean, sd = mean * np.float32(slide.depth), sd * np.float32(slide.depth)

    grid = embedded.grid
    tissue = np.zeros(grid.size, bool)
    tissue[superpixels] = True
    table = ad.AnnData(
        mean,
        obs=pd.DataFrame(index=(superpixels + 1).astype(str)),
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
            keys[0]: table_element(table, keys[1], superpixels + 1),
        },
        record,
        progress=progress,
        label="write",
    )
