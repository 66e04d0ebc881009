"""Paint H&E-like tissue whose layout and every nucleus are known.

The layout is drawn once on a grid of 2 µm as signed distances (µm, positive inside), which stay smooth when they are
interpolated; the picture is then composed band by band in optical density, so memory grows with the picture alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage as ndi
from scipy.spatial import cKDTree
from skimage.morphology import remove_small_objects

LAYOUT_UM = 2.0
COMPARTMENTS = (
    "background",
    "stroma",
    "tumour",
    "gland",
    "lumen",
    "lymphoid",
    "fat",
    "vessel",
    "necrosis",
)
CELL_TYPES = ("tumour", "epithelium", "fibroblast", "lymphocyte", "endothelium", "adipocyte", "debris")

# Absorption (natural log) of red, green and blue light by one unit of each dye.
HAEMATOXYLIN = np.array([0.60, 0.72, 0.34], np.float32)
EOSIN = np.array([0.17, 0.86, 0.46], np.float32)
_HAEMOGLOBIN = np.array([0.12, 0.80, 0.66], np.float32)
GLASS = np.array([244, 242, 245], np.float32)

_FAR = -1e3
_TILE = 1024
_TILE_UM = 0.5
_BAND = 2**21


@dataclass(frozen=True)
class Painting:
    """A painted slide and what was painted.

    Attributes
    ----------
    image
        H&E-like RGB, ``uint8`` of shape (3, y, x).
    compartments
        Index into `COMPARTMENTS` per layout pixel of 2 µm; its sides are whole multiples of 8 µm that cover the image.
    nuclei
        One row per nucleus: centre ``x``, ``y`` and half axes ``major``, ``minor`` in pixels, ``angle`` of the major
        axis in radians, ``type`` (one of `CELL_TYPES`) and ``chromatin`` (optical density of haematoxylin).
    mpp
        Pixel size in µm.
    """

    image: np.ndarray
    compartments: np.ndarray
    nuclei: pd.DataFrame
    mpp: float


@dataclass(frozen=True)
class _Layout:
    """Signed distances in µm on the layout grid, and the fields that textures follow."""

    tissue: np.ndarray
    fat: np.ndarray
    lymphoid: np.ndarray
    nest: np.ndarray
    necrosis: np.ndarray
    gland: np.ndarray
    lumen: np.ndarray
    vessel: np.ndarray
    bore: np.ndarray
    across: np.ndarray
    along: np.ndarray
    looseness: np.ndarray
    thickness: np.ndarray
    infiltrate: np.ndarray
    glands: pd.DataFrame
    vessels: pd.DataFrame
    adipocytes: np.ndarray


def paint(shape: tuple[int, int], mpp: float = 0.5, seed: int = 0) -> Painting:
    """Paint an H&E-like slide with tumour, glands, stroma, lymphoid tissue, fat, vessels and necrosis.

    Parameters
    ----------
    shape
        Height and width of the picture in pixels, each at least 256.
    mpp
        Pixel size in µm, from 0.2 to 1.
    seed
        Draws the layout, the nuclei and the noise of the picture.

    Returns
    -------
    The picture, its compartments and its nuclei.
    """
    if not (isinstance(shape, tuple | list) and len(shape) == 2 and min(shape) >= 256):
        raise ValueError(
            f"size {shape} is no (height, width), or too small to paint tissue on: give at least 256 pixels a side."
        )
    if not 0.2 <= mpp <= 1:
        raise ValueError(f"mpp {mpp} cannot be painted: give a pixel size from 0.2 to 1 µm.")
    rng = np.random.default_rng(seed)
    layout = _layout(shape, mpp, rng)
    compartments = _compartments(layout)
    nuclei = _nuclei(layout, rng)
    image = _compose(shape, mpp, layout, nuclei, _red_cells(layout, rng), rng)
    inside = (nuclei["x"] < shape[1] * mpp) & (nuclei["y"] < shape[0] * mpp) & (nuclei["x"] > 0) & (nuclei["y"] > 0)
    nuclei = nuclei[inside].reset_index(drop=True)
    nuclei[["x", "y", "major", "minor"]] /= mpp
    return Painting(image, compartments, nuclei[["x", "y", "major", "minor", "angle", "type", "chromatin"]], mpp)


def smooth_field(shape: tuple[int, int], length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a stationary Gaussian field of mean 0 and variance about 1.

    Parameters
    ----------
    shape
        Height and width of the field in pixels.
    length
        Distance in pixels over which the correlation falls to about a third.
    rng
        Source of randomness.

    Returns
    -------
    Field, ``float32``.
    """
    # A Gaussian of sigma s correlates as exp(-d²/4s²); drawn coarsely, so that its cost does not grow with `length`.
    step = max(1.0, length / 3)
    sigma = length / 2 / step
    size = [int(np.ceil(n / step)) + 4 for n in shape]
    pad = int(np.ceil(3 * sigma))
    white = rng.standard_normal([n + 2 * pad for n in size]).astype(np.float32)
    coarse = ndi.gaussian_filter(white, sigma)[pad:-pad, pad:-pad] * np.float32(2 * np.sqrt(np.pi) * sigma)
    if step == 1:
        return coarse[: shape[0], : shape[1]]
    return ndi.affine_transform(coarse, [1 / step, 1 / step], offset=1.5, output_shape=tuple(shape), order=3)


# --- layout ------------------------------------------------------------------------------------------------------


def _layout(shape: tuple[int, int], mpp: float, rng: np.random.Generator) -> _Layout:
    grid = (4 * int(np.ceil(shape[0] * mpp / 8)), 4 * int(np.ceil(shape[1] * mpp / 8)))
    y, x = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5) * LAYOUT_UM for n in grid), indexing="ij")
    height, width = (n * mpp for n in shape)
    extent = min(height, width)

    def field(length: float) -> np.ndarray:
        return smooth_field(grid, length / LAYOUT_UM, rng)

    centre = rng.uniform(-0.08, 0.08, 2).astype(np.float32)
    radius = (np.abs(2 * y / height - 1 - centre[0]) ** 3 + np.abs(2 * x / width - 1 - centre[1]) ** 3) ** (1 / 3)
    # A picture of less than a biopsy's width is a view inside the tissue.
    edge = 0.96 + 0.6 * max(0.0, 1 - extent / 400)
    tissue = (edge - radius) * extent / 2 + 0.05 * extent * field(0.3 * extent) + 5 * field(45) + 1.5 * field(12)

    direction = rng.uniform(0, 2 * np.pi)
    slope = np.cos(direction) * (2 * x / width - 1) + np.sin(direction) * (2 * y / height - 1)
    macro = 1.3 * slope + 0.8 * field(np.clip(0.35 * extent, 60, 700))
    rank = np.interp(macro, np.quantile(macro[tissue > 0], np.linspace(0, 1, 101)), np.linspace(0, 1, 101))

    septum = np.abs(field(75) + 0.25 * field(20)) < 0.13 * (1 + 0.5 * field(60))
    nests = field(34) + 0.35 * field(14) + np.clip(7 * (rank - 0.59), -9, 0.8) > 0
    nest = _distance(remove_small_objects(nests & ~septum & (tissue > 6), max_size=120))
    deep = field(70)
    core = nest > 16
    necrosis = _distance((deep > np.quantile(deep[core], 0.93)) & core) if core.any() else np.full(grid, _FAR)

    # Fat ends where an adipocyte ends, never inside one.
    adipocytes = _lattice(grid, 58, 0.32, rng)
    oily = (_at(rank + 0.04 * field(90), adipocytes) < 0.13) & (_at(nest, adipocytes) < -45)
    owner = cKDTree(adipocytes).query(np.stack([y, x], axis=-1))[1]
    fat = _distance(oily[owner])

    room = np.minimum.reduce([tissue, -nest, -fat])
    room[(rank < 0.08) | (rank > 0.43)] = _FAR
    glands = _place_glands(room, field(110), rng)
    gland, lumen = _stamp_rings(grid, glands)
    clear = np.minimum.reduce([tissue, -nest, -gland, -fat])
    vessels = _place_vessels(clear, height * width, rng)
    vessel, bore = _stamp_rings(grid, vessels)

    follicles = _place_follicles(np.where(np.abs(rank - 0.5) < 0.1, clear, _FAR), height * width, rng)
    lymphoid = _stamp_rings(grid, follicles)[0] + 9 * field(40) + 4 * field(14)

    # Collagen runs along the level sets of `across`; epithelium bends them, never so much that they close to rings.
    turn = rng.uniform(0, np.pi)
    across = np.cos(turn) * y - np.sin(turn) * x + 0.2 * extent * field(0.9 * extent) + 40 * field(160) + 5 * field(45)
    along = np.sin(turn) * y + np.cos(turn) * x + 30 * field(130)
    outside = -ndi.gaussian_filter(np.maximum.reduce([nest, gland, vessel, -tissue]), 3)
    across += 11 * np.exp(-np.maximum(outside, 0) / 13) + 1.2 * np.sin(along / 4.5 + 3 * field(60))

    return _Layout(
        tissue=tissue,
        fat=fat,
        lymphoid=lymphoid,
        nest=nest,
        necrosis=necrosis,
        gland=gland,
        lumen=lumen,
        vessel=vessel,
        bore=bore,
        across=across,
        along=along,
        looseness=field(110),
        thickness=1 + 0.07 * field(0.8 * extent) + 0.035 * field(90),
        infiltrate=field(80) + 1.2 * np.exp(-(((rank - 0.55) / 0.12) ** 2)),
        glands=glands,
        vessels=vessels,
        adipocytes=adipocytes,
    )


def _distance(mask: np.ndarray) -> np.ndarray:
    """Signed distance in µm to the edge of a mask, positive inside."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, -_FAR if mask.any() else _FAR, np.float32)
    signed = ndi.distance_transform_edt(mask) - ndi.distance_transform_edt(~mask)
    return ndi.gaussian_filter(signed.astype(np.float32) * LAYOUT_UM, 1.2)


def _lattice(grid: tuple[int, ...], spacing: float, jitter: float, rng: np.random.Generator) -> np.ndarray:
    """Points (y, x) in µm of a jittered hexagonal lattice over the layout and one spacing beyond."""
    height, width = (n * LAYOUT_UM for n in grid)
    rows = np.arange(-1, height / (spacing * 0.866) + 2)
    cols = np.arange(-1, width / spacing + 2)
    y = np.repeat(rows * spacing * 0.866, len(cols))
    x = ((cols + 0.5 * (rows % 2)[:, None]) * spacing).ravel()
    return np.stack([y, x], axis=1) + rng.normal(0, jitter * spacing * 0.6, (len(y), 2))


def _at(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of a layout field at points (y, x) in µm."""
    index = np.clip((points / LAYOUT_UM).astype(int), 0, np.array(field.shape) - 1)
    return field[index[:, 0], index[:, 1]]


def _apart(points: np.ndarray, distance: float) -> np.ndarray:
    """Points of which no two are closer than a distance, earlier ones first."""
    pairs = np.sort(cKDTree(points).query_pairs(distance, output_type="ndarray"), axis=1)
    return points[_first_come(len(points), pairs)]


def _first_come(n: int, pairs: np.ndarray) -> np.ndarray:
    """Which of n to keep when of each conflicting pair the earlier one stays, unless it has gone itself."""
    keep = np.ones(n, bool)
    for first, second in pairs[np.lexsort(pairs.T)].tolist():
        keep[second] &= not keep[first]
    return keep


def _rings(centres: np.ndarray, radius: np.ndarray, wall: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    n = len(centres)
    return pd.DataFrame(
        {
            "y": centres[:, 0],
            "x": centres[:, 1],
            "radius": radius,
            "wall": wall,
            "stretch": rng.uniform(1.0, 1.5, n),
            "angle": rng.uniform(0, np.pi, n),
            "lobes": rng.integers(3, 6, n),
            "depth": rng.uniform(0.03, 0.12, n),
            "phase": rng.uniform(0, 2 * np.pi, n),
        }
    )


def _place_glands(room: np.ndarray, lobule: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    points = _lattice(room.shape, 62, 0.3, rng)
    crowd = _at(lobule, points)
    keep = (_at(room, points) > 28) & (crowd + 0.4 * rng.standard_normal(len(points)) > -0.8)
    points, crowd = points[keep], crowd[keep]
    gap = cKDTree(points).query(points, 2)[0][:, 1] if len(points) > 1 else np.full(len(points), 90.0)
    radius = np.minimum((27 + 4 * crowd) * rng.lognormal(0, 0.2, len(points)), 0.45 * gap)
    large = radius > 13
    return _rings(points[large], radius[large], np.clip(0.45 * radius[large], 8.5, 13), rng)


def _place_follicles(room: np.ndarray, area: float, rng: np.random.Generator) -> pd.DataFrame:
    points = rng.permutation(_lattice(room.shape, 22, 0.4, rng))
    points = _apart(points[_at(room, points) > 6], 170.0)[: max(1, round(2.5e-6 * area))]
    radius = rng.lognormal(np.log(min(58, area**0.5 / 8)), 0.3, len(points))
    return _rings(points, radius, radius, rng)


def _place_vessels(clear: np.ndarray, area: float, rng: np.random.Generator) -> pd.DataFrame:
    points = _lattice(clear.shape, 30, 0.4, rng)
    points = rng.permutation(points[_at(clear, points) > 14])
    points = _apart(points, 85.0)[: max(1, round(22e-6 * area))]
    radius = np.minimum(rng.lognormal(2.55, 0.45, len(points)), 0.8 * _at(clear, points))
    return _rings(points, radius, np.clip(0.3 * radius, 2.2, 9), rng)


def _polar(ring: Any, theta: np.ndarray) -> np.ndarray:
    """Outer radius in µm of a ring, or of one ring per angle, at angles from its own major axis."""
    return np.asarray(ring["radius"] * (1 + ring["depth"] * np.cos(ring["lobes"] * theta + ring["phase"])))


def _stamp_rings(grid: tuple[int, int], rings: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances to the outer and the inner edge of ring-shaped structures."""
    outer = np.full(grid, _FAR, np.float32)
    inner = np.full(grid, _FAR, np.float32)
    for ring in rings.to_dict("records"):
        centre, reach = np.array([ring["y"], ring["x"]]), 2 * ring["radius"] + 30
        low, high = (np.clip((edge / LAYOUT_UM).astype(int), 0, grid) for edge in (centre - reach, centre + reach))
        window = np.s_[low[0] : high[0], low[1] : high[1]]
        y = ((np.arange(low[0], high[0]) + 0.5) * LAYOUT_UM - ring["y"])[:, None]
        x = ((np.arange(low[1], high[1]) + 0.5) * LAYOUT_UM - ring["x"])[None]
        cos, sin, stretch = np.cos(ring["angle"]), np.sin(ring["angle"]), np.sqrt(ring["stretch"])
        u, v = (x * cos + y * sin) / stretch, (y * cos - x * sin) * stretch
        edge = _polar(ring, np.arctan2(v, u)) - np.hypot(u, v)
        outer[window] = np.maximum(outer[window], edge)
        inner[window] = np.maximum(inner[window], edge - ring["wall"])
    return outer, inner


def _compartments(layout: _Layout) -> np.ndarray:
    code = {name: index for index, name in enumerate(COMPARTMENTS)}
    label = np.full(layout.tissue.shape, code["stroma"], np.uint8)
    for name, signed in (
        ("fat", layout.fat),
        ("lymphoid", layout.lymphoid),
        ("tumour", layout.nest),
        ("necrosis", layout.necrosis),
        ("gland", layout.gland),
        ("lumen", layout.lumen),
        ("vessel", layout.vessel),
        ("background", -layout.tissue),
    ):
        label[signed > 0] = code[name]
    return label


# --- nuclei ------------------------------------------------------------------------------------------------------


def _nuclei(layout: _Layout, rng: np.random.Generator) -> pd.DataFrame:
    """Nuclei of the whole layout in µm; where two types collide, the earlier one in this list stays."""
    grid = layout.tissue.shape
    free = np.minimum.reduce([-layout.gland, -layout.vessel, layout.tissue - 3])
    stroma = np.minimum.reduce([free, -layout.nest - 1, -layout.fat, -layout.lymphoid])
    slope_y, slope_x = np.gradient(layout.across)
    fibre = np.arctan2(slope_x, -slope_y)

    def scatter(spacing: float, jitter: float, room: np.ndarray, chance: np.ndarray | float) -> np.ndarray:
        points = _lattice(grid, spacing, jitter, rng)
        inside = (points >= 0).all(1) & (points < np.array(grid) * LAYOUT_UM).all(1)
        points = points[inside]
        keep = _at(room, points) > 0
        points = points[keep]
        odds = _at(chance, points) if isinstance(chance, np.ndarray) else chance
        return points[rng.random(len(points)) < odds]

    tumour = scatter(9.6, 0.22, np.minimum.reduce([free, layout.nest - 3.2, -layout.necrosis]), 0.95)
    follicle = np.minimum.reduce([free, layout.lymphoid + 18, -layout.nest - 2, -layout.fat])
    immune = scatter(6.1, 0.33, follicle, np.clip(0.5 + layout.lymphoid / 30, 0.05, 0.97))
    stray = scatter(12.0, 0.4, stroma, np.clip(0.10 * layout.infiltrate + 0.04, 0.015, 0.6))
    spindle = scatter(17.0, 0.42, stroma, 0.62)
    debris = scatter(8.0, 0.4, layout.necrosis - 2, 0.5)
    septa, septa_angle = _septa(layout, rng)
    basal, basal_angle = _around(layout.glands, 5.0, 4.6, rng)
    lining, lining_angle = _around(layout.vessels, 11.0, None, rng)

    lie = _at(fibre, spindle) + rng.normal(0, 0.22, len(spindle))
    parts = [
        _nucleus("epithelium", basal, basal_angle, 3.5, 0.09, 1.6, 0.95, rng),
        _nucleus("endothelium", lining, lining_angle + np.pi / 2, 2.4, 0.12, 3.2, 1.25, rng),
        _nucleus("tumour", tumour, None, 4.15, 0.17, 1.3, 0.95, rng),
        _nucleus("lymphocyte", np.concatenate([immune, stray]), None, 2.95, 0.09, 1.12, 1.4, rng),
        _nucleus("fibroblast", spindle, lie, 2.7, 0.2, 3.8, 1.15, rng),
        _nucleus("adipocyte", septa, septa_angle, 2.2, 0.12, 3.6, 1.3, rng),
        _nucleus("debris", debris, None, 1.3, 0.4, 1.4, 1.2, rng),
    ]
    nuclei = pd.concat(parts, ignore_index=True)
    nuclei = nuclei[_at(layout.tissue, nuclei[["y", "x"]].to_numpy()) > 1.5].reset_index(drop=True)
    nuclei["type"] = pd.Categorical(nuclei["type"], CELL_TYPES)
    return _without_collisions(nuclei)


def _nucleus(
    kind: str,
    points: np.ndarray,
    angle: np.ndarray | None,
    radius: float,
    spread: float,
    aspect: float,
    chromatin: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    n = len(points)
    size = radius * rng.lognormal(0, spread, n)
    ratio = np.sqrt(1 + (aspect - 1) * rng.gamma(6, 1 / 6, n))
    return pd.DataFrame(
        {
            "x": points[:, 1],
            "y": points[:, 0],
            "major": size * ratio,
            "minor": size / ratio,
            "angle": rng.uniform(0, np.pi, n) if angle is None else angle,
            "type": kind,
            "chromatin": chromatin * rng.lognormal(0, 0.16, n),
        }
    )


def _around(
    rings: pd.DataFrame, spacing: float, depth: float | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points (y, x) in µm along rings, `depth` under the outer edge or on the inner edge, and their outward angle."""
    if rings.empty:
        return np.empty((0, 2)), np.empty(0)
    depths = rings["wall"].to_numpy() - 0.6 if depth is None else np.full(len(rings), depth)
    around = 2 * np.pi * (rings["radius"].to_numpy() - depths)
    number = np.maximum(2, around / spacing).round().astype(int)
    ring = rings.loc[np.repeat(rings.index, number)]
    step = np.arange(len(ring)) - np.repeat(np.cumsum(number) - number, number)
    theta = 2 * np.pi * (step + rng.normal(0, 0.13, len(ring))) / np.repeat(number, number)
    inset = np.repeat(depths, number) + rng.normal(0, 1.1 if depth is not None else 0.3, len(ring))
    radius = _polar(ring, theta) - inset
    stretch, angle = np.sqrt(ring["stretch"].to_numpy()), ring["angle"].to_numpy()
    u, v = radius * np.cos(theta) * stretch, radius * np.sin(theta) / stretch
    y = ring["y"].to_numpy() + u * np.sin(angle) + v * np.cos(angle)
    x = ring["x"].to_numpy() + u * np.cos(angle) - v * np.sin(angle)
    outward = np.arctan2(np.sin(theta) * stretch, np.cos(theta) / stretch) + angle
    return np.stack([y, x], axis=1), outward + rng.normal(0, 0.15, len(ring))


def _septa(layout: _Layout, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points (y, x) in µm halfway between neighbouring adipocytes, and the direction of the membrane there."""
    seeds = layout.adipocytes
    _, index = cKDTree(seeds).query(seeds, 4)
    other = seeds[index[np.arange(len(seeds)), rng.integers(1, 4, len(seeds))]]
    middle, gap = (seeds + other) / 2, other - seeds
    keep = (_at(layout.fat, middle) > 3) & (rng.random(len(seeds)) < 0.7)
    return middle[keep], np.arctan2(gap[keep, 1], -gap[keep, 0])


def _without_collisions(nuclei: pd.DataFrame) -> pd.DataFrame:
    points = nuclei[["y", "x"]].to_numpy()
    radius = np.sqrt((nuclei["major"] * nuclei["minor"]).to_numpy())
    pairs = np.sort(cKDTree(points).query_pairs(10.0, output_type="ndarray"), axis=1)
    first, second = pairs.T
    clash = np.linalg.norm(points[first] - points[second], axis=1) < 0.74 * (radius[first] + radius[second])
    return nuclei[_first_come(len(nuclei), pairs[clash])].reset_index(drop=True)


def _red_cells(layout: _Layout, rng: np.random.Generator) -> pd.DataFrame:
    points = _lattice(layout.tissue.shape, 4.8, 0.35, rng)
    crowd = 0.55 + 0.45 * smooth_field(layout.tissue.shape, 12, rng)
    filled = (_at(layout.bore, points) > 1.8) & (rng.random(len(points)) < _at(crowd, points))
    return _nucleus("red", points[filled], None, 2.8, 0.07, 1.15, 0.5, rng)


# --- picture -----------------------------------------------------------------------------------------------------


def _compose(
    shape: tuple[int, int],
    mpp: float,
    layout: _Layout,
    nuclei: pd.DataFrame,
    red_cells: pd.DataFrame,
    rng: np.random.Generator,
) -> np.ndarray:
    grain = _tile((1.2, 1.2), rng)
    mottle = _tile((5, 5), rng)
    fibre = _tile((1.2, 13), rng)
    looks = _looks(nuclei, rng)
    adipocytes = _Neighbours(layout.adipocytes, layout.fat > -8, 4)
    cells = _Neighbours(nuclei[["y", "x"]].to_numpy(), np.maximum(layout.nest, layout.gland) > -4, 3)
    blur = 0.33 / mpp
    halo = int(np.ceil(4 * blur)) + 1
    image = np.empty((3, *shape), np.uint8)
    step = max(64, _BAND // shape[1])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        rows = np.arange(max(0, start - halo), min(shape[0], stop + halo))
        dyes = _dyes(rows, shape[1], mpp, layout, adipocytes, cells, grain, mottle, fibre)
        _stain_nuclei(dyes, rows, mpp, nuclei, looks, grain)
        _stain_red_cells(dyes, rows, mpp, red_cells)
        inner = slice(start - rows[0], stop - rows[0])
        noise = rng.standard_normal((3, stop - start, shape[1]), dtype=np.float32)
        for channel in range(3):
            density = sum(
                dye * vector[channel] for dye, vector in zip(dyes, (HAEMATOXYLIN, EOSIN, _HAEMOGLOBIN), strict=True)
            )
            light = ndi.gaussian_filter(GLASS[channel] * np.exp(-density), blur)[inner]
            np.clip(light + 1.8 * noise[channel] + 0.5, 0, 255, out=light)
            image[channel, start:stop] = light
    return image


def _tile(sigma: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Periodic texture of unit variance, 0.5 µm a pixel."""
    noise = ndi.gaussian_filter(rng.standard_normal((_TILE, _TILE), dtype=np.float32), sigma, mode="wrap")
    return noise / noise.std()


def _look_up(tile: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Texture at coordinates in µm."""
    scale = np.float32(1 / _TILE_UM)
    return tile[(y * scale).astype(np.int32) & (_TILE - 1), (x * scale).astype(np.int32) & (_TILE - 1)]


def _upsampler(rows: np.ndarray, width: int, mpp: float, grid: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that interpolates layout fields at the pixels of a band."""

    def weights(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        position = np.clip((index + 0.5) * mpp / LAYOUT_UM - 0.5, 0, size - 1)
        low = np.minimum(position.astype(int), size - 2)
        return low, (position - low).astype(np.float32)

    top, down = weights(rows, grid[0])
    left, across = weights(np.arange(width), grid[1])

    def upsample(field: np.ndarray) -> np.ndarray:
        lines = field[top] * (1 - down)[:, None] + field[top + 1] * down[:, None]
        fine = np.diff(lines, axis=1).take(left, axis=1)
        fine *= across
        fine += lines.take(left, axis=1)
        return fine

    return upsample


class _Neighbours:
    """The nearest of many seeds (y, x in µm) for every layout pixel of a mask."""

    def __init__(self, seeds: np.ndarray, mask: np.ndarray, k: int) -> None:
        # Far seeds stand in where there are fewer than k.
        self.seeds = np.concatenate([seeds, np.full((k, 2), 1e6)]).astype(np.float32)
        self.index = np.zeros((*mask.shape, k), np.int32)
        if mask.any():
            self.index[mask] = cKDTree(self.seeds).query((np.argwhere(mask) + 0.5) * LAYOUT_UM, k)[1]

    def gaps(self, spots: tuple[np.ndarray, ...], rows: np.ndarray, mpp: float) -> np.ndarray:
        """How much farther the next seeds are than the nearest (µm), at pixels of a band."""
        y = ((rows[spots[0]] + 0.5) * mpp).astype(np.float32)
        x = ((spots[1] + 0.5) * mpp).astype(np.float32)
        near = self.seeds[self.index[(y / LAYOUT_UM).astype(np.int32), (x / LAYOUT_UM).astype(np.int32)]]
        distance = np.sort(np.hypot(near[..., 0] - y[:, None], near[..., 1] - x[:, None]), axis=1)
        return distance[:, 1:] - distance[:, :1]


def _soft(signed: np.ndarray, width: float) -> np.ndarray:
    """Coverage from 0 to 1 across an edge of a width in µm."""
    return np.clip(signed / np.float32(width) + np.float32(0.5), 0, 1)


def _dyes(
    rows: np.ndarray,
    width: int,
    mpp: float,
    layout: _Layout,
    adipocytes: _Neighbours,
    cells: _Neighbours,
    grain: np.ndarray,
    mottle: np.ndarray,
    fibre: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Haematoxylin, eosin and haemoglobin of everything but nuclei."""
    up = _upsampler(rows, width, mpp, layout.tissue.shape)
    y = ((rows + 0.5) * mpp).astype(np.float32)[:, None]
    x = ((np.arange(width) + 0.5) * mpp).astype(np.float32)[None]
    fine = _look_up(grain, y, x)
    coarse = _look_up(mottle, y, x + 131)
    wobble = 0.7 * coarse
    across, along, loose = up(layout.across), up(layout.along), up(layout.looseness)
    strand = _look_up(fibre, across, along * 0.6)
    bundle = _look_up(fibre, across * 0.4 + 0.5 * coarse, along * 0.4 + 200)
    tissue, nest = up(layout.tissue) + wobble, up(layout.nest) + wobble

    eosin = 0.36 - 0.06 * loose + 0.05 * strand + 0.075 * bundle + 0.03 * fine + 0.02 * coarse
    slit = np.clip(-bundle - 1.2 + 0.4 * loose + 0.12 * strand + 0.3 * coarse, 0, 0.5) * 1.8
    eosin *= 1 - np.minimum(slit, 0.9)
    haem = 0.035 + 0.012 * coarse
    haem *= 1 - np.minimum(slit, 0.9)

    def cover(weight: np.ndarray, h: np.ndarray | float, e: np.ndarray | float) -> None:
        haem[...] += weight * (h - haem)
        eosin[...] += weight * (e - eosin)

    fat = up(layout.fat) + 2 * coarse
    spots = np.nonzero(fat > -1)
    gaps = adipocytes.gaps(spots, rows, mpp)
    membrane = np.zeros_like(fat)
    membrane[spots] = np.minimum(np.exp(-((gaps / 1.7) ** 2)).sum(1) + 0.6 * np.exp(-gaps[:, :2].sum(1) / 8), 1.3)
    cover(_soft(fat, 3), 0.02 * membrane, 0.012 + 0.42 * membrane * (1 + 0.2 * fine))
    cover(0.85 * _soft(up(layout.lymphoid) + 2 * coarse, 14), 0.13 + 0.03 * fine, 0.17 + 0.03 * fine)
    # Tumour shrinks away from its stroma here and there when it is fixed.
    cleft = _soft(nest + 2.4, 1.2) * _soft(up(layout.infiltrate) * 3 + 2 * coarse - 4.0, 3)
    cover(0.9 * cleft, 0.01, 0.02)
    gland, lumen = up(layout.gland) + 0.6 * wobble, up(layout.lumen) + wobble
    spots = np.nonzero(np.maximum(nest, gland) > -1)
    border = np.zeros_like(nest)
    border[spots] = np.exp(-((cells.gaps(spots, rows, mpp)[:, 0] / 1.5) ** 2))
    border *= 1 + 0.5 * coarse
    cover(
        _soft(nest, 1.3),
        0.18 + 0.035 * fine + 0.02 * coarse - 0.06 * border,
        0.28 + 0.04 * fine + 0.05 * coarse + 0.07 * border,
    )
    dead = _soft(up(layout.necrosis) + 3 * coarse, 5)
    cover(dead, 0.08 + 0.05 * fine + 0.03 * coarse, 0.50 + 0.12 * fine + 0.10 * coarse)

    cover(_soft(gland + 1.4, 1.5), 0.04, 0.46)
    cover(_soft(gland, 1.2), 0.13 + 0.025 * fine, 0.25 + 0.10 * _soft(lumen + 2.5, 4) + 0.03 * fine + 0.05 * border)
    secretion = np.clip(0.05 * (coarse - 0.4) + 0.05 * (loose + 0.2), 0.008, 0.2)
    cover(_soft(lumen, 1.3), 0.3 * secretion, secretion)

    vessel, bore = up(layout.vessel) + 0.4 * wobble, up(layout.bore) + 0.4 * wobble
    rings = _look_up(fibre, vessel * 1.6, along * 0.2)
    cover(_soft(vessel, 1.4), 0.05 + 0.01 * fine, 0.43 + 0.09 * rings + 0.03 * fine)
    cover(_soft(bore, 1.0), 0.005, 0.04)

    present = _soft(tissue, 1.6) * up(layout.thickness)
    haem, eosin = np.maximum(haem, 0) * present, np.maximum(eosin, 0) * present
    return haem, eosin, np.zeros_like(haem)


def _looks(nuclei: pd.DataFrame, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How each nucleus looks: paleness of its centre, clumping, nucleolus, edge, outline and place in the texture."""
    n = len(nuclei)
    types = nuclei["type"].to_numpy()
    vesicular = pd.Series({"tumour": 0.42, "epithelium": 0.25, "lymphocyte": 0.05}).reindex(CELL_TYPES).fillna(0.1)
    clumps = pd.Series({"tumour": 0.17, "epithelium": 0.14, "lymphocyte": 0.13}).reindex(CELL_TYPES).fillna(0.08)
    return {
        "vesicular": vesicular[types].to_numpy() * rng.uniform(0.3, 1.5, n),
        "clumps": clumps[types].to_numpy(),
        "nucleolus": np.where((types == "tumour") & (rng.random(n) < 0.6), rng.uniform(0.3, 0.8, n), 0),
        "nucleolus_u": rng.uniform(-0.4, 0.4, n),
        "nucleolus_v": rng.uniform(-0.4, 0.4, n),
        "edge": rng.uniform(0.5, 1.1, n),
        "skew": np.clip(rng.normal(0, 0.05, n), -0.1, 0.1),
        "bean": np.clip(rng.normal(0, 0.12, n), -0.3, 0.3),
        "offset": rng.integers(0, _TILE, n),
    }


def _patches(
    rows: np.ndarray, width: int, mpp: float, table: pd.DataFrame, margin: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pixels around the ellipses that touch a band: which ellipse, which pixel, and where in units of its axes.

    Ellipses are batched by size, so that no batch is large and little of each square is wasted.
    """
    y, x = (table[name].to_numpy() / mpp - 0.5 for name in ("y", "x"))
    major, minor, angle = (table[name].to_numpy() for name in ("major", "minor", "angle"))
    half = np.ceil((major * 1.25 + margin) / mpp).astype(int)
    half = 2 * ((half + 1) // 2)
    touching = (y + half >= rows[0]) & (y - half <= rows[-1]) & (x + half >= 0) & (x - half < width)
    for size in np.unique(half[touching]):
        members = np.flatnonzero(touching & (half == size))
        reach = np.arange(-size, size + 1)
        for chosen in np.array_split(members, np.ceil(len(members) * len(reach) ** 2 / 2**20)):
            iy = np.round(y[chosen]).astype(int)[:, None, None] + reach[:, None]
            ix = np.round(x[chosen]).astype(int)[:, None, None] + reach
            dy = ((iy - y[chosen, None, None]) * mpp).astype(np.float32)
            dx = ((ix - x[chosen, None, None]) * mpp).astype(np.float32)
            cos, sin = (f(angle[chosen])[:, None, None].astype(np.float32) for f in (np.cos, np.sin))
            u = (dx * cos + dy * sin) / major[chosen, None, None].astype(np.float32)
            v = (dy * cos - dx * sin) / minor[chosen, None, None].astype(np.float32)
            inside = (iy >= rows[0]) & (iy <= rows[-1]) & (ix >= 0) & (ix < width)
            inside &= u * u + v * v < 2.6
            pixel = ((iy - rows[0]) * width + ix)[inside]
            owner = np.broadcast_to(chosen[:, None, None], inside.shape)[inside]
            yield owner, pixel, u[inside], v[inside]


def _stain_nuclei(
    dyes: tuple[np.ndarray, np.ndarray, np.ndarray],
    rows: np.ndarray,
    mpp: float,
    nuclei: pd.DataFrame,
    looks: dict[str, np.ndarray],
    grain: np.ndarray,
) -> None:
    haem, eosin, _ = dyes
    width = haem.shape[1]
    stain = np.zeros(haem.size, np.float32)
    cover = np.zeros(haem.size, np.float32)
    radius = np.sqrt((nuclei["major"] * nuclei["minor"]).to_numpy(np.float32))
    chromatin = nuclei["chromatin"].to_numpy(np.float32)
    look = {name: values if name == "offset" else values.astype(np.float32) for name, values in looks.items()}
    for owner, pixel, u, v in _patches(rows, width, mpp, nuclei, 1.0):
        square = u * u + v * v
        dent = look["skew"][owner] * u * (u * u - 3 * v * v) + look["bean"][owner] * u * v
        rho = np.sqrt(square * np.maximum(0.2, 1 + dent))
        covered = np.clip((1 - rho) * radius[owner] / look["edge"][owner] + 0.5, 0, 1)
        offset = look["offset"][owner]
        texture = _look_up(grain, pixel // width * mpp + offset, pixel % width * mpp + 3.7 * offset)
        rim = np.exp(-(((rho - 0.85) / 0.2) ** 2))
        spot = (u - look["nucleolus_u"][owner]) ** 2 + (v - look["nucleolus_v"][owner]) ** 2
        density = 1 - look["vesicular"][owner] * (1 - 1.15 * rim) + look["clumps"][owner] * texture
        density += look["nucleolus"][owner] * np.exp(-18 * spot)
        np.maximum.at(stain, pixel, covered * chromatin[owner] * np.maximum(density, 0.2))
        np.maximum.at(cover, pixel, covered)
    haem *= 1 - 0.8 * cover.reshape(haem.shape)
    haem += stain.reshape(haem.shape)
    eosin *= 1 - 0.45 * cover.reshape(haem.shape)


def _stain_red_cells(
    dyes: tuple[np.ndarray, np.ndarray, np.ndarray], rows: np.ndarray, mpp: float, cells: pd.DataFrame
) -> None:
    blood = dyes[2]
    flat = blood.reshape(-1)
    density = cells["chromatin"].to_numpy(np.float32)
    for owner, pixel, u, v in _patches(rows, blood.shape[1], mpp, cells, 0.5):
        rho = np.sqrt(u * u + v * v)
        disc = np.clip((1 - rho) * 4 + 0.5, 0, 1) * (0.75 + 0.25 * np.minimum(rho * rho * 1.5, 1))
        np.maximum.at(flat, pixel, disc * density[owner])
