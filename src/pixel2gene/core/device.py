"""Which device, and how many threads, to compute on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone: dask's threads use every core, and would wait for one another's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
