from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from spatialdata import SpatialData

from pixel2gene.core.model import Model
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial.evaluation import joined, score_slide
from pixel2gene.spatial.slides import by_name
from pixel2gene.spatial.training import Join, open_slides, train


def cross_validate(
    slides: Sequence[SpatialData] | Mapping[str, SpatialData],
    table_key: str,
    *,
    image_key: str,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    min_counts: int = 20,
    embedding_key: str | None = None,
    join: Join = "inner",
    reference: Model | None = None,
    recipe: str | Recipe | PaperRecipe = "default",
    folds: int | None = None,
    library_size: bool | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Leave each slide out in turn: fit on the others, and score on the one left out.

    Parameters
    ----------
    slides
        At least two, as a list or by name.
    table_key, image_key, layer, genes, min_counts, embedding_key
        As in `pixel2gene.tl.fit`. Genes are chosen on the training slides alone.
    join, reference, recipe, folds, library_size, device, seed
        As in `pixel2gene.tl.fit`.
    progress
        Show progress bars.

    Returns
    -------
    One row per ``(slide, gene)`` of the slide left out, with the columns and ``attrs["pixel2gene"]`` of
    `pixel2gene.tl.evaluate`; NaN for genes that the slide left out did not measure.

    Raises
    ------
    KeyError
        As `pixel2gene.tl.fit` does, or if none of the genes was measured in the slide left out.
    ValueError
        As `pixel2gene.tl.fit` does, or if there are fewer than two slides.

    Examples
    --------
    >>> other = p2g.datasets.simulate(size=(512, 512), n_genes=40, measured=1.0, seed=4)
    >>> p2g.tl.tissue(other, "he", progress=False)
    >>> p2g.tl.embed(other, "he", progress=False)
    >>> slides = {"one": sdata, "other": other}
    >>> scores = p2g.tl.cross_validate(slides, "counts", image_key="he", progress=False)
    >>> list(scores["pearson"].groupby("slide").median().index)
    ['one', 'other']
    """
    named = by_name(slides)
    if len(named) < 2:
        raise ValueError(f"Only {list(named)} was given; at least 2 slides are needed to leave one out.")
    # Before hours of training, and because the slide left out must be new to the others and to the reference.
    open_slides(named, image_key, embedding_key, reference)
    tables = {}
    for left_out, slide in named.items():
        model = train(
            {name: one for name, one in named.items() if name != left_out},
            table_key,
            image_key=image_key,
            layer=layer,
            genes=genes,
            min_counts=min_counts,
            embedding_key=embedding_key,
            join=join,
            reference=reference,
            recipe=recipe,
            folds=folds,
            library_size=library_size,
            device=device,
            seed=seed,
            progress=progress,
        )
        tables[left_out] = score_slide(slide, model, table_key, image_key, layer, embedding_key, device)
    return joined(tables)
