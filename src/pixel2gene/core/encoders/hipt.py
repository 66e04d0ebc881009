"""HIPT (Chen et al., CVPR 2022): a vision transformer of regions over one of their patches.

Written from the paper. Names of parameters are those of the checkpoints, which are DINO's (Caron et al., ICCV 2021).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel2gene.core.encoders.registry import REGISTRY
from pixel2gene.core.encoders.weights import UNREADABLE, require_no_archive, state_sha256
from pixel2gene.core.errors import first_line

PATCH = 16
REGION = 256
HEADS = 6
BATCH = 16
LOCAL_FILE, GLOBAL_FILE = "vit256_small_dino.pth", "vit4k_xs_dino.pth"


class Attention(nn.Module):
    """Self-attention between tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        projected: Tensor = self.proj(mixed)
        return projected


class FeedForward(nn.Module):
    """Two layers on each token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each normalised first and added."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """A transformer over a grid of tokens, as large as its weights are."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        _, positions, width = state["pos_embed"].shape
        hidden = len(state["blocks.0.mlp.fc1.bias"])
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.blocks = nn.Sequential(*(Block(width, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.load_state_dict(state)

    def forward(self, grid: Tensor) -> Tensor:
        """(batch, width, rows, columns) to (batch, 1 + rows * columns, width), the class token first."""
        tokens = torch.cat([self.cls_token.expand(len(grid), -1, -1), grid.flatten(2).mT], dim=1)
        out: Tensor = self.norm(self.blocks(tokens + self._positions(*grid.shape[2:])))
        return out

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Those of the weights, interpolated to the grid."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(rest.shape[1] ** 0.5)
        square = rest.mT.reshape(1, -1, side, side)
        resized = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([first, resized.flatten(2).mT], dim=1)


class Hipt:
    """Patches of 16 px as regions of 256 px see them, joined to these regions as a window of 4096 px sees them.

    Parameters
    ----------
    local, regional
        Weights of the two transformers.
    device
        To compute on.
    """

    name = "hipt"
    mpp = 0.5
    stride = PATCH
    window: int | None = 4096
    overlap = 0.0
    halo = 0
    licence = REGISTRY["hipt"].licence

    def __init__(self, local: Mapping[str, Tensor], regional: Mapping[str, Tensor], device: torch.device) -> None:
        self.device = device
        self.weights_sha256 = state_sha256(
            {f"{i}.{k}": v for i, s in enumerate((local, regional)) for k, v in s.items()}
        )
        self._embed_patches, rest = _split(local, "patch_embed.proj")
        self._local = Transformer(rest).to(device).eval()
        self._embed_regions, rest = _split(regional, "phi.0")
        self._regional = Transformer(rest).to(device).eval()
        self.channels = sum(transformer.pos_embed.shape[2] for transformer in (self._local, self._regional))

    def encode_dense(self, rgb: Tensor) -> Tensor:
        """Features of every superpixel.

        Parameters
        ----------
        rgb
            (batch, 3, height, width), values 0 to 255, sides multiples of 256.

        Returns
        -------
        (batch, 384 + 192, height / 16, width / 16), float32.
        """
        batch, _, height, width = rgb.shape
        rows, columns, patches = height // REGION, width // REGION, REGION // PATCH
        regions = rgb.reshape(batch, 3, rows, REGION, columns, REGION).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        with torch.inference_mode():
            tokens = torch.cat([self._encode_regions(part) for part in regions.split(BATCH)])
            local = tokens[:, 1:].view(batch, rows, columns, patches, patches, -1)
            local = local.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patches, columns * patches)
            regional = self._encode_window(tokens[:, 0].view(batch, rows, columns, -1).permute(0, 3, 1, 2))
            spread = regional.repeat_interleave(patches, dim=2).repeat_interleave(patches, dim=3)
            return torch.cat([local, spread], dim=1)

    def _encode_regions(self, rgb: Tensor) -> Tensor:
        """(regions, 3, 256, 256) to (regions, 1 + 256, 384)."""
        weight, bias = (value.to(self.device) for value in self._embed_patches)
        scaled = rgb.to(self.device).float() / 127.5 - 1
        tokens: Tensor = self._local(F.conv2d(scaled, weight, bias, stride=PATCH))
        return tokens

    def _encode_window(self, grid: Tensor) -> Tensor:
        """(batch, 384, rows, columns) class tokens of regions to (batch, 192, rows, columns)."""
        weight, bias = (value.to(self.device) for value in self._embed_regions)
        tokens = self._regional(F.gelu(F.conv2d(grid, weight[:, :, None, None], bias)))[:, 1:]
        regional: Tensor = tokens.mT.reshape(len(grid), -1, *grid.shape[2:])
        return regional


def hipt_from_folder(folder: Path, device: torch.device) -> Hipt:
    """Load HIPT from a folder with its two DINO checkpoints; nothing but tensors is read."""
    files = [folder / name for name in (LOCAL_FILE, GLOBAL_FILE)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"The folder {folder} holds neither config.json and model.safetensors of a vision transformer nor "
            f"{LOCAL_FILE} and {GLOBAL_FILE} of HIPT ({missing} missing): add them."
        )
    try:
        local, regional = (_read(file) for file in files)
        return Hipt(local, regional, device)
    except UNREADABLE as error:
        raise ValueError(f"The checkpoints in {folder} are not those of HIPT: {first_line(error)}.") from error


def _read(file: Path) -> dict[str, Tensor]:
    """The teacher's transformer, without the head that it was trained with."""
    require_no_archive(file)
    # DINO keeps its command line beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    state = checkpoint.get("teacher", checkpoint)
    named = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}
    return {name: value for name, value in named.items() if not name.startswith("head.")}


def _split(state: Mapping[str, Tensor], name: str) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Weight and bias of a layer, and all else."""
    own = {f"{name}.weight", f"{name}.bias"}
    rest = {key: value for key, value in state.items() if key not in own}
    return (state[f"{name}.weight"], state[f"{name}.bias"]), rest
