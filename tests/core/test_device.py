import pytest
import torch

from pixel2gene.core.device import choose_device


@pytest.mark.parametrize(("cuda", "best"), [(True, "cuda"), (False, "cpu")])
def test_the_best_device_there_is(monkeypatch, cuda, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_device(None) == torch.device(best)


def test_the_device_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(torch.device("cuda:1")) == torch.device("cuda", 1)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        choose_device("cuda:0")
