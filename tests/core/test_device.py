import subprocess
import sys

import pytest
import torch

from pixel2gene.core.device import choose_device, quick_products


@pytest.mark.parametrize(("cuda", "best"), [(True, "cuda"), (False, "cpu")])
def test_the_best_device_there_is(monkeypatch, cuda, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_device(None) == torch.device(best)


def test_the_device_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(torch.device("cuda:1")) == torch.device("cuda", 1)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device='cuda:1' was asked for, but torch sees 1 CUDA GPUs"):
        choose_device("cuda:1")


@pytest.mark.parametrize("device", ["tpu9", "", 0.5])
def test_a_device_that_there_is_not_is_refused(device):
    with pytest.raises(ValueError, match="none that torch knows; 'cpu', 'cuda'"):
        choose_device(device)


def test_products_are_quick_only_for_a_while():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyboardInterrupt), quick_products():
        assert torch.get_float32_matmul_precision() == "medium"
        raise KeyboardInterrupt
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no precision by backend")
def test_a_precision_chosen_by_backend_is_left_as_it_is():
    """In a process of its own: torch does not forget that it was chosen so."""
    code = """
import torch
from pixel2gene.core.device import quick_products
with quick_products():
    pass
torch.backends.cuda.matmul.fp32_precision = "tf32"
with quick_products():
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).sum() == 8
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
