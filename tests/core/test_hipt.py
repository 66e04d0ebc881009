"""HIPT against timm's vision transformer with the same weights, and its checkpoints."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer

from pixel2gene.core.encoders import get_encoder
from pixel2gene.core.encoders.hipt import GLOBAL_FILE, LOCAL_FILE, Hipt, Transformer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(dino_states):
    return Hipt(*dino_states, CPU)


@pytest.fixture(scope="module")
def rgb():
    return torch.rand(2, 3, 512, 768, generator=torch.Generator().manual_seed(0)) * 255


def in_timm(state, patch, in_chans, grid):
    """Its network of the same shape; the first layer is a convolution there, whatever its name."""
    network = VisionTransformer(
        img_size=tuple(patch * side for side in grid),
        patch_size=patch,
        in_chans=in_chans,
        embed_dim=state["pos_embed"].shape[2],
        depth=2,
        num_heads=6,
        num_classes=0,
    )
    renamed = {key.replace("phi.0", "patch_embed.proj"): value for key, value in state.items()}
    weight = renamed["patch_embed.proj.weight"]
    renamed["patch_embed.proj.weight"] = weight.view(len(weight), in_chans, patch, patch)
    # DINO interpolates without antialiasing.
    renamed["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, num_prefix_tokens=1, antialias=False)
    network.load_state_dict(renamed)
    return network.eval()


def test_equals_timm_on_both_levels(encoder, dino_states, rgb):
    local, regional = dino_states
    patches = in_timm(local, 16, 3, (16, 16))
    # The paper embeds regions by a layer with GELU.
    regions = in_timm(regional, 1, 24, (2, 3))
    regions.patch_embed.norm = torch.nn.GELU()
    found = encoder.encode_dense(rgb)
    assert found.shape == (2, 24 + 12, 32, 48)
    with torch.inference_mode():
        for b in range(2):
            grid = torch.zeros(1, 24, 2, 3)
            for y in range(2):
                for x in range(3):
                    region = rgb[b : b + 1, :, 256 * y : 256 * (y + 1), 256 * x : 256 * (x + 1)] / 127.5 - 1
                    tokens = patches.forward_features(region)
                    grid[0, :, y, x] = tokens[0, 0]
                    expected = tokens[0, 1:].T.reshape(24, 16, 16)
                    here = found[b, :24, 16 * y : 16 * (y + 1), 16 * x : 16 * (x + 1)]
                    torch.testing.assert_close(here, expected, rtol=1e-3, atol=1e-4)
            expected = regions.forward_features(grid)[:, 1:].mT.reshape(1, 12, 2, 3)
            expected = F.interpolate(expected, scale_factor=16)[0]
            torch.testing.assert_close(found[b, 24:], expected, rtol=1e-3, atol=1e-4)


def test_the_published_sizes():
    """ViT-S over patches, and 6 layers of width 192 over regions."""
    for width, depth in ((384, 12), (192, 6)):
        reference = VisionTransformer(
            img_size=14, patch_size=1, in_chans=width, embed_dim=width, depth=depth, num_heads=6, num_classes=0
        )
        reference.patch_embed.proj.weight.data = torch.eye(width)[..., None, None]
        torch.nn.init.zeros_(reference.patch_embed.proj.bias)
        state = {k: v for k, v in reference.state_dict().items() if not k.startswith("patch_embed")}
        network = Transformer(state)
        assert len(network.blocks) == depth
        grid = torch.randn(1, width, 14, 14)
        with torch.inference_mode():
            expected = reference.eval().forward_features(grid)
            torch.testing.assert_close(network(grid), expected, rtol=1e-3, atol=1e-4)


def save(folder, states, wrap):
    for name, state in zip((LOCAL_FILE, GLOBAL_FILE), states, strict=True):
        torch.save(wrap(state), folder / name)
    return folder


def dino(state):
    """As DINO saves: student and teacher with their heads, and the command line."""
    teacher = {f"backbone.{key}": value for key, value in state.items()} | {"head.mlp.0.weight": torch.ones(3)}
    student = {f"module.backbone.{key}": value + 1 for key, value in state.items()}
    return {"teacher": teacher, "student": student, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}


@pytest.mark.parametrize("wrap", [dino, lambda state: state], ids=["dino", "plain"])
def test_checkpoints(encoder, dino_states, rgb, tmp_path, wrap):
    found = get_encoder(save(tmp_path, dino_states, wrap), CPU)
    assert (found.name, found.channels, found.weights_sha256) == ("hipt", 36, encoder.weights_sha256)
    assert torch.equal(found.encode_dense(rgb), encoder.encode_dense(rgb))


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda state: {"teacher": {}}, "are not those of HIPT: 'patch_embed.proj.weight'"),
        (lambda state: {"teacher": {**state, "rest": torch.ones(1)}}, "are not those of HIPT: Error.s. in loading"),
        (lambda state: {"teacher": state, "args": Evil()}, "are not those of HIPT"),
    ],
    ids=["empty", "more", "code"],
)
def test_other_checkpoints_are_refused(dino_states, tmp_path, capsys, wrap, message):
    with pytest.raises(ValueError, match=message):
        get_encoder(save(tmp_path, dino_states, wrap), CPU)
    assert "run" not in capsys.readouterr().out


def test_a_folder_without_weights_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"neither config.json .* nor vit256_small_dino.pth and vit4k_xs_dino.pth"):
        get_encoder(tmp_path, CPU)
    with pytest.raises(ValueError, match="in a folder of your own: pass encoder='path/to/folder'"):
        get_encoder("hipt", CPU)
