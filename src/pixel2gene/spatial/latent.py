"""Predictions kept as what all genes have in common, from which the raster of any gene is computed on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import dask.array as da
import numpy as np
import torch
import xarray as xr
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation
from torch import Tensor

from pixel2gene.core.ceiling import farthest
from pixel2gene.core.device import one_thread
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.trust import Familiarity
from pixel2gene.core.uncertainty import truth_sd
from pixel2gene.spatial.elements import RASTER_CHUNKS, get_record, get_table, image_element
from pixel2gene.spatial.embedded import Embedded
from pixel2gene.spatial.geometry import get_element, raster_levels
from pixel2gene.spatial.grid import Grid

LATENT_SIDE = 128
# Asked at once, whether their rates are bounded.
GENES = 1024
# Rates of members at once: as many as the cache of a core holds.
RATES = 2**18


@dataclass(frozen=True)
class Latents:
    """A lazy prediction.

    Attributes
    ----------
    raster
        (members * width, rows, columns), NaN outside the tissue.
    head
        Makes outputs of them.
    depth
        At which rates are predicted.
    misfit
        (genes,) variance of what all members miss, as a multiple of the rate.
    """

    raster: xr.DataArray
    head: Ensemble
    depth: float
    misfit: NDArray[np.float32]

    def mean(self, latents: NDArray[np.float16], genes: NDArray[np.intp]) -> NDArray[np.float16]:
        """(genes, superpixels) expected counts of (members * width, superpixels) latents, NaN where these are."""
        mean = torch.full((len(genes), latents.shape[1]), torch.nan, dtype=torch.float16)
        for some, rate in self._rates(latents, genes):
            mean[:, some] = rate.mean(dim=0).mul_(self.depth)
        values: NDArray[np.float16] = mean.numpy()
        return values

    def mean_and_sd(
        self, latents: NDArray[np.float16], genes: NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(superpixels, genes) expected counts, and how far the truth may lie from them, as `predict` has it."""
        mean, sd = torch.full((2, len(genes), latents.shape[1]), torch.nan)
        for some, rate in self._rates(latents, genes):
            mean[:, some] = rate.mean(dim=0).mul_(self.depth)
            sd[:, some] = rate.std(dim=0, correction=0).mul_(self.depth)
        rows = mean.numpy().T
        return rows, truth_sd(sd.numpy().T, rows, self.misfit[genes] * np.float32(self.depth))

    def _rates(self, latents: NDArray[np.float16], genes: NDArray[np.intp]) -> Iterator[tuple[slice, Tensor]]:
        """Some superpixels at a time, unless none is tissue, and their (members, genes, superpixels) rates."""
        members = self.head.architecture.members
        rates = self.head.by_gene(torch.from_numpy(genes))
        size = max(RATES // (members * max(len(genes), 1)), 1)
        for start in range(0, latents.shape[1], size):
            some = slice(start, start + size)
            if np.isfinite(latents[0, some]).any():
                with torch.inference_mode():
                    x = torch.from_numpy(latents[:, some]).float().unflatten(0, (members, -1))
                    yield some, rates(x)


def lazy_latents(embedded: Embedded, network: Ensemble, device: torch.device) -> da.Array:
    """(members * width, rows, columns) float16 last hidden units of an ensemble, NaN outside the tissue."""
    statistics = embedded.statistics

    def latents(raw: NDArray[np.float16]) -> NDArray[np.float16]:
        with one_thread(), torch.inference_mode():
            features = torch.from_numpy(statistics.standardise(raw)).to(device)
            latent: NDArray[np.float16] = network.latent(features).half().permute(1, 0, 2).flatten(1).cpu().numpy()
        return latent

    return _of_tissue(embedded, latents, network.architecture.members * network.architecture.hidden[-1])


def lazy_trust(embedded: Embedded, familiarity: Familiarity, network: Ensemble, device: torch.device) -> da.Array:
    """(2, rows, columns) float16 trust, and whether some rate is bounded, NaN outside the tissue.

    That is asked of the superpixels of a block whose outputs are the largest: all would take as long as a map of all
    genes.
    """
    statistics = embedded.statistics

    def checks(raw: NDArray[np.float16]) -> NDArray[np.float16]:
        with one_thread(), torch.inference_mode():
            features = torch.from_numpy(statistics.standardise(raw)).to(device)
            beyond = torch.zeros(len(raw), dtype=torch.bool, device=device)
            if network.log_ceiling is not None:
                far = farthest(network, network.latent(features)).unique()
                for genes in torch.arange(network.architecture.genes, device=device).split(GENES):
                    beyond[far] |= network.beyond(network(features[far], genes=genes), genes).any(dim=1)
        return np.stack([familiarity.trust(raw), beyond.cpu().numpy()], axis=1).astype(np.float16)

    return _of_tissue(embedded, checks, 2)


def outputs_of(head: Ensemble) -> NDArray[np.float32]:
    """(genes, weights) what makes rates of latents, for ``varm["outputs"]``."""
    return np.concatenate([value.reshape(-1, value.shape[-1]).cpu().numpy() for value in _of_genes(head).values()]).T


def open_latent_map(sdata: SpatialData, key: str) -> xr.DataArray:
    """(genes, y, x) float16 expected counts per superpixel, each block of genes computed when it is asked for.

    Raises
    ------
    KeyError
        If there is no result of `pixel2gene.tl.predict` with ``lazy=True`` of that key.
    """
    found = open_latents(sdata, key)
    values = _gene_maps(found)
    # Where the latents are, also on a slide that was cropped since.
    size = found.raster.sizes
    grid = Grid((size["y"], size["x"]), 1.0, get_transformation(found.raster, get_all=True))
    return image_element(values, grid, get_table(sdata, key).var_names)


def open_latents(sdata: SpatialData, key: str) -> Latents:
    """Find a lazy prediction, of the genes that are in its table.

    Raises
    ------
    KeyError
        If there is none of that key.
    """
    record = get_record(sdata, f"{key}_latent", "predict")
    table = get_table(sdata, key)
    return Latents(
        raster_levels(get_element(sdata, f"{key}_latent", "images"))[0],
        _head(table, record["architecture"]),
        float(record["depth"]),
        np.asarray(table.var["misfit"], np.float32),
    )


def find_map(sdata: SpatialData, key: str) -> tuple[str, xr.DataArray] | None:
    """Find the raster of a result by its key, kept or computed on demand; None if there is no such result.

    Before it, the key of an image that lies where it does.
    """
    if f"{key}_map" in sdata.images:
        return f"{key}_map", raster_levels(sdata.images[f"{key}_map"])[0]
    return (f"{key}_latent", open_latent_map(sdata, key)) if f"{key}_latent" in sdata.images else None


def link_of(head: Ensemble, depth: float) -> dict[str, Any]:
    """What `open_latent_map` wants to find in the record besides ``varm``."""
    return {"architecture": {**asdict(head.architecture), "hidden": []}, "depth": depth}


def _gene_maps(found: Latents) -> da.Array:
    def block(positions: NDArray[np.intp], values: NDArray[np.float16]) -> NDArray[np.float16]:
        with one_thread():
            return found.mean(values.reshape(len(values), -1), positions).reshape(-1, *values.shape[1:])

    maps: da.Array = da.blockwise(
        block,
        "gyx",
        da.arange(found.head.architecture.genes, chunks=RASTER_CHUNKS[0]),
        "g",
        found.raster.data.rechunk((-1, *RASTER_CHUNKS[1:])),
        "kyx",
        concatenate=True,
        dtype=np.float16,
        meta=np.empty((0, 0, 0), np.float16),
    )
    return maps


def _head(table: AnnData, architecture: dict[str, Any]) -> Ensemble:
    genes = table.n_vars
    head = Ensemble(Architecture(**architecture | {"hidden": (), "genes": genes})).eval()
    outputs = torch.from_numpy(np.ascontiguousarray(table.varm["outputs"].T, np.float32))
    if outputs.numel() > sum(value.numel() for value in _of_genes(head).values()):
        head.log_ceiling = torch.zeros(genes)
    state = _of_genes(head)
    rows = outputs.split([value.numel() // genes for value in state.values()])
    found = {name: part.reshape(value.shape) for (name, value), part in zip(state.items(), rows, strict=True)}
    head.load_state_dict(head.state_dict() | found)
    return head


def _of_genes(head: Ensemble) -> dict[str, torch.Tensor]:
    """Tensors of a head that have a value per gene, last."""
    return {name: value for name, value in head.state_dict().items() if not name.startswith("feature_")}


def _of_tissue(
    embedded: Embedded, of_rows: Callable[[NDArray[np.float16]], NDArray[np.float16]], channels: int
) -> da.Array:
    """Raster of (superpixels, channels) values that the (superpixels, channels) raw embedding gives."""

    def block(raw: NDArray[np.float16]) -> NDArray[np.float16]:
        tissue = (raw != 0).any(axis=0)
        values = np.full((channels, *tissue.shape), np.nan, np.float16)
        if tissue.any():
            values[:, tissue] = of_rows(raw[:, tissue].T).T
        return values

    lazy = embedded.values.rechunk({0: -1})
    raster: da.Array = lazy.map_blocks(
        block, chunks=((channels,), *lazy.chunks[1:]), dtype=np.float16, meta=np.empty((0, 0, 0), np.float16)
    )
    return raster
