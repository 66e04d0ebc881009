"""Files of weights: what may be wrong with them, and their identity."""

from __future__ import annotations

import hashlib
import pickle
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

# What is raised where a file holds other things than weights, or those of another network.
UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    SafetensorError,
)


def require_no_archive(file: Path) -> None:
    """Refuse a tar archive, which torch takes for a format of its youth and unpacks to a folder."""
    if tarfile.is_tarfile(file):
        raise ValueError(f"{file.name} is a tar archive")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, so that it is the same whatever file they came in."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
