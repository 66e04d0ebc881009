"""Rates of a lazy prediction, against those of the whole network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.spatial import latent
from pixel2gene.spatial.latent import Latents


@pytest.mark.parametrize("depth", [1.0, 3.0])
@pytest.mark.parametrize("at_once", [2**25, 20])
def test_counts_are_those_of_the_depth(depth: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "RATES", at_once)
    architecture = Architecture(members=3, channels=7, genes=6, hidden=(11, 5), dropout=0.3, input_dropout=0.2)
    network = Ensemble(architecture, torch.Generator().manual_seed(0)).eval()
    features = torch.randn(20, 7, generator=torch.Generator().manual_seed(1))
    misfit, genes = np.linspace(0, 0.5, 6, dtype=np.float32), np.array([4, 1])
    with torch.no_grad():
        counts = depth * network(features).exp().numpy()[:, :, genes]
        latents = network.latent(features).permute(0, 2, 1).flatten(0, 1).half().numpy()
    lazy = Latents(xr.DataArray(), network.head(), depth, misfit)
    mean, sd = lazy.mean_and_sd(latents, genes)
    np.testing.assert_allclose(mean, counts.mean(axis=0), rtol=1e-2)
    np.testing.assert_allclose(lazy.mean(latents, genes).T, mean, rtol=1e-3)
    # What all members miss has a variance of so many times the rate, and rates grow by the depth.
    missed = misfit[genes] * counts.mean(axis=0) * depth
    np.testing.assert_allclose(sd, np.sqrt(counts.var(axis=0) + missed), rtol=2e-2)
