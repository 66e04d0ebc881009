"""Vision transformers, and the pathology foundation models that their hub has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pixel2gene.core.encoders.registry import SUPERPIXEL_UM, EncoderInfo
from pixel2gene.core.encoders.tokens import place_tokens
from pixel2gene.core.encoders.weights import state_sha256
from pixel2gene.core.errors import first_line

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
        f"encoder='path/to/folder' with its config.json and model.safetensors ({first_line(error)})"
    )
