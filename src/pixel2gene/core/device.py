"""Which device to compute on."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device | None) -> torch.device:
    """Take the device asked for, or the best there is; a ValueError says if it is not there."""
    if device is None:
        # Not MPS, which lacks the sparse product with the overlap matrix.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' was asked for, but torch sees no CUDA GPU; leave device out to use the best.")
    return chosen
