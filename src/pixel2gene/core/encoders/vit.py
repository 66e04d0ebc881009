"""Vision transformers: pathology foundation models from their hub, and any that timm can build from a folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixel2gene.core.encoders.registry import SUPERPIXEL_UM, EncoderInfo
from pixel2gene.core.encoders.tokens import place_tokens
from pixel2gene.core.encoders.weights import UNREADABLE, require_no_archive, state_sha256
from pixel2gene.core.errors import first_line

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Of the published pathology models.
HUB_WINDOWS = {"conch": 448}
HUB_WINDOW = 224
EXTRA = "pip install 'pixel2gene[fm]'"


class ViT:
    """Patch tokens of a vision transformer, laid on superpixels by area.

    Parameters
    ----------
    info
        What is known of it.
    network
        The transformer, in inference mode.
    patch_tokens
        (batch, 3, window, window), normalised, to (batch, patches, channels), row by row.
    window
        Pixels per axis.
    device
        To compute on; on a GPU in half precision.
    """

    overlap = 0.5
    halo = 0

    def __init__(
        self,
        info: EncoderInfo,
        network: nn.Module,
        patch_tokens: Callable[[Tensor], Tensor],
        window: int,
        device: torch.device,
    ) -> None:
        self.name, self.channels, self.licence = info.name, info.channels, info.licence
        self.stride = superpixel_side(info.mpp)
        self.mpp = SUPERPIXEL_UM / self.stride
        self.window: int | None = window
        self._side = window // info.token
        self.weights_sha256 = state_sha256(network.state_dict())
        self.device = device
        self._patch_tokens = patch_tokens
        self._token = info.token
        self._mean, self._std = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in (info.mean, info.std))
        network.to(device).eval()

    def encode_dense(self, rgb: Tensor) -> Tensor:
        """Features of every superpixel.

        Parameters
        ----------
        rgb
            (batch, 3, window, window), values 0 to 255.

        Returns
        -------
        (batch, channels, window / stride, window / stride), float32.
        """
        normalised = (rgb.to(self.device).float() - self._mean) / self._std
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            tokens = self._patch_tokens(normalised)
        side = self._side
        if tokens.shape[1:] != (side**2, self.channels):
            raise ValueError(
                f"Encoder {self.name!r} gave {tuple(tokens.shape[1:])} tokens and channels for {self.window} px; "
                f"{(side**2, self.channels)} expected."
            )
        return place_tokens(tokens.float().mT.reshape(len(rgb), self.channels, side, side), self._token, self.stride)


def superpixel_side(mpp: float) -> int:
    """Pixels per superpixel and axis; images are read at the resolution at which they are whole."""
    return max(1, round(SUPERPIXEL_UM / mpp))


def vit_from_hub(info: EncoderInfo, device: torch.device) -> ViT:
    """Load a foundation model through lazyslide-models, which downloads its weights once."""
    try:
        from lazyslide_models import MODEL_REGISTRY
    except ImportError as error:
        raise ImportError(f"Encoder {info.name!r} needs lazyslide-models: {EXTRA} ({error}).") from error
    try:
        model = MODEL_REGISTRY[str(info.lazyslide)]()
    except ImportError as error:
        raise ImportError(f"Encoder {info.name!r} needs another package: {error}") from error
    except OSError as error:
        raise _unavailable(info, error) from error
    # Without a transform it would resize and normalise by itself, once more.
    preprocesses = model.get_transform() is None

    def patch_tokens(normalised: Tensor) -> Tensor:
        tokens: Tensor = (
            model.model(pixel_values=normalised).last_hidden_state[:, 1:]
            if preprocesses
            else model.encode_image_dense(normalised).patch_tokens
        )
        return tokens

    return ViT(info, model.model, patch_tokens, HUB_WINDOWS.get(info.name, HUB_WINDOW), device)


def _unavailable(info: EncoderInfo, error: OSError) -> OSError:
    from huggingface_hub.errors import RepositoryNotFoundError

    cause: BaseException | None = error
    while cause is not None:
        # What is gated is not found by those who may not have it.
        if isinstance(cause, RepositoryNotFoundError):
            return PermissionError(
                f"The weights of {info.name!r} are gated: ask for access at {info.weights}, then log in with "
                "`hf auth login`."
            )
        cause = cause.__cause__ or cause.__context__
    return ConnectionError(
        f"The weights of {info.name!r} could not be downloaded from {info.weights}; where there is no network, pass "
        f"encoder='path/to/folder' with its config.json and {WEIGHT_FILES[0]} ({first_line(error)})"
    )


def vit_from_folder(folder: Path, device: torch.device) -> ViT:
    """Load any vision transformer of timm from a folder as timm and its hub lay it out.

    Parameters
    ----------
    folder
        Holds ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``, of which only tensors are read).
        ``"mpp"`` in the configuration is the resolution that the weights are for, 0.5 µm per pixel if it has none.
    device
        To compute on.
    """
    try:
        import timm
        from timm.models import load_state_dict
    except ImportError as error:
        raise ImportError(f"The folder {folder} holds weights for timm, which is not installed: {EXTRA}.") from error
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"The folder {folder} has no weights: {' or '.join(WEIGHT_FILES)} expected.")
    try:
        config = json.loads((folder / "config.json").read_text())
        if "architecture" not in config:
            raise ValueError("its config.json names no 'architecture', so that it is not timm's")
        require_no_archive(file)
        state = load_state_dict(str(file), weights_only=True)
        network: Any = timm.create_model(
            f"local-dir:{folder}", num_classes=0, dynamic_img_size=True, **_feed_forward(state, timm.layers)
        )
        # A classifier is of no use, all else must be there.
        found = network.load_state_dict(state, strict=False)
        wrong = [
            *found.missing_keys,
            *(key for key in found.unexpected_keys if not key.startswith(("head", "fc_norm"))),
        ]
        if wrong:
            raise ValueError(f"weights and configuration differ in {wrong[:3]}")
        info, window = _describe(folder, config, network)
    except UNREADABLE as error:
        raise ValueError(
            f"The folder {folder} holds no vision transformer that timm can build: {first_line(error)}."
        ) from error

    def patch_tokens(normalised: Tensor) -> Tensor:
        tokens: Tensor = network.forward_features(normalised)[:, network.num_prefix_tokens :]
        return tokens

    return ViT(info, network, patch_tokens, window, device)


def _feed_forward(state: Mapping[str, Tensor], layers: Any) -> dict[str, Any]:
    """Gated linear units, which a configuration in JSON does not tell: half of what goes in comes out."""
    inner, outer = (state.get(f"blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    if inner is None or outer is None or inner.shape[0] == outer.shape[1]:
        return {}
    return {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU}


def _describe(folder: Path, config: dict[str, Any], network: Any) -> tuple[EncoderInfo, int]:
    """What the folder says of its network, and the window nearest to what it was trained on."""
    token, native = {*network.patch_embed.patch_size}, {*network.patch_embed.img_size}
    if len(token) > 1 or len(native) > 1:
        raise ValueError(f"its patches are {token} and its images {native} px; squares expected")
    trained = network.pretrained_cfg
    info = EncoderInfo(
        name=folder.resolve().name,
        channels=network.num_features,
        mpp=float(config.get("mpp", 0.5)),
        token=token.pop(),
        mean=tuple(trained["mean"]),
        std=tuple(trained["std"]),
        licence=trained.get("license") or _licence(folder) or "not stated",
        commercial=False,
        gated=False,
        weights=str(folder),
        citation="",
    )
    # Both whole tokens and whole superpixels.
    unit = math.lcm(info.token, superpixel_side(info.mpp))
    return info, max(1, round(native.pop() / unit)) * unit


def _licence(folder: Path) -> str | None:
    """Of the model page that hubs keep with the weights."""
    page = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", page.read_text(), re.MULTILINE) if page.is_file() else None
    return found[1] if found else None
