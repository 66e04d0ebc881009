"""Slides that tests share: made once, handed out as copies."""

from __future__ import annotations

import os

# Threads of small networks wait for one another longer than they compute. What pytest's plugins import before has its
# threads already; .ci/run sets these, too.
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from safetensors.torch import save_file
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe

matplotlib.use("Agg")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Undo what parallel code of scanpy and squidpy does to the threads of torch in tests before."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def embedded_once() -> SpatialData:
    sdata = p2g.datasets.simulate(size=(768, 768), n_genes=40, counts_per_superpixel=60, seed=3)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


@pytest.fixture(scope="session")
def fitted_once(embedded_once: SpatialData) -> p2g.Model:
    return p2g.tl.fit(embedded_once, "counts", image_key="he", progress=False)


@pytest.fixture
def embedded(embedded_once: SpatialData) -> SpatialData:
    """A simulated Visium HD slide with tissue and embedding."""
    return deepcopy(embedded_once)


@pytest.fixture
def fitted(fitted_once: p2g.Model) -> p2g.Model:
    """A model of that slide."""
    return fitted_once


@pytest.fixture
def short_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the recipe of that name a short one, where no accuracy of it is claimed."""
    short = partial(Recipe, folds=3, hidden=(32, 16), max_checks=5)
    monkeypatch.setattr("pixel2gene.spatial.training.RECIPES", {"default": short})


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a folder of a small vision transformer with random weights, as timm lays it out."""

    from timm.layers import SwiGLUPacked
    from timm.models import VisionTransformer

    def make(name: str, *, mpp: float | None = None, gated: bool = False, **arguments: Any) -> Path:
        folder = tmp_path_factory.mktemp("weights") / name
        folder.mkdir()
        arguments = {"img_size": 224, "embed_dim": 24, "depth": 2, "num_heads": 2, **arguments}
        feed_forward = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if gated else {}
        torch.manual_seed(0)
        network = VisionTransformer(num_classes=3, **arguments, **feed_forward)
        # Positions start too small to matter.
        torch.nn.init.normal_(network.pos_embed)
        save_file(network.state_dict(), folder / "model.safetensors")
        trained = {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.25, 0.2], "input_size": [3, 224, 224], "num_classes": 3}
        config = {"architecture": "vit_base_patch16_224", "model_args": arguments, "pretrained_cfg": trained}
        (folder / "config.json").write_text(json.dumps(config | ({} if mpp is None else {"mpp": mpp})))
        return folder

    return make


@pytest.fixture(scope="session")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a folder of a small vision transformer of a class of transformers, random weights, as transformers does."""
    import transformers

    def make(name: str, kind: str, *, mpp: float | None = None, head: str = "Model", **arguments: Any) -> Path:
        folder = tmp_path_factory.mktemp("weights") / name
        arguments = {"image_size": 224, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2} | arguments
        config = getattr(transformers, f"{kind}Config")(**arguments)
        torch.manual_seed(0)
        network = getattr(transformers, f"{kind}{head}")(config)
        # They start too small to matter.
        for parameter, values in network.named_parameters():
            if parameter.endswith(("position_embeddings", "cls_token", "register_tokens")):
                torch.nn.init.normal_(values)
        network.save_pretrained(folder)
        seen = {"image_mean": [0.7, 0.6, 0.7], "image_std": [0.2, 0.25, 0.2], "size": {"shortest_edge": 256}}
        (folder / "preprocessor_config.json").write_text(
            json.dumps(seen | {"crop_size": {"height": config.image_size, "width": config.image_size}})
        )
        if mpp is not None:
            stored = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(stored | {"mpp": mpp}))
        return folder

    return make


def dino_state(width: int, depth: int, side: int, embedding: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from timm.models import VisionTransformer

    network = VisionTransformer(img_size=side, patch_size=1, embed_dim=width, depth=depth, num_heads=6, num_classes=0)
    torch.nn.init.normal_(network.pos_embed)
    torch.nn.init.normal_(network.cls_token)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("patch_embed")}
    return state | embedding


@pytest.fixture(scope="session")
def dino_states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Small random transformers by the names of the checkpoints of HIPT: of patches and of regions."""
    torch.manual_seed(0)
    patches = {"patch_embed.proj.weight": torch.randn(24, 3, 16, 16) / 16, "patch_embed.proj.bias": torch.randn(24)}
    regions = {"phi.0.weight": torch.randn(12, 24), "phi.0.bias": torch.randn(12)}
    return dino_state(24, 2, 14, patches), dino_state(12, 2, 14, regions)
