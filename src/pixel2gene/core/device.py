"""Which device, how many threads, and how exactly to compute."""

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


@contextmanager
def quick_products() -> Iterator[None]:
    """Let torch multiply matrices in bfloat16, or TF32, where the processor is quicker at that; sums stay float32.

    For training, whose steps are far noisier than that; what a model says is computed in float32.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        # It was chosen by backend (`torch.backends.cuda.matmul.fp32_precision`), which torch lets nobody mix with this.
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
