"""How familiar tissue is: the distance of its embedding to what a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixel2gene.core.embedding import own_channels
from pixel2gene.core.encoders.colour import CHANNELS as COLOUR_CHANNELS

# Superpixels that a familiarity is fitted to, at most.
SAMPLE = 20_000
# Principal axes of a superpixel's own channels: all of those of a small encoder.
AXES = 256
# Added to the variance along each axis, of channels of variance 1; and least standard deviation of a channel.
FLOOR, SMALLEST_SD = 1e-4, 1e-3
# Whose distance from the median is the unit of each logarithm.
UPPER_QUANTILE = 0.9
LEVELS = 1001
# Trust at the farthest held-out tissue; what is farther still is told apart below it.
LOWEST = 1e-3
# Rows that are scored at once.
ROWS = 16_384

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Familiarity:
    """What training tissue looks like in its embedding as written, before it is standardised within a slide.

    Three squared Mahalanobis distances to the mean of the training tissue are taken: of a superpixel by itself, of its
    colour alone, and of its nearest surroundings. Surroundings offer few independent places to learn from, so only
    their variances are learnt, along the axes on which superpixels by themselves are uncorrelated. Directions in which
    tissue hardly varies weigh as much as others: what is no tissue shows in them.

    Attributes
    ----------
    mean, sd
        (own,) of a superpixel's own channels.
    axes
        (own, axes) that turn what is so standardised into uncorrelated values of variance 1.
    surroundings_mean, surroundings_sd
        (axes,) of the surroundings, standardised as superpixels by themselves, on these axes.
    colour_axes
        (colour, colour) as `axes`, of the colour channels alone.
    median, spread
        (3,) of the logarithms of the three distances of held-out tissue.
    quantiles
        (levels,) evenly from the least to the largest joint distance of held-out tissue.
    """

    mean: Array
    sd: Array
    axes: Array
    surroundings_mean: Array
    surroundings_sd: Array
    colour_axes: Array
    median: Array
    spread: Array
    quantiles: Array

    def distance(self, features: Array) -> NDArray[np.float32]:
        """(superpixels,) joint distance: the mean of the logarithms, each less its median and over its spread.

        Parameters
        ----------
        features
            (superpixels, channels) embedding as `pixel2gene.tl.embed` wrote it, not standardised.
        """
        distance = np.empty(len(features), np.float32)
        for start in range(0, len(features), ROWS):
            rows = slice(start, start + ROWS)
            own, surroundings = ((part - self.mean) / self.sd for part in _parts(features[rows], len(self.mean)))
            placed = (surroundings @ self.axes - self.surroundings_mean) / self.surroundings_sd
            logs = _logarithms(own @ self.axes, own[:, -COLOUR_CHANNELS:] @ self.colour_axes, placed)
            distance[rows] = ((logs - self.median) / self.spread).mean(axis=1)
        return distance

    def trust(self, features: Array) -> NDArray[np.float32]:
        """(superpixels,) share of the held-out training tissue that is at least as far; `features` as in `distance`.

        Values of tissue like the training tissue spread evenly from 0 to 1, with a mean of 0.5; 0.01 is as unfamiliar
        as the outermost 1 % of it. Farther than all of it, trust falls exponentially with the distance from 0.001.
        """
        distance = self.distance(features)
        share = np.interp(distance, self.quantiles, np.linspace(1, LOWEST, len(self.quantiles)))
        trust: NDArray[np.float32] = share.astype(np.float32) * np.exp((self.quantiles[-1] - distance).clip(None, 0))
        return trust


def fit_familiarity(features: Array, fold: NDArray[np.integer], scales: int = 1) -> Familiarity:
    """Learn what training tissue looks like, and how far from it tissue of the training slides is that was held out.

    Parameters
    ----------
    features
        (superpixels, channels) embedding of measured tissue, not standardised; `sample` says how many are enough.
    fold
        (superpixels,) the fold in which each is held out: its distance is to what the others look like.
    scales
        Of the embedding; what is seen at wider ones is not looked at.
    """
    own: Array
    surroundings: Array
    n = own_channels(features.shape[1], scales)
    own, surroundings = (np.asarray(part, np.float32) for part in _parts(features, n))
    mean, sd = _mean_and_sd(own)
    own, surroundings = (own - mean) / sd, (surroundings - mean) / sd
    colour = own[:, -COLOUR_CHANNELS:]
    # Found once, so that the folds of a large encoder are as cheap as those of a small one.
    leading = np.linalg.eigh(own.T @ own)[1][:, : -AXES - 1 : -1]
    own, surroundings = own @ leading, surroundings @ leading

    logs = np.empty((len(own), 3), np.float32)
    for k in np.unique(fold):
        out, seen = fold == k, fold != k
        axes, colour_axes = _whitening(own[seen]), _whitening(colour[seen])
        around_mean, around_sd = _mean_and_sd(surroundings[seen] @ axes)
        logs[out] = _logarithms(
            (own[out] - own[seen].mean(axis=0)) @ axes,
            (colour[out] - colour[seen].mean(axis=0)) @ colour_axes,
            (surroundings[out] @ axes - around_mean) / around_sd,
        )
    median, upper = np.quantile(logs, [0.5, UPPER_QUANTILE], axis=0).astype(np.float32)
    spread = np.maximum(upper - median, np.float32(SMALLEST_SD))
    joint = ((logs - median) / spread).mean(axis=1)

    axes = _whitening(own)
    around_mean, around_sd = _mean_and_sd(surroundings @ axes)
    return Familiarity(
        mean=mean,
        sd=sd,
        axes=np.ascontiguousarray(leading @ axes),
        surroundings_mean=around_mean,
        surroundings_sd=around_sd,
        colour_axes=_whitening(colour),
        median=median,
        spread=spread,
        quantiles=np.quantile(joint, np.linspace(0, 1, LEVELS)).astype(np.float32),
    )


def sample(superpixels: int, slides: int) -> NDArray[np.intp]:
    """Positions of the superpixels of one of several slides to fit a familiarity to, evenly among all."""
    return np.linspace(0, superpixels - 1, min(superpixels, SAMPLE // slides)).astype(np.intp)


def _parts(features: Array, own: int) -> tuple[Array, Array]:
    """The channels of a superpixel itself, and those of its nearest surroundings."""
    return features[:, :own], features[:, own : 2 * own]


def _whitening(values: Array) -> Array:
    """(channels, axes) that turn (rows, channels), less their mean, into uncorrelated values of variance 1."""
    centred = values - values.mean(axis=0)
    variance, axes = np.linalg.eigh(centred.T @ centred / np.float32(len(values)))
    whitening: Array = axes / np.sqrt(variance.clip(0) + np.float32(FLOOR))
    return whitening


def _mean_and_sd(values: Array) -> tuple[Array, Array]:
    return values.mean(axis=0), values.std(axis=0).clip(SMALLEST_SD)


def _logarithms(*whitened: Array) -> Array:
    """(rows, 3) of the mean squares."""
    squares = np.stack([np.square(values).mean(axis=1) for values in whitened], axis=1)
    logarithms: Array = np.log(squares + np.float32(FLOOR))
    return logarithms
