"""Which device to compute on."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device | None) -> torch.device:
    """Take the device asked for, or the best there is; a ValueError says if it is not there."""
    if device is None:
        # Not MPS, which lacks the sparse product with the overlap matrix.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is none that torch knows; 'cpu', 'cuda' or 'cuda:1' are: leave it out to use the best."
        ) from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(device)!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA GPUs; leave device "
            "out to use the best."
        )
    return chosen
