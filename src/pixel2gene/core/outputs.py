"""The output layer, fitted anew: what each gene makes of what the hidden layers have learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from pixel2gene.core.ceiling import MARGIN, highest_rates, log_ceiling
from pixel2gene.core.ensemble import OPTIONAL, Ensemble
from pixel2gene.core.regression import (
    EMPTY_GENE_COUNTS,
    LEVEL_COUNTS,
    Measurement,
    Recipe,
    gene_weights,
    held_out_deviance,
    pieces,
    predict_latents,
    some_units,
    sparse_overlap,
)

# Genes, and (superpixels, genes) rates, at once.
GENES, RATES = 256, 2**20
# Newton's steps, at most, and the farthest that one moves the log rate of any superpixel.
STEPS, FARTHEST = 100, 2.0
# A gene has converged where the next step would raise its log-posterior by less than this, or than rounding does, in
# relation to its counts.
GAIN, ROUNDING = 2e-3, 1e-7
# A step that lowers the posterior is taken again, so much shorter; the next one after one that does not may be longer.
SHORTER, LONGER = 0.25, 1.5
# Weights that expect so many times the counts are no start.
ABSURD = 10.0
# Of a step that has to be this short, a gain that is as small says nothing.
SHORTEST = 2e-3
# Units, and their superpixels, that tell how the likelihood bends, at most. Its slope is that of all.
BEND_UNITS, BEND_SUPERPIXELS = 2**13, 2**17
LEAST_BEND_UNITS = 2**9
# Turns in which weights come to agree with their distribution.
TURNS = 4
# What a sound member expects of the counts of a gene may be off by so much, and by so much over the highest count.
LARGEST_OFF, LARGEST_PEAK = 0.02, 5.0
# What a gene of few counts may be expected to have, after a reference, in relation to its counts and half of one.
LEVEL_OF_REFERENCE = 50.0
# Of outputs fitted anew, between those and the ones that were trained.
SHARES = (0.0, 0.5, 1.0)
# Of outputs fitted to what a member saw, in those that predict, of a gene of whose counts it saw its share.
OF_SEEN = 0.5
# How wide the distribution is at first, as a multiple of the variance of weights that were trained, and shrunken.
WIDER = 4.0
# How well the level of a gene is known beforehand.
LEVEL_PRECISION = 0.1
SMALLEST_AREA = 1e-6


@dataclass(frozen=True)
class _Prior:
    """Normal distribution of the (width,) output weights of a gene."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class _Piece:
    """Some units, with the superpixels that they cover.

    Attributes
    ----------
    exposure
        (units, superpixels) depth times overlap, sparse; or (superpixels, 1) where each unit has one of its own.
    design
        (superpixels, 1 + width) ones and latents.
    counts
        (units, genes); None where `_Evidence.sums` has all that they say.
    panel
        (units,) the row of the panels that tells what was measured in a unit.
    """

    exposure: Tensor
    design: Tensor
    counts: csr_array | None
    panel: Tensor


@dataclass(frozen=True)
class _Bend:
    """Units that tell how the likelihood bends, each with as many superpixels as the largest of them has.

    Attributes
    ----------
    exposure
        (units, superpixels) depth times overlap, times the number of units that each stands for; 0 where one has less.
    design
        (units, superpixels, 1 + width).
    panel
        (units,).
    """

    exposure: Tensor
    design: Tensor
    panel: Tensor


@dataclass(frozen=True)
class _Evidence:
    """What a member has to learn its output weights from.

    Attributes
    ----------
    pieces
        All of its units.
    bends
        Some of them.
    totals
        (genes,) counts in all.
    exposure
        (genes,) depth times area of those that measured a gene.
    panels
        (slides, genes) 1 where a gene was measured.
    sums
        (genes, 1 + width) sum of the design over the counts, where each unit has one superpixel of its own, and so
        every count a place; else None.
    """

    pieces: list[_Piece]
    bends: list[_Bend]
    totals: Tensor
    exposure: Tensor
    panels: Tensor
    sums: Tensor | None

    def of_genes(self, genes: NDArray[np.intp]) -> _Evidence:
        chosen = torch.from_numpy(genes)
        return _Evidence(
            [
                piece if piece.counts is None else replace(piece, counts=csr_array(piece.counts[:, genes]))
                for piece in self.pieces
            ],
            self.bends,
            self.totals[chosen],
            self.exposure[chosen],
            self.panels[:, chosen],
            None if self.sums is None else self.sums[chosen],
        )


@dataclass(frozen=True)
class _State:
    """The likelihood of genes at some weights.

    Attributes
    ----------
    weights
        (genes, 1 + width) level and weights.
    value
        (genes,) log-likelihood, up to a constant.
    slope
        (genes, 1 + width) its gradient.
    expected
        (genes,) counts in all.
    """

    weights: Tensor
    value: Tensor
    slope: Tensor
    expected: Tensor

    def of_genes(self, genes: NDArray[np.intp]) -> _State:
        return _State(*(value[torch.from_numpy(genes)] for value in vars(self).values()))


@dataclass(frozen=True)
class _Modes:
    """Where the genes ended.

    Attributes
    ----------
    state
        At the posterior modes of the weights.
    covariance
        (width, width) posterior covariance of the weights, mean over the genes.
    converged
        (genes,) whether it is the posterior mode.
    """

    state: _State
    covariance: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Finished:
    """What `finish` returns.

    Attributes
    ----------
    network
        Of all genes.
    converged
        (genes,) whether the outputs fitted anew are at their posterior mode, for all members.
    level
        (members, genes) counts that each member expects in all units, in relation to what was counted.
    peak
        (members, genes) its highest rate in a unit, in relation to the highest that the counts of a unit allow.
    """

    network: Ensemble
    converged: NDArray[np.bool_]
    level: NDArray[np.float64]
    peak: NDArray[np.float64]

    def complaint(self, genes: list[str]) -> str | None:
        """What is wrong with the model, if anything is."""
        off = ~(np.abs(self.level - 1) <= LARGEST_OFF).all(axis=0)
        high = ~(self.peak <= LARGEST_PEAK).all(axis=0)
        wrong = {
            f"expects {LARGEST_OFF:.0%} more or fewer counts than there are": off,
            f"expects over {LARGEST_PEAK:g} times the highest count of any unit": high,
            "has outputs that did not converge": ~self.converged,
        }
        said = [
            f"{what} of {np.count_nonzero(which)} genes ({', '.join(genes[i] for i in np.flatnonzero(which)[:3])})"
            for what, which in wrong.items()
            if which.any()
        ]
        if not said:
            return None
        return (
            f"The fit is not sound: a member {'; '.join(said)}. Do not use these genes: fit again with another seed, "
            "or without them."
        )


def finish(
    network: Ensemble,
    lead: NDArray[np.intp],
    data: Measurement,
    recipe: Recipe,
    device: torch.device,
    seed: int,
    *,
    from_reference: bool = False,
    log_ceilings: Tensor | None = None,
) -> Finished:
    """Fit the output layer to all genes, the hidden layers as they are.

    Weights are at their posterior mode: Poisson likelihood of the units, and a normal distribution of the weights of a
    gene, which is that of the leading genes (empirical Bayes). So genes of few counts lean on what the others have in
    common.

    The outputs of the leading genes are then between those that were trained and those fitted anew, at the one of
    `SHARES` that predicts held-out units best; after a reference they are those that were trained, because new ones
    would not know what these know of it. Whatever they are, the level of each gene is such that a member expects as
    many counts as there are.

    All this is done twice: for the units that a member saw, which is what it predicts held-out units by; and for all
    units, since a member that saw nothing of the only place of a gene has nothing to say of it. What is predicted
    otherwise lies between the two, halfway if the member saw its share of the counts of a gene: members that differ
    are right more often together.

    Parameters
    ----------
    network
        Trained on the leading genes.
    lead
        (leading genes,) their positions among the genes of the data.
    data
        Measured units.
    recipe
        How it was trained.
    device
        Where to compute.
    seed
        Of the units looked at.
    from_reference
        Whether training started from a reference.
    log_ceilings
        (leading genes,) log of the highest rates that the reference believes, -inf for genes that it lacks.
    """
    genes, members = data.counts.shape[1], network.architecture.members
    trained, lead_of = _outputs_of(network), data.of_genes(lead)
    # One gene alone does not tell how weights are distributed.
    learn = genes > 1 and len(lead) > 1 and not (from_reference and len(lead) == genes)
    shares = SHARES if learn and not from_reference else (0.0,)
    candidates = torch.zeros(len(shares), members, *trained.shape[1:], dtype=torch.float64)
    held_out, whole = torch.zeros(2, members, genes, trained.shape[2], dtype=torch.float64)
    found: list[tuple[_Modes, _Prior]] = []
    latents, seen = predict_latents(network, data.features, device), data.seen(np.arange(len(data.fold)), members)
    for member in range(members):
        evidence = _evidence(latents[member], data, np.flatnonzero(seen[member]), device, seed)
        leading = evidence.of_genes(lead)
        kept = _at_level(leading, trained[member].to(device), from_reference)
        candidates[0, member] = kept.cpu()
        if not learn:
            continue
        prior = _learn_prior(leading, kept)
        modes = _modes(evidence, prior, None)
        found.append((modes, prior))
        held_out[member] = _with_totals(evidence, modes.state).cpu()
        for i, share in enumerate(shares[1:], 1):
            candidates[i, member] = torch.lerp(candidates[0, member], held_out[member, lead], share)
            if share < 1:
                candidates[i, member] = _at_level(leading, candidates[i, member].to(device)).cpu()
    best = 0
    if len(shares) > 1:
        deviance = [_held_out_deviance(network, outputs, lead_of, recipe, device, seed) for outputs in candidates]
        best = int(np.nanargmin(deviance)) if np.isfinite(deviance).any() else 0
    held_out[:, lead] = candidates[best]
    share_seen = _share_seen(data, seen)
    ceiling, converged = log_ceiling(highest_rates(data)), np.ones(genes, bool)
    if log_ceilings is not None:
        ceiling[lead] = torch.maximum(ceiling[lead], log_ceilings.cpu())
    level, peak = np.empty((2, members, genes))
    for member in range(members):
        evidence = _evidence(latents[member], data, np.arange(len(data.fold)), device, seed)
        of_all = held_out[member].to(device, copy=True)
        if learn and (shares[best] > 0 or len(lead) < genes):
            modes, prior = found[member]
            modes = _modes(evidence, prior, modes.state.weights)
            reached = (modes.converged & found[member][0].converged).cpu().numpy()
            if shares[best] == 0:
                # Theirs are not used.
                reached[lead] = True
            converged &= reached
            of_all = modes.state.weights.clone()
        if shares[best] < 1:
            kept = _at_level(evidence.of_genes(lead), trained[member].to(device), from_reference)
            of_all[lead] = torch.lerp(kept, of_all[lead], shares[best])
        between = torch.lerp(of_all, held_out[member].to(device), (OF_SEEN * share_seen[member, :, None]).to(device))
        levelled = _at_level(evidence, between)
        if from_reference:
            levelled[lead] = between[lead]
        whole[member] = levelled.cpu()
        level[member], peak[member] = _check(evidence, whole[member].to(device), ceiling.to(device))
        if from_reference:
            # What few counts say of the levels of its genes, the reference outweighs.
            near = np.abs(np.log(level[member, lead])) < np.log(LEVEL_OF_REFERENCE)
            level[member, lead] = np.where(near, 1.0, level[member, lead])
    finished = _with_outputs(network, whole)
    finished.hold_out(_with_outputs(network, held_out))
    finished.log_ceiling = ceiling
    return Finished(finished.to(device).eval(), converged, level, peak)


def _share_seen(data: Measurement, seen: NDArray[np.bool_]) -> Tensor:
    """(members, genes) counts that a member saw, in relation to its share of the area and depth; 1 at most."""
    exposure = data.area * data.depth
    counted = np.stack([np.asarray(data.counts[np.flatnonzero(own)].sum(axis=0)).ravel() for own in seen])
    exposed = np.stack([data.over_genes(exposure * own) for own in seen]) / data.over_genes(exposure)
    total = np.asarray(data.counts.sum(axis=0)).ravel()
    return torch.from_numpy(np.minimum(counted / np.maximum(total * exposed, 1e-9), 1.0))


def _gene_chunks(genes: int) -> list[NDArray[np.intp]]:
    return np.array_split(np.arange(genes), -(-genes // GENES))


def leading_genes(counts: csr_array, most: int) -> NDArray[np.intp]:
    """Positions of at most so many genes, those with the most counts; of two, since one tells nothing of the others."""
    totals = np.asarray(counts.sum(axis=0)).ravel()
    return np.sort(np.argsort(-totals, kind="stable")[: max(most, 2)])


def _held_out_deviance(
    network: Ensemble, outputs: Tensor, data: Measurement, recipe: Recipe, device: torch.device, seed: int
) -> float:
    """Weighted deviance of held-out units by (members, genes, 1 + width) outputs."""
    some = some_units(data, recipe, np.random.default_rng(seed))
    weight = gene_weights(data, recipe.gene_power).to(device)
    return held_out_deviance(_with_outputs(network, outputs).to(device), some, weight, device)


def _outputs_of(network: Ensemble) -> Tensor:
    """(members, genes, 1 + width) levels and weights of the last layer."""
    return torch.cat([network.biases[-1], network.weights[-1]], dim=1).detach().transpose(1, 2).double()


def _with_outputs(network: Ensemble, outputs: Tensor) -> Ensemble:
    """Copy of the network with (members, genes, 1 + width) levels and weights as its last layer."""
    last = len(network.weights) - 1
    other = Ensemble(replace(network.architecture, genes=outputs.shape[1]))
    own = {f"weights.{last}": outputs[..., 1:], f"biases.{last}": outputs[..., :1]}
    state = {name: value for name, value in network.state_dict().items() if name not in own.keys() | OPTIONAL}
    other.load_state_dict(state | {name: value.transpose(1, 2).float() for name, value in own.items()})
    return other.eval()


def _evidence(
    latents: NDArray[np.float32],
    data: Measurement,
    units: NDArray[np.intp],
    device: torch.device,
    seed: int,
) -> _Evidence:
    slide = np.zeros(len(data.fold), np.intp) if data.slide is None else data.slide
    panels = np.ones((1, data.counts.shape[1])) if data.panels is None else data.panels.astype(np.float64)
    exposed = csr_array(diags_array(data.depth) @ data.overlap).astype(np.float32)
    covered = exposed[units].indices
    apart = bool((np.diff(exposed.indptr)[units] == 1).all()) and len(covered) == len(np.unique(covered))
    parts = []
    for some in pieces(data.overlap, units, GENES, RATES):
        exposure, superpixels = sparse_overlap(exposed[some], device)
        if apart:
            # In the order of the units.
            superpixels = exposed[some].indices
            exposure = torch.from_numpy(exposed[some].data[:, None]).to(device)
        parts.append(
            _Piece(
                exposure,
                _with_level(torch.from_numpy(latents[superpixels]).to(device)),
                None if apart else data.counts[some],
                torch.from_numpy(slide[some]).to(device),
            )
        )
    counts, area = data.counts[units], np.asarray(exposed[units].sum(axis=1, dtype=np.float64)).ravel()
    sums = None
    if apart:
        design = np.pad(latents[covered].astype(np.float64), ((0, 0), (1, 0)), constant_values=1)
        sums = torch.from_numpy(np.asarray(counts.T @ design)).to(device)
    return _Evidence(
        parts,
        list(_bends(latents, exposed, slide, units, device, np.random.default_rng(seed))),
        torch.from_numpy(np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()).to(device),
        torch.from_numpy(np.bincount(slide[units], area, len(panels)) @ panels).to(device),
        torch.from_numpy(panels.astype(np.float32)).to(device),
        sums,
    )


def _bends(
    latents: NDArray[np.float32],
    exposed: csr_array,
    slide: NDArray[np.intp],
    units: NDArray[np.intp],
    device: torch.device,
    rng: np.random.Generator,
) -> Iterator[_Bend]:
    """Draw units for the curvature, half at random and half by how far their latents lie from the others'.

    The few that lie far off are all there, where the genes are that show in nothing else (leverage scores; Mahoney,
    2011).
    """
    size = np.diff(exposed.indptr)[units]
    mean = np.asarray(exposed[units] @ latents) / np.maximum(exposed[units].sum(axis=1), 1e-12)[:, None]
    off = mean - mean.mean(axis=0)
    leverage = np.einsum("uw,wv,uv->u", off, np.linalg.pinv(off.T @ off, hermitian=True), off) + 1e-12
    number = min(BEND_UNITS, max(BEND_SUPERPIXELS / size.mean(), LEAST_BEND_UNITS))
    share = np.minimum(number / 2 * (1 / len(units) + leverage / leverage.sum()), 1)
    drawn = rng.random(len(units)) < share if number < len(units) else share > 0
    stands_for = np.where(number < len(units), 1 / share, 1.0)
    chosen = np.flatnonzero(drawn)
    chosen = chosen[np.argsort(size[chosen], kind="stable")]
    for some in np.array_split(chosen, max(1, -(-int(size[chosen].sum()) * GENES // (4 * RATES)))):
        if len(some) == 0:
            continue
        rows = exposed[units[some]]
        length = np.diff(rows.indptr)
        row = np.repeat(np.arange(len(some)), length)
        column = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], length)
        exposure = np.zeros((len(some), length.max(initial=1)), np.float32)
        place = np.zeros(exposure.shape, np.int64)
        exposure[row, column] = rows.data * stands_for[some][row]
        place[row, column] = rows.indices
        yield _Bend(
            torch.from_numpy(exposure).to(device),
            _with_level(torch.from_numpy(latents[place]).to(device)),
            torch.from_numpy(slide[units[some]]).to(device),
        )


def _learn_prior(leading: _Evidence, trained: Tensor) -> _Prior:
    """Distribution of the weights of genes, with their posterior modes, by expectation maximisation.

    `trained` are the (leading genes, 1 + width) outputs that the hidden layers were trained with.
    """
    off = trained[:, 1:] - trained[:, 1:].mean(dim=0)
    prior = _Prior(trained[:, 1:].mean(dim=0), WIDER * _covariance(off, torch.zeros_like(off.T @ off)))
    state: _State | Tensor = trained
    for _ in range(TURNS):
        found = _modes(leading, prior, state)
        state = found.state
        mean = found.state.weights[:, 1:].mean(dim=0)
        prior = _Prior(mean, _covariance(found.state.weights[:, 1:] - mean, found.covariance))
    return prior


def _covariance(deviations: Tensor, uncertainty: Tensor) -> Tensor:
    """(width, width) of normal weights that are known but so well; of few genes, nearer to one along all axes."""
    genes, width = deviations.shape
    found = deviations.T @ deviations / genes + uncertainty
    even = torch.eye(width, dtype=found.dtype, device=found.device) * found.diagonal().mean()
    covariance: Tensor = (genes * found + width * even) / (genes + width)
    return covariance


def _modes(evidence: _Evidence, prior: _Prior, start: _State | Tensor | None) -> _Modes:
    """Posterior modes of the weights of all genes, from a start or from the mean of the prior."""
    found = []
    for some in _gene_chunks(len(evidence.totals)):
        there = start.of_genes(some) if isinstance(start, _State) else None if start is None else start[some]
        found.append(_newton(evidence.of_genes(some), prior, there))
    states = zip(*(vars(one.state).values() for one in found), strict=True)
    covariance = torch.stack([one.covariance * len(one.converged) for one in found]).sum(dim=0) / len(evidence.totals)
    return _Modes(_State(*map(torch.cat, states)), covariance, torch.cat([one.converged for one in found]))


def _newton(evidence: _Evidence, prior: _Prior, start: _State | Tensor | None) -> _Modes:
    """Fisher scoring, gene by gene, with the exact slope.

    A step is shortened until it moves no log rate of a superpixel by more than `FARTHEST`, and taken again if it lowers
    the posterior, so that none can run away.
    """
    size = 1 + len(prior.mean)
    precision = torch.zeros(size, size, dtype=torch.float64, device=prior.mean.device)
    precision[0, 0] = LEVEL_PRECISION
    precision[1:, 1:] = torch.linalg.inv(prior.covariance)
    level = ((evidence.totals + EMPTY_GENE_COUNTS) / evidence.exposure).log()
    centre = torch.cat([level[:, None], prior.mean.expand(len(level), -1)], dim=1)

    def log_prior(weights: Tensor, genes: Tensor) -> tuple[Tensor, Tensor]:
        off = weights - centre[genes]
        pull = off @ precision
        return -(off * pull).sum(dim=1) / 2, -pull

    active = torch.arange(len(level), device=level.device)
    if not isinstance(start, _State):
        start = _likelihood(evidence, centre if start is None else start, active)
    sound = start.value.isfinite() & (start.expected < ABSURD * (evidence.totals + 1))
    if not bool(sound.all()):
        start = _likelihood(evidence, torch.where(sound[:, None], start.weights, centre), active)
    found = _State(*(value.clone() for value in vars(start).values()))
    information = torch.empty(len(level), size, size, dtype=torch.float64, device=level.device)
    length = torch.ones_like(level)
    for _ in range(STEPS):
        rounding = ROUNDING * (evidence.totals + found.value.abs())
        information[active] = _information(evidence, found.weights[active], active) + precision
        before, pull = log_prior(found.weights[active], active)
        slope = found.slope[active] + pull
        step = torch.linalg.solve(information[active], slope[..., None])[..., 0]
        gain = (step * slope).sum(dim=1) / 2 * length[active].clamp_min(SHORTEST)
        # What is not a number has not ended.
        going = ~(gain <= GAIN + rounding[active])
        active, step, before = active[going], step[going], before[going]
        if len(active) == 0:
            break
        far = _farthest(evidence, step)
        step *= (FARTHEST / far.clamp_min(FARTHEST) * length[active])[:, None]
        tried = _likelihood(evidence, found.weights[active] + step, active)
        after = tried.value + log_prior(tried.weights, active)[0]
        # What is not a number is no better.
        better = after >= found.value[active] + before - rounding[active]
        length[active] = torch.where(better, (length[active] * LONGER).clamp_max(1), length[active] * SHORTER)
        for values, new in zip(vars(found).values(), vars(tried).values(), strict=True):
            values[active[better]] = new[better]
    converged = torch.ones(len(level), dtype=torch.bool, device=level.device)
    converged[active] = False
    converged &= found.value.isfinite() & information.flatten(1).isfinite().all(dim=1)
    known = information[converged] if bool(converged.any()) else precision[None]
    return _Modes(found, torch.linalg.inv(known)[:, 1:, 1:].mean(dim=0), converged)


def _likelihood(evidence: _Evidence, weights: Tensor, genes: Tensor) -> _State:
    """Of all units, given the (genes, 1 + width) weights of the genes at some positions."""
    slope, single = torch.zeros_like(weights), weights.float().T
    value, expected = weights.new_zeros((2, len(genes)))
    panels = _panels(evidence, genes)
    for piece in evidence.pieces:
        rate = (piece.design @ single).exp_()
        measured = None if panels is None else panels[piece.panel]
        if piece.counts is None:
            mean = rate.mul_(piece.exposure)
            if measured is not None:
                mean *= measured
            slope -= (mean.T @ piece.design).double()
            expected += mean.sum(dim=0).double()
            continue
        mean = torch.sparse.mm(piece.exposure, rate).clamp_min_(torch.finfo(torch.float32).tiny)
        counts = torch.from_numpy(piece.counts.toarray().astype(np.float32)).to(mean)[:, genes]
        off = counts / mean - 1
        if measured is not None:
            off *= measured
            mean *= measured
        slope += ((rate * torch.sparse.mm(piece.exposure.T, off)).T @ piece.design).double()
        value += torch.xlogy(counts, mean).sum(dim=0).double()
        expected += mean.sum(dim=0).double()
    if evidence.sums is not None:
        sums = evidence.sums[genes]
        value, slope = (weights * sums).sum(dim=1), slope + sums
    return _State(weights, value - expected, slope, expected)


def _information(evidence: _Evidence, weights: Tensor, genes: Tensor) -> Tensor:
    """(genes, 1 + width, 1 + width) Fisher information of the units that are to tell it."""
    size = weights.shape[1]
    total = weights.new_zeros((len(genes), size, size))
    first, second = torch.triu_indices(size, size, device=weights.device)
    panels, single = _panels(evidence, genes), weights.float().T
    for some in evidence.bends:
        rate = (some.design @ single).exp_().mul_(some.exposure[..., None])
        if panels is not None:
            rate *= panels[some.panel][:, None]
        if rate.shape[1] == 1:
            design = some.design[:, 0]
            products = (rate[:, 0].T @ (design[:, first] * design[:, second])).double()
            part = torch.empty_like(total)
            part[:, first, second] = part[:, second, first] = products
            total += part
            continue
        moved = rate.transpose(1, 2) @ some.design
        moved *= moved[..., :1].clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
        moved = moved.transpose(0, 1)
        total += (moved.transpose(1, 2) @ moved).double()
    return total


def _panels(evidence: _Evidence, genes: Tensor) -> Tensor | None:
    """(slides, genes) 1 where a gene was measured; None where all were."""
    panels = evidence.panels[:, genes]
    return None if bool(panels.all()) else panels


def _farthest(evidence: _Evidence, step: Tensor) -> Tensor:
    """(genes,) the most that a step of weights moves the log rate of a superpixel."""
    far, single = torch.zeros_like(step[:, 0]), step.float().T
    for piece in evidence.pieces:
        low, high = torch.aminmax(piece.design @ single, dim=0)
        far = torch.maximum(far, torch.maximum(-low, high).double())
    return far


def _at_level(evidence: _Evidence, weights: Tensor, from_reference: bool = False) -> Tensor:
    """Outputs that expect as many counts of each gene as there are."""
    levelled = torch.empty_like(weights)
    for some in _gene_chunks(len(weights)):
        part = evidence.of_genes(some)
        state = _likelihood(part, weights[some], torch.arange(len(some), device=weights.device))
        levelled[some] = _with_totals(part, state, from_reference)
    return levelled


def _with_totals(evidence: _Evidence, state: _State, from_reference: bool = False) -> Tensor:
    """Outputs with levels moved so that what is expected is what was counted, or next to nothing where nothing was.

    After a reference, genes of few counts stay near the ratio of the totals of all genes.
    """
    counted, expected = evidence.totals, state.expected
    if from_reference:
        depth = counted.sum() / expected.sum()
        levels = (depth * (counted + LEVEL_COUNTS) / (depth * expected + LEVEL_COUNTS)).log()
    else:
        levels = (torch.where(counted > 0, counted, EMPTY_GENE_COUNTS) / expected.clamp_min(1e-30)).log()
        levels = torch.where(counted > 0, levels, levels.clamp_max(0))
    return torch.cat([state.weights[:, :1] + levels[:, None], state.weights[:, 1:]], dim=1)


def _check(evidence: _Evidence, weights: Tensor, ceiling: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is expected of each gene in all units in relation to its counts, and in the richest to the highest rate.

    Half a count more or less is none.
    """
    level, peak = np.empty((2, len(weights)))
    for some in _gene_chunks(len(weights)):
        part, single = evidence.of_genes(some), weights[some].float().T
        panels = _panels(part, torch.arange(single.shape[1], device=weights.device))
        expected, most = torch.zeros(2, single.shape[1], dtype=torch.float64, device=weights.device)
        for piece in part.pieces:
            rate = torch.minimum(piece.design @ single, ceiling[torch.from_numpy(some).to(ceiling.device)]).exp_()
            if piece.counts is not None:
                area = torch.sparse.sum(piece.exposure, dim=1).to_dense()[:, None]
                mean = torch.sparse.mm(piece.exposure, rate)
            else:
                area, mean = piece.exposure, rate * piece.exposure
            if panels is not None:
                mean *= panels[piece.panel]
            expected += mean.sum(dim=0).double()
            most = torch.maximum(most, (mean / area.clamp_min(SMALLEST_AREA)).amax(dim=0).double())
        off = expected - part.totals
        off = off.sign() * (off.abs() - EMPTY_GENE_COUNTS).clamp_min(0)
        level[some] = (1 + off / part.totals.clamp_min(EMPTY_GENE_COUNTS)).cpu().numpy()
        peak[some] = (most * MARGIN / ceiling[torch.from_numpy(some).to(ceiling.device)].double().exp()).cpu().numpy()
    return level, peak


def _with_level(latents: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(latents[..., :1]), latents], dim=-1)
