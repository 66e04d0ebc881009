"""A slide as the model sees it: the embedding of its tissue, and what was measured there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from spatialdata import SpatialData

from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Measurement, Recipe, predict_units
from pixel2gene.spatial.elements import get_record
from pixel2gene.spatial.folds import apart_of, fold_of
from pixel2gene.spatial.grid import Grid, superpixel_grid
from pixel2gene.spatial.units import Units, measured_units

# A unit counts as tissue where at least this share of it is.
TISSUE_SHARE = 0.5
# Side, in superpixels, of the patches whose units are trained on together.
PATCH = 4
SMALLEST_SD = 1e-3


@dataclass(frozen=True)
class Embedded:
    """The embedding of a slide.

    Attributes
    ----------
    record
        Of `pixel2gene.tl.embed`.
    grid
        Superpixel grid of the image.
    values
        (channels, rows, columns), zero outside the tissue.
    """

    record: dict[str, Any]
    grid: Grid
    values: da.Array

    @property
    def image_key(self) -> str:
        """Image that was embedded."""
        key: str = self.record["image_key"]
        return key

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Flat indices of the tissue superpixels of each chunk, and their (superpixels, channels) embedding.

        Every channel has mean 0 and standard deviation 1 over the tissue of the slide, which takes out much of what
        stain and scanner do.
        """
        for index, _, block in self.blocks_with_raw():
            yield index, block

    def blocks_with_raw(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.float16]]]:
        """As `blocks`, with the embedding as it was written between index and standardised embedding."""
        mean, sd = _mean_and_sd(block for _, block in self._raw_blocks())
        for index, block in self._raw_blocks():
            yield index, block, ((block - mean) / sd).astype(np.float16)

    def _raw_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        ids = np.arange(self.grid.size).reshape(self.grid.shape)
        row = 0
        for i, height in enumerate(self.values.chunks[1]):
            column = 0
            for j, width in enumerate(self.values.chunks[2]):
                block = np.asarray(self.values.blocks[:, i, j].compute(scheduler="threads"))
                tissue = (block != 0).any(axis=0)
                yield ids[row : row + height, column : column + width][tissue], block[:, tissue].T
                column += width
            row += height

    def tissue(self) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """All `blocks` together, in the order of the flat indices, read once."""
        index, features, _ = self.tissue_and_scale()
        return index, features

    def tissue_and_scale(self) -> tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.float32]]:
        """As `tissue`, with the (2, channels) mean and standard deviation that were taken out."""
        parts = list(self._raw_blocks())
        mean, sd = _mean_and_sd(block for _, block in parts)
        index = np.concatenate([part for part, _ in parts])
        order = np.argsort(index)
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        joined = np.empty((len(index), self.values.shape[0]), np.float16)
        start = 0
        for _, block in parts:
            joined[position[start : start + len(block)]] = (block - mean) / sd
            start += len(block)
        return index[order], joined, np.stack([mean, sd])


def _mean_and_sd(blocks: Iterable[NDArray[np.float16]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each channel over all rows of (rows, channels) blocks."""
    sums = [
        (len(block), block.sum(axis=0, dtype=np.float64), np.square(block, dtype=np.float64).sum(axis=0))
        for block in blocks
    ]
    count, total, squares = (sum(column) for column in zip(*sums, strict=True))
    mean = np.asarray(total / count)
    variance = np.maximum(squares / count - mean**2, 0)
    # A channel that hardly varies must not be blown up.
    return mean.astype(np.float32), np.sqrt(variance).clip(SMALLEST_SD).astype(np.float32)


@dataclass(frozen=True)
class Measured:
    """The units of a slide that lie on tissue.

    Attributes
    ----------
    rows
        (used,) positions of these units among all.
    superpixels
        (superpixels,) flat indices of the tissue superpixels.
    features
        (superpixels, channels) their embedding.
    overlap
        (used, superpixels).
    counts
        (used, genes).
    totals
        (used,) counts of all genes, also those that are not modelled.
    centres
        (used, 2) x and y in grid coordinates.
    scale
        (2, channels) mean and standard deviation by which the embedding was standardised.
    """

    rows: NDArray[np.intp]
    superpixels: NDArray[np.int64]
    features: NDArray[np.float16]
    overlap: csr_array
    counts: csr_array
    totals: NDArray[np.float64]
    centres: NDArray[np.float64]
    scale: NDArray[np.float32]

    @property
    def area(self) -> NDArray[np.float64]:
        """(used,) tissue area of each unit in superpixels."""
        area: NDArray[np.float64] = np.asarray(self.overlap.sum(axis=1, dtype=np.float64))
        return area

    @property
    def density(self) -> float:
        """Counts per superpixel of tissue."""
        return float(self.totals.sum() / self.area.sum())

    def raw(self, superpixels: NDArray[np.intp]) -> NDArray[np.float32]:
        """Embedding as it was written, of the superpixels at these positions."""
        mean, sd = self.scale
        raw: NDArray[np.float32] = self.features[superpixels] * sd + mean
        return raw

    def measurement(self, fold: NDArray[np.int8], depth: float, recipe: Recipe | PaperRecipe) -> Measurement:
        """Say it in the terms of the model; `depth` is that of the slide."""
        factor = np.full(len(self.rows), depth)
        if recipe.library_size:
            factor *= np.maximum(self.totals, 1) / self.area / self.density
        column, row = (self.centres // PATCH).astype(np.int64).T
        patch = row * (column.max() + 1) + column
        # The published recipe holds out folds only.
        apart = apart_of(self.centres, fold, recipe.folds) if isinstance(recipe, Recipe) else None
        return Measurement(
            self.features, self.overlap, self.counts, factor.astype(np.float32), fold, patch, apart=apart
        )


def open_embedding(sdata: SpatialData, image_key: str, embedding_key: str | None = None) -> Embedded:
    """Find the embedding of an image, ``f"{image_key}_embedding"`` by default.

    Raises
    ------
    KeyError
        If it was not written by `pixel2gene.tl.embed`.
    """
    key = embedding_key or f"{image_key}_embedding"
    record = get_record(sdata, key, "embed")
    return Embedded(record, superpixel_grid(sdata, record["image_key"], record["mpp"]), sdata.images[key].data)


def measure(embedded: Embedded, units: Units, genes: NDArray[np.intp], key: str) -> Measured:
    """Bring the counts of `genes` and the embedding together; a gene at position -1 was not measured and has none.

    Raises
    ------
    ValueError
        If no unit lies on tissue, or none of those that do has a count.
    """
    superpixels, features, scale = embedded.tissue_and_scale()
    on_tissue = units.overlap[:, superpixels]
    area, tissue_area = units.overlap.sum(axis=1), on_tissue.sum(axis=1)
    rows = np.flatnonzero((tissue_area > 0) & (tissue_area >= TISSUE_SHARE * area))
    counts = units.counts[rows]
    # Position -1 is then that of an empty column.
    padded = hstack([counts, csr_array((len(rows), 1), dtype=counts.dtype)], format="csr") if -1 in genes else counts
    if len(rows) == 0 or counts.nnz == 0:
        raise ValueError(
            f"None of the {len(area)} units of {key!r} lies on the tissue of image {embedded.image_key!r} and has "
            "counts: check the tissue mask (pixel2gene.pl.tissue) and the alignment."
        )
    return Measured(
        rows,
        superpixels,
        features,
        csr_array(on_tissue[rows]),
        csr_array(padded[:, genes]),
        np.asarray(counts.sum(axis=1, dtype=np.float64)),
        units.centres(embedded.grid)[rows],
        scale,
    )


def open_for_model(sdata: SpatialData, model: Model, image_key: str | None, embedding_key: str | None) -> Embedded:
    """Find the embedding that a model is to read, under the keys of its training unless others are given."""
    key = model.inputs["embedding_key"] if embedding_key is None and image_key is None else embedding_key
    embedded = open_embedding(sdata, image_key or str(model.inputs["image_key"]), key)
    require_same_embedding(model, embedded)
    return embedded


def measure_for_model(
    sdata: SpatialData, model: Model, embedded: Embedded, table_key: str | None, layer: str | None
) -> tuple[Model, Units, Measured]:
    """Read the counts of the model's genes, under the keys of its training unless others are given.

    Returns
    -------
    The model of those genes that were measured, the units, and those of them on tissue.

    Raises
    ------
    KeyError
        If none of the model's genes was measured.
    """
    key = table_key or str(model.inputs["table_key"])
    if table_key is None and layer is None:
        layer = model.inputs["layer"]
    units = measured_units(sdata, key, embedded.image_key, embedded.grid, layer)
    names = [gene for gene in model.genes if gene in units.genes]
    if not names:
        raise KeyError(
            f"None of the model's {len(model.genes)} genes is in {key!r}: the model has {model.genes[:5]}, the table "
            f"{units.genes[:5].tolist()}; bring the names to one kind (symbols or Ensembl ids)."
        )
    return model.of_genes(names), units, measure(embedded, units, units.genes.get_indexer(pd.Index(names)), key)


def slide_measurement(model: Model, embedded: Embedded, measured: Measured, device: torch.device) -> Measurement:
    """Bring measured units into the terms of a fitted model: what was held out of whom, and how deep they are.

    A slide that the model was not trained on has the depth at which its total counts are as predicted.
    """
    slide = training_slide(model, embedded)
    fold = held_out_fold(slide, measured.centres)
    data = measured.measurement(fold, 1.0 if slide is None else slide.depth, model.recipe)
    if slide is not None:
        return data
    expected = sum(float(mean.sum()) for _, mean in predict_units(model.network, data, device, held_out=True))
    return replace(data, depth=(data.depth * (data.counts.sum() / expected)).astype(np.float32))


def require_same_embedding(model: Model, embedded: Embedded) -> None:
    """Refuse an embedding that the model was not made for, by name."""
    found = embedded.record["encoder"]
    differing = [name for name, value in model.encoder.items() if found.get(name) != value]
    if differing:
        described = "; ".join(f"{name}: model {model.encoder[name]}, embedding {found.get(name)}" for name in differing)
        raise ValueError(
            f"The model does not fit the embedding of image {embedded.image_key!r} ({described}): embed the image with "
            f"encoder={model.encoder['name']!r}, or fit a model on this embedding."
        )


def training_slide(model: Model, embedded: Embedded) -> TrainingSlide | None:
    """Find the slide among those that the model was trained on."""
    return next((s for s in model.slides if s.fingerprint == embedded.record["fingerprint"]), None)


def held_out_fold(slide: TrainingSlide | None, centres: NDArray[np.floating]) -> NDArray[np.int8]:
    """(n,) member that did not see each place; -1 where none did, as on a new slide."""
    if slide is None:
        return np.full(len(centres), -1, np.int8)
    return fold_of(centres, slide.fold, slide.side)
