"""What every encoder promises: those with weights as they are, all others as small ones of the same make."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.data import constants
from timm.models import VisionTransformer

from pixel2gene.core.embedding import embed_tile, surroundings
from pixel2gene.core.encoders import get_encoder
from pixel2gene.core.encoders.hipt import Hipt
from pixel2gene.core.encoders.registry import CLIP, IMAGENET, REGISTRY, SUPERPIXEL_UM
from pixel2gene.core.encoders.vit import HUB_WINDOW, HUB_WINDOWS, vit_from_hub
from pixel2gene.datasets._paint import paint

CPU = torch.device("cpu")
FOLDERS = {
    "timm-16": {"patch_size": 16},
    "timm-14-registers": {"patch_size": 14, "reg_tokens": 4, "no_embed_class": True},
    "timm-14-gated": {"patch_size": 14, "gated": True, "mlp_ratio": 2.0},
    "timm-8-at-1-mpp": {"patch_size": 8, "img_size": 64, "mpp": 1.0},
    "timm-14-at-0.46-mpp": {"patch_size": 14, "mpp": 0.46},
}
TRANSFORMERS = {
    "transformers-16": {"kind": "ViT", "patch_size": 16, "intermediate_size": 48},
    "transformers-14-registers": {"kind": "Dinov2WithRegisters", "patch_size": 14, "num_register_tokens": 4},
    "transformers-14-gated": {"kind": "Dinov2", "patch_size": 14, "use_swiglu_ffn": True},
}


class HubModel:
    """As lazyslide-models loads them, with random weights."""

    def __init__(self, info):
        torch.manual_seed(0)
        self.model = VisionTransformer(
            img_size=HUB_WINDOWS.get(info.name, HUB_WINDOW),
            patch_size=info.token,
            embed_dim=info.channels,
            depth=1,
            num_heads=2,
            num_classes=0,
            reg_tokens=4,
        )

    def get_transform(self):
        return "resize, normalise"

    def encode_image_dense(self, image):
        tokens = self.model.forward_features(image)
        return SimpleNamespace(cls_token=tokens[:, 0], patch_tokens=tokens[:, 5:])


class TransformersModel(HubModel):
    """One with a processor of its own: a class token, and patches."""

    def __init__(self, info):
        super().__init__(info)
        model = self.model

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, pixel_values):
                tokens = self.inner.forward_features(pixel_values)
                return SimpleNamespace(last_hidden_state=torch.cat([tokens[:, :1], tokens[:, 5:]], dim=1))

        self.model = Network()

    def get_transform(self):
        return None


@pytest.fixture(scope="module")
def load(timm_folder, transformers_folder, dino_states):
    return partial(load_encoder, timm_folder, transformers_folder, dino_states)


def load_encoder(timm_folder, transformers_folder, dino_states, name, device):
    if name in FOLDERS:
        return get_encoder(timm_folder(name, **FOLDERS[name]), device)
    if name in TRANSFORMERS:
        return get_encoder(transformers_folder(name, **TRANSFORMERS[name]), device)
    if name == "hipt":
        encoder = Hipt(*dino_states, device)
        encoder.window = 512
        return encoder
    info = REGISTRY[name]
    if info.lazyslide is None:
        return get_encoder(name, device)
    info = replace(info, channels=24)
    kind = TransformersModel if name.startswith("phikon") else HubModel
    with pytest.MonkeyPatch.context() as patch:
        registry = SimpleNamespace(MODEL_REGISTRY={info.lazyslide: lambda: kind(info)})
        patch.setitem(sys.modules, "lazyslide_models", registry)
        return vit_from_hub(info, device)


@pytest.fixture(scope="module", params=[*REGISTRY, *FOLDERS, *TRANSFORMERS])
def encoder(request, load):
    return load(request.param, CPU)


@pytest.fixture(scope="module")
def picture():
    return torch.from_numpy(paint((1152, 1152), 0.5, 3).image.astype(np.float32))


@pytest.fixture(scope="module")
def rgb(encoder, picture):
    """Two images that it takes."""
    side = encoder.window or 256
    return torch.stack([picture[:, :side, :side], picture[:, -side:, -side:]])


@pytest.fixture(scope="module")
def features(encoder, rgb):
    return encoder.encode_dense(rgb)


def test_says_what_it_is(encoder):
    assert encoder.name in [*REGISTRY, *FOLDERS, *TRANSFORMERS]
    assert encoder.licence
    assert len(encoder.weights_sha256) == 64 and int(encoder.weights_sha256, 16)


def test_a_superpixel_is_8_um(encoder):
    assert encoder.stride * encoder.mpp == pytest.approx(SUPERPIXEL_UM)
    assert encoder.halo % encoder.stride == 0
    assert (encoder.window or encoder.stride) % encoder.stride == 0
    assert (encoder.window is None) == (encoder.halo > 0)


def test_one_vector_per_superpixel(encoder, rgb, features):
    assert features.shape == (2, encoder.channels, *(size // encoder.stride for size in rgb.shape[2:]))
    assert features.dtype == torch.float32
    assert features.device == CPU


def test_bytes_and_floats_give_the_same(encoder, rgb, features):
    torch.testing.assert_close(encoder.encode_dense(rgb.byte()), features)


def test_features_fit_in_half_precision_and_vary(features):
    assert features.abs().max() < 1e3
    assert (features.std(dim=(0, 2, 3)) > 1e-3).all()


def test_repeats_exactly(encoder, rgb, features):
    assert torch.equal(encoder.encode_dense(rgb), features)


def test_a_batch_is_encoded_one_by_one(encoder, rgb, features):
    apart = torch.cat([encoder.encode_dense(one[None]) for one in rgb])
    torch.testing.assert_close(apart, features, rtol=1e-3, atol=1e-4)


def test_a_superpixel_is_the_same_in_every_tile(encoder, picture):
    """Averaged over windows, or beyond the halo."""
    stride, overlap = encoder.stride, 0.5 if encoder.window else 0.0

    def embed(rows, columns):
        edges = [edge for axis in (rows, columns) for edge in surroundings(encoder, *axis, overlap)]
        y, x = (np.arange(stride * first, stride * last) % picture.shape[1] for first, last in (edges[:2], edges[2:]))
        corner = rows[0] - edges[0], columns[0] - edges[2]
        inside = np.ones((rows[1] - rows[0], columns[1] - columns[0]), bool)
        return embed_tile(encoder, picture.numpy()[:, y][:, :, x], inside, corner, overlap).astype(np.float64)

    whole = embed((0, 24), (5, 17))
    parts = np.concatenate([embed((0, 11), (5, 17)), embed((11, 24), (5, 17))], axis=1)
    spread = whole.std(axis=(1, 2))
    assert (np.abs(parts - whole).mean(axis=(1, 2)) / spread.clip(1e-3)).max() < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu(encoder, features, rgb, load):
    on_gpu = load(encoder.name, torch.device("cuda"))
    found = on_gpu.encode_dense(rgb)
    assert found.device.type == "cuda" and found.dtype == torch.float32
    assert on_gpu.weights_sha256 == encoder.weights_sha256
    difference = (found.cpu() - features).abs().mean(dim=(0, 2, 3)) / features.std(dim=(0, 2, 3))
    assert difference.max() < 0.02


def test_beyond_the_halo_a_border_does_not_show(picture):
    encoder, rgb = get_encoder("lite0", CPU), picture[None, :, :640, :640]
    border, inset = encoder.halo // encoder.stride, encoder.halo // 2
    step = inset // encoder.stride
    whole = encoder.encode_dense(rgb)
    cut = encoder.encode_dense(rgb[..., inset:-inset, inset:-inset])[..., border:-border, border:-border]
    expected = whole[..., step + border : -step - border, step + border : -step - border]
    assert cut.shape == expected.shape and cut.numel()
    difference = (cut - expected).abs().mean(dim=(0, 2, 3)) / whole.std(dim=(0, 2, 3))
    assert difference.max() < 0.01


def test_nothing_is_fetched_to_import_or_list_them():
    code = """
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
import pixel2gene as p2g
p2g.encoders()
print([m for m in ("torch", "timm", "transformers", "lazyslide_models", "huggingface_hub") if m in sys.modules])
import torch
from pixel2gene.core.encoders import get_encoder
import pixel2gene.core.encoders.vit, pixel2gene.core.encoders.vit_folder, pixel2gene.core.encoders.hipt
get_encoder("lite0", torch.device("cpu"))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "[]\n"), found.stderr


def test_the_registry_is_a_table_without_gaps():
    from pixel2gene import encoders

    table = encoders()
    assert list(table.index) == list(REGISTRY) and table.index.name == "name"
    columns = "channels mpp token mean std licence commercial gated weights citation".split()
    assert list(table.columns) == columns
    assert not table.isna().any(axis=None) and (table[["licence", "weights", "citation"]] != "").all(axis=None)
    for info in REGISTRY.values():
        window = HUB_WINDOWS.get(info.name, HUB_WINDOW)
        assert info.lazyslide is None or window % math.lcm(info.token, round(SUPERPIXEL_UM / info.mpp)) == 0


def test_colours_are_normalised_as_timm_does():
    assert (CLIP, IMAGENET) == (
        (constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD),
        (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD),
    )
    assert (REGISTRY["uni"].mean, REGISTRY["uni"].std) == IMAGENET


def test_the_registry_agrees_with_lazyslide_models():
    models = pytest.importorskip("lazyslide_models").MODEL_REGISTRY
    for info in REGISTRY.values():
        if info.lazyslide is not None:
            theirs = models[info.lazyslide]
            assert (info.commercial, info.gated) == (theirs.commercial, theirs.is_gated), info.name
            assert info.weights.lower() == theirs.hf_url.lower() or info.name == "hibou-l"


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"No encoder 'resnet'; there are \[.*'lite0'.*\]"):
        get_encoder("resnet", CPU)
