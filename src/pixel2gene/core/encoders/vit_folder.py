"""Vision transformers from folders, as timm or transformers lay them out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixel2gene.core.encoders.registry import EncoderInfo
from pixel2gene.core.encoders.vit import EXTRA, ViT, superpixel_side
from pixel2gene.core.encoders.weights import UNREADABLE, require_no_archive
from pixel2gene.core.errors import first_line

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"


def vit_from_folder(folder: Path, device: torch.device) -> ViT:
    """Load any vision transformer of timm or transformers from a folder as their hub lays it out.

    Parameters
    ----------
    folder
        Holds ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``, of which only tensors are read); of
        transformers ``preprocessor_config.json``, too, and its weights may come in parts. Code that comes with it is
        not run. ``"mpp"`` in the configuration is the resolution that the weights are for, 0.5 µm per pixel if it has
        none.
    device
        To compute on.

    Raises
    ------
    ValueError
        If there are no weights, or they are not those of a vision transformer that the library knows.
    ImportError
        If the library is not installed.
    """
    if not any((folder / f"{name}{part}").is_file() for name in (SAFETENSORS, PICKLED) for part in ("", ".index.json")):
        raise ValueError(f"The folder {folder} has no weights: {SAFETENSORS} or {PICKLED} expected.")
    library = "timm or transformers"
    try:
        config = _read_json(folder / "config.json")
        for file in folder.glob("*.bin"):
            require_no_archive(file)
        if "architecture" in config:
            library = "timm"
            return _of_timm(folder, config, device)
        if "model_type" in config:
            library = "transformers"
            return _of_transformers(folder, config, device)
        raise ValueError("its config.json names neither an 'architecture' of timm nor a 'model_type' of transformers")
    except ImportError as error:
        raise ImportError(
            f"The folder {folder} holds weights for {library}, which is not installed: {EXTRA} ({error})."
        ) from error
    except UNREADABLE as error:
        raise ValueError(
            f"The folder {folder} holds no vision transformer that {library} can build: {first_line(error)}."
        ) from error


def _of_timm(folder: Path, config: dict[str, Any], device: torch.device) -> ViT:
    import timm
    from timm.models import load_state_dict

    file = folder / SAFETENSORS
    state = load_state_dict(str(file if file.is_file() else folder / PICKLED), weights_only=True)
    network: Any = timm.create_model(
        f"local-dir:{folder}", num_classes=0, dynamic_img_size=True, **_feed_forward(state, timm.layers)
    )
    found = network.load_state_dict(state, strict=False)
    # A classifier is of no use, all else must be there.
    _require_none(found.missing_keys, ())
    _require_none(found.unexpected_keys, ("head", "fc_norm"))
    trained = network.pretrained_cfg
    info = _info(
        folder,
        config,
        network.num_features,
        _side("patches", network.patch_embed.patch_size),
        trained["mean"],
        trained["std"],
        trained.get("license"),
    )

    def patch_tokens(normalised: Tensor) -> Tensor:
        tokens: Tensor = network.forward_features(normalised)[:, network.num_prefix_tokens :]
        return tokens

    return ViT(info, network, patch_tokens, _window(info, _side("images", network.patch_embed.img_size)), device)


def _of_transformers(folder: Path, config: dict[str, Any], device: torch.device) -> ViT:
    from transformers import CONFIG_MAPPING, AutoModel

    kind = config["model_type"]
    if "auto_map" in config:
        raise ValueError(f"model_type {kind!r} needs the code that comes with it ('auto_map'), which is not run")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"it knows no model_type {kind!r}")
    if not (folder / PREPROCESSOR).is_file():
        raise ValueError(f"{PREPROCESSOR} with 'image_mean' and 'image_std' is missing")
    seen = _read_json(folder / PREPROCESSOR)
    with _quiet_loading():
        network, found = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=any(folder.glob("*.safetensors")),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _require_none((name for name, *_ in found["mismatched_keys"]), ())
    # Heads, and what stands for pixels that are hidden in training, are of no use.
    _require_none(found["missing_keys"], ("pooler", "embeddings.mask_token"))
    _require_none(found["unexpected_keys"], ("pooler", "embeddings.mask_token", "classifier", "head"))
    if getattr(network, "pooler", None) is not None:
        # Drawn at random where the file has none: it must not be part of the hash.
        network.pooler = None
    built = network.config
    info = _info(
        folder,
        config,
        built.hidden_size,
        _side("patches", built.patch_size),
        seen["image_mean"],
        seen["image_std"],
    )
    first = 1 + getattr(built, "num_register_tokens", 0)
    # Others fit their positions to the image unasked.
    fit = {"interpolate_pos_encoding": True} if kind == "vit" else {}

    def patch_tokens(normalised: Tensor) -> Tensor:
        tokens: Tensor = network(pixel_values=normalised, **fit).last_hidden_state[:, first:]
        return tokens

    shown = seen.get("crop_size") or seen.get("size") or built.image_size
    return ViT(info, network.float(), patch_tokens, _window(info, _side("images", shown)), device)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without the bars and reports that transformers prints, and what it raises of a configuration as a ValueError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (StrictDataclassError, ArithmeticError) as error:
        raise ValueError(f"its config.json is wrong: {first_line(error)}") from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _read_json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"its {file.name} is no object of JSON")
    return content


def _require_none(names: Iterable[str], expected: tuple[str, ...]) -> None:
    wrong = sorted(name for name in names if not name.startswith(expected))
    if wrong:
        raise ValueError(f"weights and configuration differ in {wrong[:3]}")


def _feed_forward(state: Mapping[str, Tensor], layers: Any) -> dict[str, Any]:
    """Gated linear units, which a configuration in JSON does not tell: half of what goes in comes out."""
    inner, outer = (state.get(f"blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    if inner is None or outer is None or inner.shape[0] == outer.shape[1]:
        return {}
    return {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU}


def _side(what: str, size: Any) -> int:
    """Of a square, however it is told: as a number, a pair, or by names."""
    sides = set(size.values()) if isinstance(size, dict) else {*size} if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise ValueError(f"its {what} are {size} px; squares expected")
    return int(sides.pop())


def _info(
    folder: Path,
    config: dict[str, Any],
    channels: int,
    token: int,
    mean: list[float],
    std: list[float],
    licence: str | None = None,
) -> EncoderInfo:
    (r, g, b), (sr, sg, sb) = mean, std
    return EncoderInfo(
        name=folder.resolve().name,
        channels=channels,
        mpp=float(config.get("mpp", 0.5)),
        token=token,
        mean=(r, g, b),
        std=(sr, sg, sb),
        licence=licence or _licence(folder) or "not stated",
        commercial=False,
        gated=False,
        weights=str(folder),
        citation="",
    )


def _window(info: EncoderInfo, native: int) -> int:
    """Nearest to what the network was trained on, of whole tokens and whole superpixels."""
    unit = math.lcm(info.token, superpixel_side(info.mpp))
    return max(1, round(native / unit)) * unit


def _licence(folder: Path) -> str | None:
    """Of the model page that hubs keep with the weights."""
    page = folder / "README.md"
    found = re.search(r"^license:\s*(\S+)", page.read_text(), re.MULTILINE) if page.is_file() else None
    return found[1] if found else None
