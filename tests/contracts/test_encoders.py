"""What every encoder promises, so that a new one is tested by its entry in ENCODERS."""

import numpy as np
import pytest
import torch

from pixel2gene.core.encoders import ENCODERS, get_encoder
from pixel2gene.datasets._paint import paint
from pixel2gene.spatial.grid import SUPERPIXEL_UM


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def encoder(request):
    return get_encoder(request.param, torch.device("cpu"))


@pytest.fixture(scope="module")
def rgb():
    return torch.from_numpy(paint((640, 640), 0.5, 3).image[None].astype(np.float32))


def test_says_what_it_is(encoder):
    assert ENCODERS[encoder.name] is type(encoder)
    assert encoder.licence
    assert len(encoder.weights_sha256) == 64 and int(encoder.weights_sha256, 16)


def test_a_superpixel_is_8_um(encoder):
    assert encoder.stride * encoder.mpp == SUPERPIXEL_UM
    assert encoder.halo % encoder.stride == 0


@pytest.mark.parametrize(("batch", "rows", "columns"), [(1, 8, 8), (2, 9, 13)])
def test_one_vector_per_superpixel(encoder, batch, rows, columns):
    found = encoder.encode_dense(torch.zeros(batch, 3, rows * encoder.stride, columns * encoder.stride))
    assert found.shape == (batch, encoder.channels, rows, columns)
    assert found.dtype == torch.float32


def test_bytes_and_floats_give_the_same(encoder, rgb):
    part = rgb[..., :256, :256]
    assert torch.equal(encoder.encode_dense(part), encoder.encode_dense(part.byte()))


def test_features_fit_in_half_precision_and_vary(encoder, rgb):
    features = encoder.encode_dense(rgb)
    assert features.abs().max() < 1e3
    assert (features.std(dim=(0, 2, 3)) > 1e-3).all()


def test_repeats_exactly(encoder, rgb):
    part = rgb[..., :256, :256]
    assert torch.equal(encoder.encode_dense(part), encoder.encode_dense(part))


def test_beyond_the_halo_a_border_does_not_show(encoder, rgb):
    border = encoder.halo // encoder.stride
    whole = encoder.encode_dense(rgb)
    inset = encoder.halo // 2
    step = inset // encoder.stride
    cut = encoder.encode_dense(rgb[..., inset:-inset, inset:-inset])[..., border:-border, border:-border]
    expected = whole[..., step + border : -step - border, step + border : -step - border]
    assert cut.shape == expected.shape and cut.numel()
    difference = (cut - expected).abs().mean(dim=(0, 2, 3)) / whole.std(dim=(0, 2, 3))
    assert difference.max() < 0.01


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"No encoder 'resnet'; there are \[.*'lite0'.*\]"):
        get_encoder("resnet", torch.device("cpu"))
