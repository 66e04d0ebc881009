"""The network: one member per fold, all members in one batch of weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pixel2gene.core.moments import moments

# Standardised features beyond this many standard deviations are cut, so that unseen colours cannot run away in exp().
FEATURE_LIMIT = 6.0
SMALLEST_SD = 1e-3
# Of the embedding, of which more than that is not held in double precision.
ROWS = 4_096
LEAK = 0.1
ELU = 0.01
LOG2_E = math.log2(math.e)
# What not every ensemble has.
OPTIONAL = {"held_out_weight", "held_out_bias", "log_ceiling"}


@dataclass(frozen=True)
class Architecture:
    """What rebuilds an ensemble before its weights are loaded.

    Attributes
    ----------
    members, channels, genes, hidden
        Sizes.
    dropout, input_dropout
        Share of hidden units, and of channels, left out in training.
    link
        From outputs to rates: ``"exp"``, with SiLU units; or ``"elu"``, ELU + 0.01 with LeakyReLU units, where a scale
        and an offset per gene follow.
    latent_limit
        At which last hidden units are cut, in training too; None of models that were trained without.
    """

    members: int
    channels: int
    genes: int
    hidden: tuple[int, ...]
    dropout: float
    input_dropout: float
    link: str = "exp"
    latent_limit: float | None = None


class Ensemble(nn.Module):
    """Rates per superpixel and gene from an embedding, by several members at once.

    Every member is a multilayer perceptron; `features` are standardised with the training mean and standard deviation
    first.

    Attributes
    ----------
    held_out_weight, held_out_bias
        Last layer by which each member predicts what was held out of it, see `held_out`; None where it has one only.
    log_ceiling
        (genes,) log of the highest rate that is believed, see `pixel2gene.core.ceiling`; None where there is none.
    """

    feature_mean: Tensor
    feature_sd: Tensor
    scale: Tensor
    offset: Tensor
    held_out_weight: Tensor | None
    held_out_bias: Tensor | None
    log_ceiling: Tensor | None

    def __init__(self, architecture: Architecture, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        sizes = (architecture.channels, *architecture.hidden, architecture.genes)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
            weight = torch.empty(architecture.members, fan_in, fan_out).normal_(
                std=1 / math.sqrt(fan_in), generator=generator
            )
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(architecture.members, 1, fan_out)))
        self.register_buffer("held_out_weight", None)
        self.register_buffer("held_out_bias", None)
        self.register_buffer("log_ceiling", None)
        self.register_buffer("feature_mean", torch.zeros(architecture.channels))
        self.register_buffer("feature_sd", torch.ones(architecture.channels))
        if architecture.link == "elu":
            self.register_buffer("scale", torch.ones(architecture.genes))
            self.register_buffer("offset", torch.zeros(architecture.genes))

    def head(self) -> Ensemble:
        """Copy of the last layer by itself, which makes outputs of what `latent` gives."""
        head = Ensemble(
            replace(self.architecture, channels=self.architecture.hidden[-1], hidden=(), dropout=0, input_dropout=0)
        )
        state, last = self.state_dict(), len(self.weights) - 1
        own = {"weights.0": state[f"weights.{last}"], "biases.0": state[f"biases.{last}"]}
        own |= {name: state[name] for name in ("scale", "offset", "log_ceiling") if name in state}
        head.load_state(head.state_dict() | own)
        return head.to(self.feature_mean.device).eval()

    def of_genes(self, genes: NDArray[np.intp]) -> Ensemble:
        """Copy with the outputs at some positions only."""
        part = Ensemble(replace(self.architecture, genes=len(genes)))
        last = len(self.weights) - 1
        of_gene = {f"weights.{last}", f"biases.{last}", "scale", "offset", *OPTIONAL}
        part.load_state(
            {name: value[..., genes] if name in of_gene else value for name, value in self.state_dict().items()}
        )
        return part.to(self.feature_mean.device).train(self.training)

    def load_state(self, state: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """As `load_state_dict`, also of what not every ensemble has."""
        for name in OPTIONAL & state.keys():
            setattr(self, name, state[name].detach().clone())
        self.load_state_dict(state, assign=assign)

    def optional(self) -> list[Tensor | None]:
        """What not every ensemble has, genes last."""
        return [getattr(self, name) for name in sorted(OPTIONAL)]

    def hold_out(self, other: Ensemble) -> None:
        """Predict what was held out of a member by the last layer of another network from now on."""
        self.held_out_weight, self.held_out_bias = other.weights[-1].detach(), other.biases[-1].detach()

    def held_out(self) -> Ensemble:
        """As each member predicts what was held out of it: itself, unless its outputs were fitted to all units."""
        if self.held_out_weight is None or self.held_out_bias is None:
            return self
        other = copy.deepcopy(self)
        with torch.no_grad():
            other.weights[-1].copy_(self.held_out_weight)
            other.biases[-1].copy_(self.held_out_bias)
        other.held_out_weight = other.held_out_bias = None
        return other

    def standardise_by(self, features: NDArray[np.floating]) -> None:
        """Standardise by the mean and standard deviation of these (n, channels) embeddings from now on."""
        mean, sd = moments(features[start : start + ROWS] for start in range(0, len(features), ROWS))
        self.feature_mean.copy_(torch.from_numpy(mean))
        # A channel that hardly varies must not be blown up.
        self.feature_sd.copy_(torch.from_numpy(sd).clamp_min(SMALLEST_SD))

    def standardise(self, features: Tensor) -> Tensor:
        """(n, channels) embeddings as the layers take them."""
        x: Tensor = (features.float() - self.feature_mean) / self.feature_sd
        return x.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)

    def forward(self, features: Tensor, members: slice = slice(None), genes: Tensor | None = None) -> Tensor:
        """(n, channels) embeddings to (members, n, genes) outputs, of all genes or those at some positions."""
        return self.outputs(self.standardise(features), members, genes)

    def rates(self, features: Tensor, members: slice = slice(None), genes: Tensor | None = None) -> Tensor:
        """(n, channels) embeddings to (members, n, genes) expected counts per superpixel."""
        return self.link(self(features, members, genes), genes)

    def outputs(self, x: Tensor, members: slice = slice(None), genes: Tensor | None = None) -> Tensor:
        """Apply the layers to standardised embeddings, the same for all members or (members, n, channels)."""
        x = self._dropout(x, self.architecture.input_dropout)
        layers = self._layers(members, genes)
        weight, bias = layers[-1]
        output: Tensor = torch.matmul(self._hidden(x, layers[:-1]), weight) + bias
        return output

    def latent(self, features: Tensor, members: slice = slice(None)) -> Tensor:
        """(n, channels) embeddings to (members, n, width) last hidden units: all that outputs depend on."""
        return self._hidden(self.standardise(features), self._layers(members, None)[:-1])

    def link(self, output: Tensor, genes: Tensor | None = None) -> Tensor:
        """From outputs, of all genes or those at some positions, to rates."""
        if self.architecture.link == "exp":
            return (output if self.log_ceiling is None else torch.minimum(output, self._ceiling(genes))).exp()
        scale, offset = (self.scale, self.offset) if genes is None else (self.scale[genes], self.offset[genes])
        rate: Tensor = (F.elu(output, ELU) + ELU) * scale + offset
        return rate

    def by_gene(self, genes: Tensor) -> Callable[[Tensor], Tensor]:
        """What makes (members, genes, n) rates of (members, width, n) latents, of genes at some positions."""
        weight, bias = (layer.transpose(1, 2) for layer in self._layers(slice(None), genes)[-1])
        if self.architecture.link == "exp":
            # Powers of 2 are quicker than exp.
            weight, bias = weight * LOG2_E, bias * LOG2_E
            if self.log_ceiling is None:
                return lambda latents: torch.baddbmm(bias, weight, latents).exp2_()
            most = self._ceiling(genes)[:, None] * LOG2_E
            return lambda latents: torch.baddbmm(bias, weight, latents).clamp_max_(most).exp2_()
        return lambda latents: self.link(torch.baddbmm(bias, weight, latents).transpose(1, 2), genes).transpose(1, 2)

    def beyond(self, output: Tensor, genes: Tensor | None = None) -> Tensor:
        """(n, genes) whether the (members, n, genes) output of some member is above what is believed, or no number."""
        if self.log_ceiling is None or output.shape[1] == 0:
            return torch.zeros(output.shape[1:], dtype=torch.bool, device=output.device)
        most = self._ceiling(genes)
        # A glance first, since it happens to no sound model.
        if bool((output.amax(dim=(0, 1)) <= most).all()):
            return torch.zeros(output.shape[1:], dtype=torch.bool, device=output.device)
        return (~(output <= most)).any(dim=0)

    def _ceiling(self, genes: Tensor | None) -> Tensor:
        if self.log_ceiling is None:
            raise TypeError("The ensemble has no ceiling.")
        return self.log_ceiling if genes is None else self.log_ceiling[genes]

    def _layers(self, members: slice, genes: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases; all members are not sliced, because a slice costs a copy on the way back."""
        layers: list[tuple[Tensor, Tensor]] = list(zip(self.weights, self.biases, strict=True))
        if members != slice(None):
            layers = [(weight[members], bias[members]) for weight, bias in layers]
        if genes is not None:
            weight, bias = layers[-1]
            layers[-1] = weight[..., genes], bias[..., genes]
        return layers

    def _hidden(self, x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        for weight, bias in layers:
            x = self._activate(torch.matmul(x, weight) + bias)
            if weight is layers[-1][0] and self.architecture.latent_limit is not None:
                x = x.clamp_max(self.architecture.latent_limit)
            x = self._dropout(x, self.architecture.dropout)
        return x

    def _dropout(self, x: Tensor, share: float) -> Tensor:
        """As that of torch, which takes as long as the products around it on the CPU; to 1 in 65,536 of the share."""
        if not self.training or share == 0:
            return x
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = torch.empty_like(x)
        torch.ge(draws.view(torch.int16)[: x.numel()].view_as(x), round(share * 2**16) - 2**15, out=keep)
        return x * keep.mul_(1 / (1 - share))

    def _activate(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.architecture.link == "exp" else F.leaky_relu_(x, LEAK)
