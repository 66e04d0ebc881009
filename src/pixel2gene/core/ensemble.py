"""The network: one member per fold, all members in one batch of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Standardised features beyond this many standard deviations are cut, so that unseen colours cannot run away in exp().
FEATURE_LIMIT = 6.0


@dataclass(frozen=True)
class Architecture:
    """Sizes that rebuild an ensemble before its weights are loaded."""

    members: int
    channels: int
    genes: int
    hidden: tuple[int, ...]
    dropout: float
    input_dropout: float


class Ensemble(nn.Module):
    """Log-rates per superpixel and gene from an embedding, by several members at once.

    Every member is a multilayer perceptron with SiLU units; `features` are standardised with the training mean and
    standard deviation first.
    """

    feature_mean: Tensor
    feature_sd: Tensor

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
        self.register_buffer("feature_mean", torch.zeros(architecture.channels))
        self.register_buffer("feature_sd", torch.ones(architecture.channels))

    def forward(self, features: Tensor, members: slice = slice(None), genes: Tensor | None = None) -> Tensor:
        """(n, channels) embeddings to (members, n, genes) log-rates, of all genes or those at some positions."""
        x = ((features.float() - self.feature_mean) / self.feature_sd).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        x = F.dropout(x, self.architecture.input_dropout, self.training)
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            x = F.silu(torch.matmul(x, weight[members]) + bias[members])
            x = F.dropout(x, self.architecture.dropout, self.training)
        weight, bias = layers[-1]
        if genes is not None:
            weight, bias = weight[..., genes], bias[..., genes]
        log_rate: Tensor = torch.matmul(x, weight[members]) + bias[members]
        return log_rate
