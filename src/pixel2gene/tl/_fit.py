from __future__ import annotations

from collections.abc import Mapping, Sequence

from spatialdata import SpatialData

from pixel2gene.core.model import Model
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial.slides import by_name
from pixel2gene.spatial.training import Join, train


def fit(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    table_key: str | Sequence[str],
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
) -> Model:
    """Learn to read expression off the H&E, from the places where both were measured.

    Counts of every unit (bin, spot, cell, superpixel with transcripts) are Poisson with mean
    ``depth * sum_s A[unit, s] * rate(embedding of s)``, where A is the overlapping area of unit and superpixel s.
    One network per spatial fold is trained on the units outside that fold; training stops when the held-out units
    are predicted best.

    ``recipe="paper"`` is the published Pixel2Gene instead, whole: the squared error of scaled counts, ten folds over
    small blocks, a selection of units, 600 epochs (Li et al., 2026, bioRxiv 10.64898/2026.02.21.707168). It takes far
    longer, and is there to compare with.

    Parameters
    ----------
    sdata
        One slide, or several as a list or by name: each then has its own sequencing depth.
    table_key
        Table of raw counts, or points element of transcripts. Several captures under one H&E, or on one of the slides,
        are several keys: each has its own depth and, with ``join="outer"``, its own panel.
    image_key
        H&E that `pixel2gene.tl.embed` has described.
    layer
        Layer with the counts, X by default.
    genes
        To model; by default all with at least `min_counts` that are no control probes. Highly variable ones, say, are
        named by ``scanpy.pp.highly_variable_genes``.
    min_counts
        Fewest counts of a gene that is modelled unasked: on each slide, or on all together with ``join="outer"``. Those
        that the `reference` knows need none.
    embedding_key
        ``f"{image_key}_embedding"`` by default.
    join
        Of slides or captures with different panels: ``"inner"`` models the genes that all measured, ``"outer"`` those
        of any; each then counts only for the genes that it measured. Not with ``recipe="paper"``.
    reference
        Model of other slides to start from, so that a small measured region goes a long way: its hidden layers, and
        its outputs for the genes that it knows, at the depth of these slides. It is kept where training does not help.
        Not with ``recipe="paper"``.
    recipe
        ``"default"`` or ``"paper"``; or a `Recipe` or `PaperRecipe` of your own.
    folds
        Number of folds, that of the recipe by default: 6, or 10 with ``"paper"``.
    library_size
        Take each unit's total as given, and learn the composition: for spots whose totals differ for technical
        reasons. By default the total is learnt, too: it follows the number of cells. Not with ``"paper"``.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.
    seed
        Of folds and training.
    progress
        Show a progress bar.

    Returns
    -------
    Model, with the held-out scores of each gene in ``model.scores``.

    Raises
    ------
    KeyError
        If there is no such table, layer, gene or embedding.
    ValueError
        If no table is named or one twice, there is no such recipe, the values are no counts, nothing of the table lies
        on tissue, the genes have no counts, the slides share no gene, were embedded differently or have the same H&E,
        or there are fewer spatial blocks than folds; or if the reference is of another encoder, of the recipe
        ``"paper"``, of none of the genes, or was trained on one of the slides.

    Warns
    -----
    UserWarning
        If the model is not sound: a member does not expect as many counts of a gene as there are, or far more than any
        unit has, or its outputs did not converge. It is also in ``model.fitted["complaint"]``.

    Examples
    --------
    >>> model = p2g.tl.fit(sdata, "counts", image_key="he", progress=False)
    >>> best = model.scores["pearson"].idxmax()

    A panel of your own:

    >>> model = p2g.tl.fit(sdata, "counts", image_key="he", genes=["GENE0001", "GENE0002"], progress=False)
    >>> model.genes
    ['GENE0001', 'GENE0002']
    """
    return train(
        by_name(sdata),
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
