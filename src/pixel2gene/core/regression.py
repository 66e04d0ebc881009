"""Count regression through the overlap matrix: Poisson likelihood, log link, all folds trained together."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from tqdm.auto import tqdm

from pixel2gene.core.device import quick_products
from pixel2gene.core.ensemble import Architecture, Ensemble

# Superpixels per forward pass where nothing is trained, and (members, superpixels, genes) rates at once.
SCORING_SUPERPIXELS = 16_384
SCORING_RATES = 2**25
# Of an embedding, whose last hidden units are wanted.
LATENT_ROWS = 4_096
# A parameter, where each step pulls it to, and how far.
Pull = tuple[Tensor, Tensor, Tensor]
CHECK_SUPERPIXELS = 32
EMPTY_GENE_COUNTS = 0.5
# Last hidden units beyond this, which is what all but a few superpixels of a whole slide have, are cut.
LATENT_LIMIT = 20.0
# A gene of fewer counts than this has, at first, the level that the reference and the depth of the data say.
LEVEL_COUNTS = 10.0


@dataclass(frozen=True)
class Recipe:
    """How an ensemble is trained; recorded with the model.

    Attributes
    ----------
    folds
        Spatial folds, and so members.
    library_size
        Whether each unit's total is taken as given.
    hidden
        Units of the hidden layers.
    dropout, input_dropout
        Share of hidden units, and of embedding channels, left out at each step.
    learning_rate, weight_decay
        Of AdamW.
    warmup
        Steps until the learning rate is reached.
    batch
        Superpixels per step, about.
    superpixels_per_unit
        Of larger units (spots) this many superpixels are drawn anew at each step; of units that share superpixels,
        as many times more as these have units.
    shrinkage
        Precision of a normal prior of the output weights around 0: what few counts say of a gene counts for less.
    gene_power
        Genes are weighted by their mean count to the power of minus this in the loss: with 0, abundant genes decide
        what is learnt, with 1, the noise of rare ones does. Training stops by the deviance with a power of 1.
    averaging
        Decay of the moving average of the weights, which is the model.
    check_steps
        Fewest and most steps between two looks at the held-out deviance; a pass through the units where between.
    check_units
        Units looked at, at most.
    patience
        Looks without a new best after which training stops.
    max_checks
        Looks after which it stops anyway.
    lead_genes
        Of more genes, so many with the most counts train the network; then the outputs of all are fitted, see
        `pixel2gene.core.outputs`.
    reference_learning_rate
        In place of `learning_rate` where training starts from a reference.
    reference_pull
        What pulls the weights back to the reference (L2-SP; Li et al., 2018), in place of `weight_decay`: that, times
        the number of units, so that a small slide stays near and a large one goes its own way.
    """

    folds: int = 6
    library_size: bool = False
    hidden: tuple[int, ...] = (256, 256, 16)
    dropout: float = 0.4
    input_dropout: float = 0.4
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 20
    batch: int = 512
    superpixels_per_unit: int = 12
    shrinkage: float = 10.0
    gene_power: float = 0.5
    averaging: float = 0.98
    check_steps: tuple[int, int] = (10, 50)
    check_units: int = 20_000
    patience: int = 5
    max_checks: int = 200
    lead_genes: int = 1_000
    reference_learning_rate: float = 1e-3
    reference_pull: float = 3e3


@dataclass(frozen=True)
class Measurement:
    """What was measured, in the terms of the model: counts ~ Poisson(depth * overlap @ rate(features)).

    Attributes
    ----------
    features
        (superpixels, channels) embedding.
    overlap
        (units, superpixels) overlapping area as a share of a superpixel.
    counts
        (units, genes).
    depth
        (units,) relative sequencing depth.
    fold
        (units,) the fold in which a unit is held out; -1 for units that no member saw.
    patch
        (units,) units of the same patch lie together, share superpixels, and are trained on together.
    slide
        (units,) the row of `panels` that tells what was measured in a unit.
    panels
        (slides, genes) whether a slide measured a gene; None where all measured all. Counts outside are dropped.
    apart
        (units,) a second member that has not seen a unit, though it has seen what surrounds it; -1 or None where there
        is none.
    """

    features: NDArray[np.floating]
    overlap: csr_array
    counts: csr_array
    depth: NDArray[np.float32]
    fold: NDArray[np.int8]
    patch: NDArray[np.int64]
    slide: NDArray[np.intp] | None = None
    panels: NDArray[np.bool_] | None = None
    apart: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        if self.panels is None or self.slide is None:
            return
        counts = self.counts.copy()
        row = np.repeat(self.slide, np.diff(counts.indptr))
        counts.data *= self.panels[row, counts.indices]
        object.__setattr__(self, "counts", counts)

    @property
    def area(self) -> NDArray[np.float64]:
        """(units,) area in superpixels."""
        area: NDArray[np.float64] = np.asarray(self.overlap.sum(axis=1, dtype=np.float64))
        return area

    @property
    def units_per_superpixel(self) -> float:
        """Over how many units a superpixel is spread on average; 1 where units are apart from one another."""
        covered = len(np.unique(self.overlap.indices))
        return max(int(self.overlap.nnz) / max(covered, 1), 1.0)

    def measured(self, units: NDArray[np.integer]) -> NDArray[np.bool_] | None:
        """(units, genes) whether the gene was measured in the unit; None where all were."""
        if self.panels is None or self.slide is None:
            return None
        panel: NDArray[np.bool_] = self.panels[self.slide[units]]
        return panel

    def seen(self, units: NDArray[np.integer], members: int) -> NDArray[np.bool_]:
        """(members, units) whether a member may be trained on a unit."""
        member = np.arange(members)[:, None]
        seen: NDArray[np.bool_] = self.fold[units] != member
        return seen if self.apart is None else seen & (self.apart[units] != member)

    def over_genes(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(genes,) sum of the (units,) values over the units that measured the gene."""
        if self.panels is None or self.slide is None:
            return np.full(self.counts.shape[1], values.sum(dtype=np.float64))
        sums: NDArray[np.float64] = np.bincount(self.slide, values, len(self.panels)) @ self.panels
        return sums

    def of_genes(self, genes: NDArray[np.integer]) -> Measurement:
        """Only some of the genes."""
        panels = None if self.panels is None else self.panels[:, genes]
        return replace(self, counts=csr_array(self.counts[:, genes]), panels=panels)

    def rows(self, units: NDArray[np.integer]) -> Measurement:
        """Only some of the units."""
        return replace(
            self,
            overlap=self.overlap[units],
            counts=self.counts[units],
            depth=self.depth[units],
            fold=self.fold[units],
            patch=self.patch[units],
            slide=None if self.slide is None else self.slide[units],
            apart=None if self.apart is None else self.apart[units],
        )


@dataclass
class History:
    """Held-out deviance per unit, genes weighted by the inverse of their mean, at each look.

    Attributes
    ----------
    step
        Steps of training so far.
    deviance
        Mean over the units, each predicted by the member that did not see it.
    loss
        Of training, mean over members, units and the steps since the look before; None where there were none. Empty
        if it was not kept, as by older versions and the published recipe.
    """

    step: list[int] = field(default_factory=list)
    deviance: list[float] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Position of the lowest deviance; of training that ran away it is NaN."""
        return int(np.argmin(np.nan_to_num(self.deviance, nan=np.inf)))


@dataclass(frozen=True)
class Batch:
    """Some units with the superpixels that they need, as tensors."""

    features: Tensor
    overlap: Tensor
    counts: Tensor
    depth: Tensor
    measured: Tensor | None


@dataclass(frozen=True)
class Reference:
    """A fitted ensemble to start from.

    Attributes
    ----------
    network
        Its hidden layers are of the same sizes.
    genes
        (genes,) positions of the genes to model among its outputs, -1 for those that it lacks.
    """

    network: Ensemble
    genes: NDArray[np.intp]

    def log_ceilings(self) -> Tensor | None:
        """(genes,) log of the highest rates that it believes, -inf of those that it lacks; None if it has none."""
        own = self.network.log_ceiling
        if own is None:
            return None
        known = torch.from_numpy(self.genes)
        return torch.where(known >= 0, own.cpu()[known], -torch.inf)


def fit_ensemble(
    data: Measurement,
    recipe: Recipe,
    device: torch.device,
    seed: int,
    progress: bool,
    reference: Reference | None = None,
    on_look: Callable[[Ensemble], None] | None = None,
) -> tuple[Ensemble, History]:
    """Train one member per fold on the units outside that fold, all members at once.

    The loss is the Poisson negative log-likelihood. The model is a moving average of the weights, as it was when the
    held-out units were predicted best; of a reference, also before the first step.

    Parameters
    ----------
    data
        Measured units, `fold` within 0 to ``recipe.folds - 1``.
    recipe
        How to train.
    device
        Where to compute.
    seed
        Of the weights, the batches and the dropout.
    progress
        Show a progress bar.
    reference
        To start from, at the levels of the data, instead of random weights.
    on_look
        Called with the averaged weights at each look.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = _initial(data, recipe).to(device)
        if reference is not None:
            _start_from(network, reference, data)
        average = copy.deepcopy(network).eval()
        weight = gene_weights(data, recipe.gene_power).to(device)
        shrinkage = recipe.shrinkage / len(data.fold) if reference is None else 0.0
        pulls = [] if reference is None else _pulls(network, recipe, reference, len(data.fold))
        optimiser = _optimiser(network, recipe, reference)
        warmup = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / recipe.warmup, 1, recipe.warmup)
        history, best = History(), copy.deepcopy(average)
        patches, load = _patches(data, recipe)
        batches = _batches(patches, load, recipe.batch, rng)
        every = int(np.clip(load.sum() // recipe.batch, *recipe.check_steps))
        looked_at = some_units(data, recipe, rng)
        even = gene_weights(data, 1).to(device)
        keep = round(recipe.superpixels_per_unit * data.units_per_superpixel)
        bar = tqdm(total=recipe.max_checks, desc="fit", disable=not progress, leave=False)
        with bar, quick_products():
            first = [0] if reference is not None else []
            for more in itertools.islice(itertools.chain(first, itertools.repeat(every)), recipe.max_checks):
                losses = []
                for units in itertools.islice(batches, more):
                    overlap = thin_rows(data.overlap[units], keep, rng)
                    batch = make_batch(data, units, device, overlap)
                    seen = torch.from_numpy(data.seen(units, recipe.folds)).to(batch.depth)
                    losses.append(_step(network, optimiser, batch, seen, weight, shrinkage))
                    with torch.no_grad():
                        for parameter, origin, far in pulls:
                            parameter.lerp_(origin, far)
                        for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                            slow.lerp_(fast, 1 - recipe.averaging)
                    warmup.step()
                history.step.append(sum(history.step[-1:]) + more)
                history.loss.append(float(torch.stack(losses).mean()) if losses else None)
                history.deviance.append(held_out_deviance(average, looked_at, even, device))
                bar.set_postfix(held_out_deviance=f"{history.deviance[-1]:.4f}")
                bar.update()
                if on_look is not None:
                    on_look(average)
                if history.best == len(history.step) - 1:
                    best.load_state_dict(average.state_dict())
                elif len(history.step) - 1 - history.best >= recipe.patience:
                    break
    return best, history


def gene_weights(data: Measurement, power: float) -> Tensor:
    """(genes,) mean count, where it was measured, to the power of ``-power``; the weighted mean counts sum to 1."""
    mean = (np.asarray(data.counts.sum(axis=0)).ravel() + EMPTY_GENE_COUNTS) / data.over_genes(np.ones(len(data.fold)))
    weight = mean**-power
    return torch.from_numpy(weight / (weight * mean).sum()).float()


def held_out_deviance(network: Ensemble, data: Measurement, weight: Tensor, device: torch.device) -> float:
    """Weighted Poisson deviance per unit, each unit predicted by the member that did not see it."""
    total = 0.0
    for units, mean in predict_units(network, data, device, held_out=True):
        counts = torch.from_numpy(data.counts[units].toarray()).to(device)
        each = deviance(torch.from_numpy(mean).to(device), counts) * weight
        total += float(_where_measured(each, _tensor(data.measured(units), device)).sum())
    return total / data.counts.shape[0]


def predict_units(
    network: Ensemble, data: Measurement, device: torch.device, *, held_out: bool, genes: Tensor | None = None
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Expected counts of the measured units, some at a time.

    Parameters
    ----------
    network
        Trained ensemble.
    data
        Measured units.
    device
        Where to compute.
    held_out
        Predict each unit by the member that did not see its fold, and units of no fold by all; otherwise predict by
        the mean over all members.
    genes
        Positions of the genes to predict, all by default.

    Yields
    ------
    Positions of units, and their (units, genes) expected counts.
    """
    folds = np.unique(data.fold) if held_out else [-1]
    outputs = network.architecture.genes
    uncounted = replace(data, counts=csr_array((len(data.fold), 0), dtype=np.float32), slide=None, panels=None)
    for fold in folds:
        members = slice(fold, fold + 1) if fold >= 0 else slice(None)
        predicting = network.held_out() if fold >= 0 else network
        chosen = np.flatnonzero(data.fold == fold) if held_out else np.arange(len(data.fold))
        rates = (1 if fold >= 0 else network.architecture.members) * (outputs if genes is None else len(genes))
        for units in pieces(data.overlap, chosen, rates):
            with torch.inference_mode():
                batch = make_batch(uncounted, units, device, data.overlap[units])
                mean = expected(predicting, batch, members, genes).mean(dim=0)
            yield units, mean.cpu().numpy()


def predicted_counts(
    network: Ensemble, data: Measurement, device: torch.device, *, held_out: bool, genes: Tensor | None = None
) -> NDArray[np.float32]:
    """(units, genes) expected counts of all units, as `predict_units` yields them."""
    predicted = np.empty((len(data.fold), data.counts.shape[1] if genes is None else len(genes)), np.float32)
    for units, mean in predict_units(network, data, device, held_out=held_out, genes=genes):
        predicted[units] = mean
    return predicted


def predict_rates(
    network: Ensemble,
    features: NDArray[np.floating],
    genes: NDArray[np.intp],
    device: torch.device,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation over the members of the (superpixels, genes) expected counts per superpixel."""
    mean = np.empty((len(features), len(genes)), np.float32)
    sd = np.empty_like(mean)
    chosen = torch.from_numpy(genes).to(device)
    with torch.inference_mode():
        size = _bounded(network.architecture.members * len(genes))
        for start in range(0, len(features), size):
            rows = slice(start, start + size)
            rate = network.rates(torch.from_numpy(features[rows]).to(device), genes=chosen)
            mean[rows] = rate.mean(dim=0).cpu().numpy()
            sd[rows] = rate.std(dim=0, correction=0).cpu().numpy()
    return mean, sd


def predict_latents(
    network: Ensemble, features: NDArray[np.floating], device: torch.device, rows: NDArray[np.intp] | None = None
) -> NDArray[np.float32]:
    """(members, superpixels, width) last hidden units, of all superpixels or those at some positions."""
    members, width = network.architecture.members, network.architecture.hidden[-1]
    rows = np.arange(len(features)) if rows is None else rows
    latents = np.empty((members, len(rows), width), np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), LATENT_ROWS):
            some = slice(start, start + LATENT_ROWS)
            latents[:, some] = network.latent(torch.from_numpy(features[rows[some]]).to(device)).cpu().numpy()
    return latents


def make_batch(data: Measurement, units: NDArray[np.integer], device: torch.device, overlap: csr_array) -> Batch:
    """Gather `units`, with their rows of the overlap matrix given, on the device."""
    shares, superpixels = sparse_overlap(overlap, device)
    return Batch(
        torch.from_numpy(data.features[superpixels]).to(device),
        shares,
        torch.from_numpy(data.counts[units].toarray().astype(np.float32)).to(device),
        torch.from_numpy(data.depth[units]).to(device),
        _tensor(data.measured(units), device),
    )


def sparse_overlap(overlap: csr_array, device: torch.device) -> tuple[Tensor, NDArray[np.integer]]:
    """(units, used) overlap with those superpixels that it has entries of, and their positions."""
    superpixels, columns = np.unique(overlap.indices, return_inverse=True)
    rows = np.repeat(np.arange(overlap.shape[0]), np.diff(overlap.indptr))
    sparse = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows, columns])),
        torch.from_numpy(overlap.data.astype(np.float32)),
        (overlap.shape[0], len(superpixels)),
        check_invariants=False,
    )
    return sparse.to(device), superpixels


def expected(network: Ensemble, batch: Batch, members: slice = slice(None), genes: Tensor | None = None) -> Tensor:
    """(members, units, genes) expected counts: depth * overlap @ rate."""
    rate = network.rates(batch.features, members, genes)
    count, superpixels, columns = rate.shape
    flat = rate.permute(1, 0, 2).reshape(superpixels, count * columns)
    pooled: Tensor = torch.sparse.mm(batch.overlap, flat).reshape(-1, count, columns).permute(1, 0, 2)
    return pooled * batch.depth[None, :, None]


def deviance(mean: Tensor, counts: Tensor) -> Tensor:
    """Poisson deviance of each count, 2 (y log(y / m) - y + m)."""
    mean = mean.clamp_min(1e-8)
    return 2 * (torch.xlogy(counts, counts / mean) - counts + mean)


def negative_log_likelihood(mean: Tensor, batch: Batch, weight: Tensor) -> Tensor:
    """(members, units) of the (members, units, genes) expected counts, over the genes that were measured."""
    each = (mean - batch.counts * torch.log(mean + 1e-8)) * weight
    return _where_measured(each, batch.measured).sum(dim=-1)


def thin_rows(overlap: csr_array, keep: int, rng: np.random.Generator) -> csr_array:
    """At most `keep` random entries of every row, scaled so that the expected sum of the row stays."""
    size = np.diff(overlap.indptr)
    if size.max(initial=0) <= keep:
        return overlap
    rows = np.repeat(np.arange(len(size)), size)
    order = np.lexsort((rng.random(len(rows)), rows))
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows)) - np.repeat(overlap.indptr[:-1], size)
    chosen = rank < keep
    scale = np.maximum(size / keep, 1.0)[rows[chosen]]
    ends = np.concatenate([[0], np.cumsum(np.minimum(size, keep))])
    return csr_array((overlap.data[chosen] * scale, overlap.indices[chosen], ends), shape=overlap.shape)


def _initial(data: Measurement, recipe: Recipe) -> Ensemble:
    """Every member starts from the mean rate of each gene over the units that it may see."""
    channels, genes = data.features.shape[1], data.counts.shape[1]
    network = Ensemble(
        Architecture(
            recipe.folds,
            channels,
            genes,
            recipe.hidden,
            recipe.dropout,
            recipe.input_dropout,
            latent_limit=LATENT_LIMIT,
        )
    )
    network.standardise_by(data.features)
    exposure = data.area * data.depth
    with torch.no_grad():
        network.weights[-1].mul_(0.1)
        for member, seen in enumerate(data.seen(np.arange(len(data.fold)), recipe.folds)):
            counts = np.asarray(data.counts[seen].sum(axis=0)).ravel()
            rate = (counts + EMPTY_GENE_COUNTS) / data.over_genes(exposure * seen)
            network.biases[-1][member, 0] = torch.from_numpy(np.log(rate))
    return network


def _start_from(network: Ensemble, reference: Reference, data: Measurement) -> None:
    """Take over the reference's members in turn, and the outputs of its genes, at the levels of the data."""
    device = network.feature_mean.device
    origin = reference.network.to(device)
    member = torch.arange(network.architecture.members, device=device) % origin.architecture.members
    positions = np.flatnonzero(reference.genes >= 0)
    known = torch.from_numpy(positions).to(device)
    there = torch.from_numpy(reference.genes[positions]).to(device)
    network.feature_mean.copy_(origin.feature_mean)
    network.feature_sd.copy_(origin.feature_sd)
    with torch.no_grad():
        for layers, theirs in ((network.weights, origin.weights), (network.biases, origin.biases)):
            for own, their in zip(layers[:-1], theirs[:-1], strict=True):
                own.copy_(their[member])
            layers[-1][..., known] = theirs[-1][member][..., there]
        network.biases[-1][..., known] += _log_levels(network.eval(), data, positions)[:, None]


def _log_levels(network: Ensemble, data: Measurement, genes: NDArray[np.intp]) -> Tensor:
    """(members, genes) log of what was counted over what each member expects, on the units that it may see.

    Genes of few counts stay near the ratio of the totals.
    """
    members = network.architecture.members
    device = network.feature_mean.device
    chosen = torch.from_numpy(genes).to(device)
    counted, mean = torch.zeros((2, members, len(genes)), device=device)
    data = data.of_genes(genes)
    for units in pieces(data.overlap, np.arange(len(data.fold)), members * len(genes)):
        batch = make_batch(data, units, device, data.overlap[units])
        seen = torch.from_numpy(data.seen(units, members)).to(mean)
        counted += seen @ batch.counts
        each = _where_measured(expected(network, batch, genes=chosen), batch.measured)
        mean += (each * seen[..., None]).sum(dim=1)
    depth = (counted.sum(dim=1, keepdim=True) + EMPTY_GENE_COUNTS) / mean.sum(dim=1, keepdim=True)
    levels: Tensor = depth * (counted + LEVEL_COUNTS) / (depth * mean + LEVEL_COUNTS)
    return levels.log()


def _optimiser(network: Ensemble, recipe: Recipe, reference: Reference | None) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if reference is not None:
        rate, decay = recipe.reference_learning_rate, 0.0
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, fused=True)


def _pulls(network: Ensemble, recipe: Recipe, reference: Reference, units: int) -> list[Pull]:
    """Parameters, where each step pulls them to, and how far.

    The levels of the genes are free, and so are genes that the reference lacks.
    """
    far = min(recipe.reference_learning_rate * recipe.reference_pull / units, 1.0)
    known = torch.from_numpy(reference.genes >= 0).to(network.feature_mean)
    hidden = [*network.weights[:-1], *network.biases[:-1]]
    shared = [(layer, layer.detach().clone(), known.new_tensor(far)) for layer in hidden]
    outputs = network.weights[-1]
    return [*shared, (outputs, outputs.detach().clone(), far * known)]


def _patches(data: Measurement, recipe: Recipe) -> tuple[list[NDArray[np.intp]], NDArray[np.intp]]:
    """Units of each patch, and about how many superpixels they need."""
    order = np.argsort(data.patch, kind="stable")
    patches = np.split(order, np.flatnonzero(np.diff(data.patch[order])) + 1)
    size = np.diff(data.overlap.indptr).clip(max=recipe.superpixels_per_unit)
    # The bins of a patch share their superpixels; spots share none.
    load = [min(size[units].sum(), max(len(units), size[units].max())) for units in patches]
    return patches, np.array(load)


def _batches(
    patches: list[NDArray[np.intp]], load: NDArray[np.intp], batch: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """Units of shuffled patches, about `batch` superpixels at a time, for ever."""
    while True:
        shuffled = rng.permutation(len(patches))
        number = np.cumsum(load[shuffled]) // batch
        for chosen in np.split(shuffled, np.flatnonzero(np.diff(number)) + 1):
            yield np.concatenate([patches[i] for i in chosen])


def some_units(data: Measurement, recipe: Recipe, rng: np.random.Generator) -> Measurement:
    """A fixed sample of units and of their superpixels, large enough to see the held-out deviance turn."""
    some = data.rows(np.sort(rng.permutation(len(data.fold))[: recipe.check_units]))
    return replace(some, overlap=thin_rows(some.overlap, round(CHECK_SUPERPIXELS * data.units_per_superpixel), rng))


def _step(
    network: Ensemble, optimiser: torch.optim.Optimizer, batch: Batch, seen: Tensor, weight: Tensor, shrinkage: float
) -> Tensor:
    """By the (genes,) `weight` of the loss, and with a precision of the output weights, per unit, of `shrinkage`.

    Returns the loss, mean over members and units.
    """
    network.train()
    each = negative_log_likelihood(expected(network, batch), batch, weight)
    loss = (each * seen).sum(dim=1) / seen.sum(dim=1).clamp_min(1)
    prior = shrinkage / 2 * (weight * network.weights[-1].square()).sum()
    optimiser.zero_grad(set_to_none=True)
    # Members share no weights, so that each has the gradient of its own mean.
    (prior + loss.sum()).backward()
    _clip_gradients(network)
    optimiser.step()
    return loss.detach().mean()


def _where_measured(values: Tensor, measured: Tensor | None) -> Tensor:
    return values if measured is None else values * measured


def _tensor(measured: NDArray[np.bool_] | None, device: torch.device) -> Tensor | None:
    return None if measured is None else torch.from_numpy(measured).to(device)


def _clip_gradients(network: Ensemble) -> None:
    """Shorten each member's gradient to 1, so that no member's step depends on what another one saw."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.square().sum(dim=(1, 2)) for gradient in gradients]).sum(dim=0).sqrt()
    for gradient in gradients:
        gradient.mul_((1 / norm.clamp_min(1))[:, None, None])


def pieces(
    overlap: csr_array, units: NDArray[np.intp], rates: int, most: int | None = None
) -> Iterator[NDArray[np.intp]]:
    """Split units so that each piece needs a bounded number of superpixels, each of which has so many rates."""
    if len(units) == 0:
        return
    load = np.cumsum(np.diff(overlap.indptr)[units]) // _bounded(rates, most)
    yield from np.split(units, np.flatnonzero(np.diff(load)) + 1)


def _bounded(rates: int, most: int | None = None) -> int:
    """Superpixels at once, each of which has so many rates."""
    return max(min(SCORING_SUPERPIXELS, (SCORING_RATES if most is None else most) // max(rates, 1)), 1)
