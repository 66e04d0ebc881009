"""Write the model that later versions must read: `python tests/stored/make.py`, once per format, into a new folder."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.model import FORMAT, Model, TrainingSlide
from pixel2gene.core.platform import Platform
from pixel2gene.core.regression import History, Recipe
from pixel2gene.core.trust import fit_familiarity

GENES = ["ACTB", "ERBB2", "CD3E"]


def features() -> torch.Tensor:
    """Embedding of five superpixels."""
    return torch.linspace(-2, 2, 40).reshape(5, 8)


def main() -> None:
    """Write the model and what it predicts."""
    network = Ensemble(Architecture(2, 8, 3, (6, 4), 0.1, 0.2), torch.Generator().manual_seed(0)).eval()
    network.hold_out(Ensemble(network.architecture, torch.Generator().manual_seed(1)))
    network.log_ceiling = torch.tensor([0.1, 2.0, 3.0])
    scores = pd.DataFrame(
        {"pearson": [0.5, 0.25, np.nan], "misfit": 0.1, "dispersion": 0.2}, pd.Index(GENES, name="gene")
    )
    model = Model(
        genes=GENES,
        encoder={"name": "lite0", "channels": 8, "mpp": 0.5},
        inputs={"image_key": "he", "table_key": "counts", "layer": None, "embedding_key": None},
        recipe=Recipe(folds=2, hidden=(6, 4)),
        network=network,
        slides=[TrainingSlide("0f", "first", 0.8, np.array([[0, 1], [-1, 0]], np.int8), 64, Platform(row_stripes=0.2))],
        scores=scores,
        history=History([10, 20], [1.5, 1.25]),
        version="0.1.0",
        familiarity=fit_familiarity(np.random.default_rng(0).normal(size=(60, 30)), np.arange(60) % 3),
    )
    folder = Path(__file__).parent / f"model_format_{FORMAT}"
    model.save(folder)
    with torch.no_grad():
        np.savetxt(folder.with_suffix(".tsv"), network.rates(features()).mean(dim=0).numpy(), delimiter="\t")


if __name__ == "__main__":
    main()
