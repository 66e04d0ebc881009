"""How far counts lie from the histology that tells most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import fftconvolve

type Floats = NDArray[np.float64]

# Regions that are left out in turn; a slide has more of them where each would be wider than this (pixels).
REGIONS = 16
MOST_REGIONS = 64
WIDEST = 256
LARGEST_ANGLE = np.deg2rad(2)
ANGLES = 41
# Shifts around the peak at which rotation is told (pixels).
NEAR = 2
# Standard deviations from 0 that are no chance.
SIGNIFICANT = 3.0
# Peaks of half the regions each that are further apart than this share of the largest shift are none.
VAGUE = 0.25
SPLITS = 20
# Keeps the covariance of features that are constant, as on glass, invertible.
_RIDGE = 1e-9


@dataclass(frozen=True)
class RegionSums:
    """Sums over the units of a region, of which features are taken at every shift.

    Attributes
    ----------
    centre
        (2,) mean x and y of the units.
    totals
        (3,) number of units, sum of their values and of the squares.
    moments
        (m, 2 * reach + 1, 2 * reach + 1): sums of the features, of their products, and of the features times the
        values, at shifts (y, x) from -reach to reach.
    """

    centre: Floats
    totals: Floats
    moments: Floats


@dataclass(frozen=True)
class Alignment:
    """How counts lie on an H&E, by what it tells of them.

    Attributes
    ----------
    shift
        (2,) how far the centre of the counts lies to the right of where it belongs, and below, in µm.
    sd
        (2,) standard deviation of the shift.
    rotation, rotation_sd
        How far the counts are turned clockwise about their centre, in degrees, and its standard deviation.
    bin_um
        Side of a measured unit, or of a square of its area, in µm.
    shifts
        (n,) shifts looked at, in µm.
    correlation
        (n, n) multiple correlation of counts with the H&E, if the counts lay off by ``shifts[row]`` in y and by
        ``shifts[column]`` in x.
    known
        Whether there is a clear peak. If not, nothing is known of the alignment.
    off
        Whether the counts lie off by more than half a bin, at their centre or by rotation at their edge, and by more
        than chance.
    """

    shift: tuple[float, float]
    sd: tuple[float, float]
    rotation: float
    rotation_sd: float
    bin_um: float
    shifts: Floats
    correlation: Floats
    known: bool
    off: bool


def split_regions(positions: Floats) -> list[NDArray[np.intp]]:
    """Cut units, by their (units, 2) positions, into compact regions of about as many units each."""
    width, height = np.ptp(positions, axis=0)
    number = int(np.clip(width * height / WIDEST**2, REGIONS, MOST_REGIONS))
    parts = [np.arange(len(positions))]
    while len(parts) < min(number, len(positions)):
        parts.sort(key=len)
        part = parts.pop()
        longer = int(np.ptp(positions[part, 1]) > np.ptp(positions[part, 0]))
        part = part[np.argsort(positions[part, longer], kind="stable")]
        parts += [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts


def region_sums(
    positions: Floats,
    values: Floats,
    features: NDArray[np.floating],
    origin: tuple[int, int],
    reach: int,
) -> RegionSums:
    """Sum features over units at all shifts, by fast Fourier transform.

    Parameters
    ----------
    positions
        (units, 2) x and y in pixels.
    values
        (units,) that the features are to explain.
    features
        (features, y, x), which reach over the units by `reach` + 1 pixels on all sides.
    origin
        Column and row of the features' first pixel.
    reach
        Largest shift in pixels.
    """
    corner = np.floor(positions.min(axis=0) - 0.5).astype(int)
    width, height = np.floor(positions.max(axis=0) - 0.5).astype(int) + 2 - corner
    x, y = corner - reach - origin
    window = features[:, y : y + height + 2 * reach, x : x + width + 2 * reach].astype(np.float64)
    products = [window[a] * window[b] for a, b in combinations_with_replacement(range(len(window)), 2)]
    plain, weighted = (_scatter(positions - corner, v, (height, width)) for v in (np.ones_like(values), values))

    def at_shifts(images: Floats, units: Floats) -> Floats:
        sums: Floats = fftconvolve(images, units[None, ::-1, ::-1], mode="valid", axes=(1, 2))
        return sums

    moments = [at_shifts(np.concatenate([window, np.stack(products)]), plain), at_shifts(window, weighted)]
    totals = np.array([len(values), values.sum(), np.square(values).sum()])
    return RegionSums(positions.mean(axis=0), totals, np.concatenate(moments))


def find_alignment(regions: Sequence[RegionSums], resolution: float, bin_um: float) -> Alignment:
    """Find the shift and rotation at which features tell most of the values, and how sure they are.

    The multiple correlation of the values with the features is taken at every shift; between shifts, its peak is that
    of a parabola. Rotation shifts each region by its own distance from the centre. Standard deviations are those of
    the delete-one jackknife over regions (Tukey, 1958), so they hold whatever correlates within a region.

    Parameters
    ----------
    regions
        Sums of each region, by `region_sums`; a third of their shifts are spent on rotation.
    resolution
        µm per pixel.
    bin_um
        Side of a unit in µm.
    """
    margin = regions[0].moments.shape[1] // 6
    weight = np.array([region.totals[0] for region in regions])
    centres = np.stack([region.centre for region in regions])
    away = centres - weight @ centres / weight.sum()
    radius = float(np.linalg.norm(away, axis=1).max())

    totals = np.stack([region.totals for region in regions])
    everyone = np.ones(len(regions), bool)
    peak = _peak(_surface(totals, _moved(regions, away, 0.0, margin), everyone))
    angle, angle_sd = _rotation(regions, away, peak + margin, min(LARGEST_ANGLE, margin / radius))
    edge = abs(angle) * radius * resolution
    turned = bool(edge > bin_um / 2 and abs(angle) > SIGNIFICANT * angle_sd)

    moments = _moved(regions, away, angle if turned else 0.0, margin)
    surface = _surface(totals, moments, everyone)
    peak = _peak(surface)
    others = ~np.eye(len(regions), dtype=bool)
    covariance = _jackknife(np.stack([_peak(_surface(totals, moments, some)) for some in others]))
    reach = surface.shape[0] // 2
    # Counts lie off by the opposite of what takes them home.
    shift = -(peak - reach)
    sd = np.sqrt(np.diag(covariance))
    at_border = bool(np.abs(shift).max() > reach - 1)
    known = not at_border and _disagreement(totals, moments) <= VAGUE * reach
    length = float(np.linalg.norm(shift))
    # In whatever direction it is largest: from so few regions, directions are told badly.
    chance = float(np.sqrt(np.linalg.eigvalsh(covariance)[-1]))
    shifted = length * resolution > bin_um / 2 and length > SIGNIFICANT * chance
    dx, dy = shift * resolution
    sd_x, sd_y = sd * resolution
    return Alignment(
        shift=(float(dx), float(dy)),
        sd=(float(sd_x), float(sd_y)),
        rotation=float(np.rad2deg(angle)),
        rotation_sd=float(np.rad2deg(angle_sd)),
        bin_um=bin_um,
        shifts=resolution * np.arange(-reach, reach + 1),
        correlation=np.sqrt(surface[::-1, ::-1]),
        known=known,
        off=known and bool(shifted or turned),
    )


def _scatter(positions: Floats, values: Floats, shape: tuple[int, int]) -> Floats:
    """Share each value among the four pixels whose centres are around it, so that no position is rounded."""
    column, row = np.floor(positions - 0.5).astype(int).T
    right, down = (positions - 0.5).T - (column, row)
    image = np.zeros(shape[0] * shape[1])
    for dy, along_y in ((0, 1 - down), (1, down)):
        for dx, along_x in ((0, 1 - right), (1, right)):
            cell = (row + dy) * shape[1] + column + dx
            image += np.bincount(cell, values * along_y * along_x, len(image))
    return image.reshape(shape)


def _moved(regions: Sequence[RegionSums], away: Floats, angle: float, margin: int) -> Floats:
    """Moments of each region by the shift of the centre, if all is turned by an angle about it."""
    size = regions[0].moments.shape[1] - 2 * margin
    corners = margin + np.rint(-angle * np.stack([-away[:, 1], away[:, 0]], axis=1)).astype(int)
    moved: Floats = np.stack(
        [region.moments[:, y : y + size, x : x + size] for region, (x, y) in zip(regions, corners, strict=True)]
    )
    return moved


def _surface(totals: Floats, moments: Floats, which: NDArray[np.bool_]) -> Floats:
    """Share that the features tell of the values of some regions, at every shift."""
    return _explained(totals[which].sum(axis=0), moments[which].sum(axis=0))


def _disagreement(totals: Floats, moments: Floats) -> float:
    """Median distance between the peaks of random halves of the regions."""
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(SPLITS):
        half = rng.permutation(len(totals)) < len(totals) // 2
        apart = _peak(_surface(totals, moments, half)) - _peak(_surface(totals, moments, ~half))
        distances.append(float(np.linalg.norm(apart)))
    return float(np.median(distances))


def _explained(totals: Floats, moments: Floats) -> Floats:
    """Share of the variance of the values that the features tell, at every shift."""
    n, total, squares = totals
    # k features have k sums, k (k + 1) / 2 products and k sums with the values.
    k = int((np.sqrt(25 + 8 * len(moments)) - 5) / 2)
    mean = moments[:k] / n
    covariance = np.empty((*moments.shape[1:], k, k))
    for place, (a, b) in enumerate(combinations_with_replacement(range(k), 2), start=k):
        covariance[..., a, b] = covariance[..., b, a] = moments[place] / n - mean[a] * mean[b]
    covariance += _RIDGE * np.eye(k)
    with_values = np.moveaxis(moments[-k:] / n - mean * total / n, 0, -1)
    slopes = np.linalg.solve(covariance, with_values[..., None])[..., 0]
    explained: Floats = np.clip((with_values * slopes).sum(axis=-1) / (squares / n - (total / n) ** 2), 0, 1)
    return explained


def _peak(surface: Floats) -> Floats:
    """(2,) x and y of the peak, between pixels by the parabola through those around the highest."""
    y, x = np.unravel_index(surface.argmax(), surface.shape)
    peak = np.array([x, y], np.float64)
    near = surface[y - 1 : y + 2, x - 1 : x + 2] if min(x, y) > 0 else surface[:0]
    if near.shape != (3, 3):
        return peak
    dy, dx = (step.ravel() - 1 for step in np.indices((3, 3)))
    terms = np.column_stack([np.ones(9), dx, dy, dx**2, dx * dy, dy**2])
    _, bx, by, cxx, cxy, cyy = np.linalg.lstsq(terms, near.ravel())[0]
    hessian = np.array([[2 * cxx, cxy], [cxy, 2 * cyy]])
    if cxx >= 0 or np.linalg.det(hessian) <= 0:
        return peak
    return peak + np.clip(-np.linalg.solve(hessian, [bx, by]), -1, 1)


def _rotation(regions: Sequence[RegionSums], away: Floats, peak: Floats, largest: float) -> tuple[float, float]:
    """Best angle up to the largest, at shifts near the peak, and its standard deviation."""
    angles = np.linspace(-largest, largest, ANGLES)
    y, x = (np.arange(-NEAR, NEAR + 1) + middle for middle in np.rint(peak[::-1]))
    sums = np.zeros((len(regions), ANGLES, len(regions[0].moments), 2 * NEAR + 1, 2 * NEAR + 1))
    for region, (across, down), sums_of_region in zip(regions, away, sums, strict=True):
        smooth = [ndimage.spline_filter(moment) for moment in region.moments]
        for angle, target in zip(angles, sums_of_region, strict=True):
            # A turned region is at home where the shift of the centre and its own meet.
            place = np.meshgrid(y - angle * across, x + angle * down, indexing="ij")
            for moment, out in zip(smooth, target, strict=True):
                ndimage.map_coordinates(moment, place, out, mode="nearest", prefilter=False)
    totals = np.array([region.totals for region in regions])

    def best(which: NDArray[np.bool_]) -> float:
        moments = sums[which].sum(axis=0)
        return _vertex(np.array([_explained(totals[which].sum(axis=0), some).max() for some in moments]))

    everyone = np.ones(len(regions), bool)
    step = 2 * largest / (ANGLES - 1)
    without = np.array([best(np.arange(len(regions)) != left_out) for left_out in range(len(regions))])
    found = best(everyone)
    if not 0 < found < ANGLES - 1:
        return float(angles[int(found)]), np.inf
    return (found - ANGLES // 2) * step, float(np.sqrt(_jackknife(without[:, None] * step)[0, 0]))


def _vertex(profile: Floats) -> float:
    """Position of the peak of a profile, between its points by a parabola."""
    best = int(profile.argmax())
    if not 0 < best < len(profile) - 1:
        return float(best)
    left, middle, right = profile[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return best + float(0.5 * (left - right) / bend) if bend < 0 else float(best)


def _jackknife(without: Floats) -> Floats:
    """Covariance of an estimate from those that leave one region out each, (regions, parameters)."""
    deviation = without - without.mean(axis=0)
    covariance: Floats = (len(without) - 1) / len(without) * deviation.T @ deviation
    return covariance
