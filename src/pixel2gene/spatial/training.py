"""From slides to a model: what `pixel2gene.tl.fit` and `pixel2gene.tl.cross_validate` share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import block_diag, csc_array, csr_array, vstack
from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.core.arguments import require_genes, require_number, require_whole
from pixel2gene.core.device import choose_device
from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.model import Model, TrainingSlide, recipe_values
from pixel2gene.core.outputs import Finished, finish, leading_genes
from pixel2gene.core.paper import RECIPES, PaperRecipe, fit_paper
from pixel2gene.core.regression import History, Measurement, Recipe, Reference, fit_ensemble
from pixel2gene.core.scoring import held_out_scores
from pixel2gene.core.trust import Familiarity, fit_familiarity, sample
from pixel2gene.core.uncertainty import held_out_uncertainty
from pixel2gene.spatial.embedded import Embedded, open_embedding
from pixel2gene.spatial.folds import block_folds, fold_of, region_folds
from pixel2gene.spatial.measured import Measured, measure
from pixel2gene.spatial.modelled import require_model, require_same_embedding, training_slide
from pixel2gene.spatial.platform import find_capture, seeks_capture, with_capture, with_effects
from pixel2gene.spatial.provenance import digests, made_by
from pixel2gene.spatial.slides import Capture, captures_of
from pixel2gene.spatial.units import Units, measured_units, select_genes

Join = Literal["inner", "outer"]

# Turns in which depths and rates come to agree, at most; many where panels hardly overlap.
DEPTH_TURNS = 5000


def train(
    slides: Mapping[str, SpatialData],
    table_key: str | Sequence[str],
    *,
    image_key: str,
    layer: str | None,
    genes: Sequence[str] | None,
    min_counts: int,
    embedding_key: str | None,
    join: Join,
    reference: Model | None,
    recipe: str | Recipe | PaperRecipe,
    folds: int | None,
    library_size: bool | None,
    device: str | None,
    seed: int,
    progress: bool,
) -> Model:
    """Fit a model, see `pixel2gene.tl.fit`."""
    arguments = {
        "table_key": table_key,
        "image_key": image_key,
        "layer": layer,
        "genes": genes,
        "min_counts": min_counts,
        "embedding_key": embedding_key,
        "join": join,
        "folds": folds,
        "library_size": library_size,
        "seed": seed,
    }
    require_genes(genes)
    require_number("min_counts", min_counts)
    require_whole("folds", folds, 2)
    require_whole("seed", seed)
    if reference is not None:
        require_model(reference, "reference")
    chosen = _chosen_recipe(recipe, folds, library_size)
    _check(chosen, join, reference)
    if isinstance(chosen, Recipe) and reference is not None:
        chosen = replace(chosen, hidden=reference.network.architecture.hidden)
    chosen_device = choose_device(device)
    given = captures_of(slides, table_key)
    tables = {one.table_key for one in given.values()}
    of_slide = open_slides(slides, image_key, embedding_key, reference)
    # Slides, units and genes are learnt from in an order of their own: in another order they are no other data.
    captures = dict(
        sorted(given.items(), key=lambda item: (of_slide[item[1].slide].record["fingerprint"], item[1].table_key))
    )
    embedded = {name: of_slide[one.slide] for name, one in captures.items()}
    units = {
        name: measured_units(slides[one.slide], one.table_key, image_key, embedded[name].grid, layer)
        for name, one in captures.items()
    }
    known = set() if reference is None else set(reference.genes)
    in_order = {name: units[name] for name in given}
    wanted = _modelled_genes(in_order, list(genes) if genes is not None else None, min_counts, join, known)
    names = sorted(wanted)
    positions = {name: u.genes.get_indexer(pd.Index(names)) for name, u in units.items()}
    panels = np.stack([columns >= 0 for columns in positions.values()])
    _require_shared_genes(list(captures), panels)
    measured = {
        name: measure(embedded[name], u, positions[name], captures[name].described, by_place=True)
        for name, u in units.items()
    }
    depths = relative_depths(_densities(measured), panels)

    if isinstance(chosen, Recipe):
        measured = {name: with_effects(units[name], m, embedded[name].grid) for name, m in measured.items()}
    held_out = {}
    for i, slide in enumerate(dict.fromkeys(one.slide for one in captures.values())):
        # What lies together is held out together, whichever capture it is of.
        centres = [m.centres for name, m in measured.items() if captures[name].slide == slide]
        together = np.concatenate(centres)
        shape = of_slide[slide].grid.shape
        if isinstance(chosen, PaperRecipe):
            held_out[slide] = block_folds(together, shape, chosen.folds, chosen.block, seed + i)
        else:
            capture = np.repeat(np.arange(len(centres)), [len(some) for some in centres])
            held_out[slide] = region_folds(together, shape, chosen.folds, capture)
    parts = [
        m.measurement(fold_of(m.centres, *held_out[captures[name].slide]), float(depth), chosen)
        for (name, m), depth in zip(measured.items(), depths, strict=True)
    ]

    def fitted(data: Measurement) -> tuple[Ensemble, History, Finished | None]:
        if isinstance(chosen, PaperRecipe):
            return *fit_paper(data, chosen, chosen_device, seed, progress), None
        lead = leading_genes(data.counts, chosen.lead_genes)
        start = None if reference is None else _start(reference, [names[gene] for gene in lead])
        network, history = fit_ensemble(data.of_genes(lead), chosen, chosen_device, seed, progress, start)
        finished = finish(
            network,
            lead,
            data,
            chosen,
            chosen_device,
            seed,
            from_reference=start is not None,
            log_ceilings=None if start is None else start.log_ceilings(),
        )
        return finished.network, history, finished

    data = _joined(parts, panels)
    _require_seen(data, names, chosen.folds)
    network, history, finished = fitted(data)
    for i, (name, m) in enumerate(measured.items()):
        if seeks_capture(chosen, m):
            found = find_capture(network, parts[i], m.centres, chosen_device)
            parts[i], measured[name] = with_capture(parts[i], m, found)
    if any(m.platform.capture > 0 for m in measured.values()):
        data = _joined(parts, panels)
        network, history, finished = fitted(data)
    complaint = None if finished is None else finished.complaint(names)
    if complaint is not None:
        warnings.warn(complaint, stacklevel=3)
    scores = held_out_scores(network, data, names, chosen_device).join(
        held_out_uncertainty(network, data, names, chosen_device, seed)
    )
    encoder = dict(next(iter(embedded.values())).record["encoder"])
    depth_of = dict(zip(captures, depths.tolist(), strict=True))
    model = Model(
        genes=names,
        encoder=encoder,
        inputs={
            "table_key": tables.pop() if len(tables) == 1 else None,
            "image_key": image_key,
            "layer": layer,
            "embedding_key": embedding_key,
        },
        recipe=chosen,
        network=network.cpu(),
        slides=[
            TrainingSlide(
                embedded[name].record["fingerprint"],
                name,
                depth_of[name],
                *held_out[one.slide],
                measured[name].platform,
                one.table_key,
            )
            for name, one in given.items()
        ],
        scores=scores,
        history=history,
        version=__version__,
        familiarity=_familiarity(
            list(measured.values()), [part.fold for part in parts], len(encoder.get("scales") or [1])
        ),
        reference=None if reference is None else [slide.name for slide in reference.slides],
        fitted=made_by(
            arguments | {"recipe": recipe if isinstance(recipe, str) else recipe_values(recipe)},
            {
                slide: digests(
                    one,
                    image_key,
                    _tables_of(captures, slide),
                    layer,
                    image=of_slide[slide].record["fingerprint"],
                )
                for slide, one in slides.items()
            },
            chosen_device,
        )
        | {"reference": reference is not None, "complaint": complaint},
    )
    return model.of_genes(wanted)


def open_slides(
    slides: Mapping[str, SpatialData], image_key: str, embedding_key: str | None, reference: Model | None
) -> dict[str, Embedded]:
    """Find the embeddings of slides that can be trained on together.

    Raises
    ------
    KeyError
        If there is no such embedding.
    ValueError
        If they were embedded differently, from one another or from the slides of the reference; or have the same H&E,
        or one that the reference was trained on.
    """
    embedded = {name: open_embedding(one, image_key, embedding_key) for name, one in slides.items()}
    _require_common_encoder(embedded)
    _require_different_images(embedded)
    if reference is not None:
        _require_new_slides(embedded, reference)
    return embedded


def _tables_of(captures: Mapping[str, Capture], slide: str) -> list[str]:
    return [one.table_key for one in captures.values() if one.slide == slide]


def relative_depths(density: NDArray[np.floating], panels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Depth of each slide in relation to their mean, from what a superpixel of tissue has on average.

    Parameters
    ----------
    density
        (slides, genes) counts per superpixel: depth of the slide times rate of the gene, and 0 where not measured.
    panels
        (slides, genes) whether a slide measured a gene.

    Returns
    -------
    (slides,) depths of maximum Poisson likelihood. Of slides that measured the same genes: their total density over
    its mean.
    """
    depth = np.ones(len(panels))
    counts, total = density.sum(axis=0), density.sum(axis=1)
    for _ in range(DEPTH_TURNS):
        before, depth = depth, total / (panels @ (counts / (depth @ panels)))
        depth /= depth.mean()
        if np.allclose(depth, before, rtol=1e-9, atol=0):
            break
    return depth


def _densities(measured: Mapping[str, Measured]) -> NDArray[np.float64]:
    density = np.stack([m.counts.sum(axis=0, dtype=np.float64) / m.area.sum() for m in measured.values()])
    empty = sorted(name for name, total in zip(measured, density.sum(axis=1), strict=True) if total == 0)
    if empty:
        raise ValueError(f"None of the genes to model has counts on the tissue of {empty}: name others, or none.")
    return density


def _familiarity(measured: list[Measured], folds: list[NDArray[np.int8]], scales: int) -> Familiarity:
    """Of the superpixels under the units; each is held out with a unit over it."""
    features, fold = [], []
    for m, unit_fold in zip(measured, folds, strict=True):
        overlap = csc_array(m.overlap)
        covered = np.flatnonzero(np.diff(overlap.indptr))
        covered = covered[sample(len(covered), len(measured))]
        features.append(m.raw(covered))
        fold.append(unit_fold[overlap.indices[overlap.indptr[covered]]])
    return fit_familiarity(np.concatenate(features), np.concatenate(fold), scales)


def _start(reference: Model, names: list[str]) -> Reference:
    genes = pd.Index(reference.genes).get_indexer(pd.Index(names))
    if (genes < 0).all():
        raise ValueError(
            f"The reference has none of the {len(names)} genes to model: are the names of one kind (symbols or "
            "Ensembl ids)?"
        )
    # Training must not change the model that was given.
    return Reference(copy.deepcopy(reference.network), genes)


def _chosen_recipe(
    recipe: str | Recipe | PaperRecipe, folds: int | None, library_size: bool | None
) -> Recipe | PaperRecipe:
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"There is no recipe {recipe!r}: choose from {list(RECIPES)}.")
        recipe = RECIPES[recipe]()
    if not isinstance(recipe, Recipe | PaperRecipe):
        raise ValueError(f"recipe={recipe!r} given; one of {list(RECIPES)}, a Recipe or a PaperRecipe is expected.")
    return replace(
        recipe,
        folds=recipe.folds if folds is None else folds,
        library_size=recipe.library_size if library_size is None else library_size,
    )


def _check(recipe: Recipe | PaperRecipe, join: Join, reference: Model | None) -> None:
    if join not in ("inner", "outer"):
        raise ValueError(f"There is no join {join!r}: choose 'inner' (genes of all slides) or 'outer' (of any).")
    if isinstance(recipe, PaperRecipe) and join == "outer":
        raise ValueError('The recipe "paper" knows no slides with different panels: leave out join="outer".')
    if isinstance(recipe, PaperRecipe) and reference is not None:
        raise ValueError('The recipe "paper" starts from no reference: leave out reference=, or the recipe.')
    if reference is not None and isinstance(reference.recipe, PaperRecipe):
        raise ValueError('A model of the recipe "paper" is no reference: fit it by the recipe "default".')


def _require_common_encoder(embedded: Mapping[str, Embedded]) -> None:
    encoders = {name: e.record["encoder"] for name, e in embedded.items()}
    first = next(iter(encoders.values()))
    other = [name for name, encoder in encoders.items() if encoder != first]
    if other:
        raise ValueError(f"The slides {other} were embedded otherwise than the first: embed all with one encoder.")


def _require_different_images(embedded: Mapping[str, Embedded]) -> None:
    """Folds and depth are kept by H&E: of two slides with the same one, each would give away the other's blocks."""
    named: dict[str, str] = {}
    for name, one in embedded.items():
        other = named.setdefault(one.record["fingerprint"], name)
        if other != name:
            raise ValueError(
                f"The slides {other!r} and {name!r} have the same H&E: put their tables into one SpatialData and name "
                "them all in table_key."
            )


def _require_new_slides(embedded: Mapping[str, Embedded], reference: Model) -> None:
    """What the reference has seen, no member could be held out of."""
    for name, one in embedded.items():
        require_same_embedding(reference, one)
        if training_slide(reference, one) is not None:
            raise ValueError(f"The reference was trained on the H&E of {name!r}: fit on slides that are new to it.")


def _modelled_genes(
    units: Mapping[str, Units], genes: list[str] | None, min_counts: int, join: Join, known: set[str]
) -> list[str]:
    if join == "outer":
        return _chosen_genes(_pooled(units), genes, min_counts, known)
    kept = [set(_chosen_genes(u, genes, min_counts, known)) for u in units.values()]
    if genes is not None:
        return genes
    common = set.intersection(*kept)
    if not common:
        raise ValueError(
            f"The {len(units)} slides share no gene with at least {min_counts} counts: are the names of one kind "
            "(symbols or Ensembl ids)?"
        )
    first = next(iter(units.values())).genes
    return [gene for gene in first if gene in common]


def _chosen_genes(units: Units, genes: list[str] | None, min_counts: int, known: set[str]) -> list[str]:
    """Those asked for; or those with enough counts to learn, and those that a reference knows."""
    chosen = select_genes(units, genes, min_counts)
    if genes is not None:
        return genes
    wanted = {*units.genes[chosen], *known}
    return [str(gene) for gene in units.genes if gene in wanted]


def _pooled(units: Mapping[str, Units]) -> Units:
    """All slides as one unit with the genes of any, in the order in which they first come."""
    totals = pd.concat([pd.Series(u.counts.sum(axis=0), u.genes) for u in units.values()])
    summed = totals.groupby(level=0, sort=False).sum()
    return Units(pd.Index(summed.index), csr_array(summed.to_numpy()[None]), csr_array((1, 0)))


def _require_shared_genes(names: list[str], panels: NDArray[np.bool_]) -> None:
    shared = panels[:, panels.sum(axis=0) > 1].any(axis=1)
    alone = sorted(name for name, some in zip(names, shared, strict=True) if not some)
    if alone and len(names) > 1:
        raise ValueError(
            f"The slides {alone} share no gene with another, so that depths cannot be compared: are the names of one "
            "kind (symbols or Ensembl ids)?"
        )


def _require_seen(data: Measurement, names: list[str], folds: int) -> None:
    """Of captures that overlap, the one that alone measured a gene may lie in one fold."""
    seen = np.stack([data.over_genes(held_in.astype(float)) for held_in in data.seen(np.arange(len(data.fold)), folds)])
    unseen = np.flatnonzero((seen == 0).any(axis=0))
    if len(unseen):
        raise ValueError(
            f"{len(unseen)} genes were measured in so small a part of the tissue that one of the {folds} folds has all "
            f"of it: {[names[gene] for gene in unseen[:5]]}; leave them out, or ask for other folds."
        )


def _joined(parts: list[Measurement], panels: NDArray[np.bool_]) -> Measurement:
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [part.patch.max() + 1 for part in parts[:-1]])
    same = bool(panels.all())
    return Measurement(
        np.concatenate([part.features for part in parts]),
        csr_array(block_diag([part.overlap for part in parts], format="csr")),
        csr_array(vstack([part.counts for part in parts], format="csr")),
        np.concatenate([part.depth for part in parts]),
        np.concatenate([part.fold for part in parts]),
        np.concatenate([part.patch + start for part, start in zip(parts, starts, strict=True)]),
        None if same else np.repeat(np.arange(len(parts)), [len(part.fold) for part in parts]),
        None if same else panels,
        None if parts[0].apart is None else np.concatenate([part.apart for part in parts if part.apart is not None]),
    )
