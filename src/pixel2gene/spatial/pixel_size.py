"""Physical size of the pixels of an image, from what the coordinate systems and the assay's geometry tell."""

from __future__ import annotations

import re
import warnings
from numbers import Real
from typing import NamedTuple

import geopandas as gpd
import numpy as np
from spatialdata import SpatialData

from pixel2gene.spatial.geometry import affine, get_element, square_pixels, system_matrices
from pixel2gene.spatial.spots import lattice

# The micro sign and the Greek mu look alike; spatialdata.concatenate adds the name of the slide.
_MICRONS = re.compile(r"(micro(n|meter|metre)s?|[uµμ]m)(-.+)?", re.IGNORECASE)
_BINS = re.compile(r"square_(\d{3})um")
# Unit, in µm, of transcripts, outlines and bins of the machine before any transformation; of Stereo-seq, the pitch of
# the chip.
_UNIT_OF_READER = {"xenium": 1.0, "merscope": 1.0, "stereoseq": 0.5}
_VENDOR = re.compile(r"(.*_)?(transcripts|polygons)|(cell|nucleus)_(boundaries|circles)|cells_circles|bin\d+_genes")
_FINEST, _COARSEST = 0.05, 1.0  # µm per pixel
_AGREEMENT = 1.05
# Pixels of bins and spots that are this near to 1 µm are none, but µm.
_AS_MICRONS = 1e-3
_SAMPLE = 5000
_VISIUM_PITCH, _LEGACY_PITCH = 100.0, 200.0  # µm


class Evidence(NamedTuple):
    """One reason to believe in a pixel size."""

    source: str
    mpp: float


def pixel_size(sdata: SpatialData, image_key: str, *, mpp: float | None = None, force: bool = False) -> float:
    """Find the size of an image's full-resolution pixels and check it against all that is known.

    Parameters
    ----------
    sdata
        Holds the image and, with luck, evidence: a coordinate system in microns, or bins or spots of known pitch.
    image_key
        Image.
    mpp
        What the user says, in µm per pixel; it wins where the evidence agrees within 5 %.
    force
        Take the user's mpp against the evidence, and any size however implausible.

    Returns
    -------
    µm per pixel.

    Raises
    ------
    KeyError
        If there is no such image.
    ValueError
        If the size is unknown, contradictory, not positive, or implausible (coarser than 1 or finer than 0.05).
    """
    if mpp is not None and not (isinstance(mpp, Real) and 0 < mpp < np.inf):
        raise ValueError(f"mpp={mpp!r} is no pixel size; a positive number of µm per pixel is expected.")
    get_element(sdata, image_key, "images")
    if mpp is not None and force:
        return float(mpp)
    said: list[Evidence] = [] if mpp is None else [Evidence("mpp as given", mpp)]
    found = said + evidence(sdata, image_key)
    if not found:
        raise ValueError(
            f"Nothing in the data tells the pixel size of image {image_key!r}; pass mpp= (µm per pixel of the "
            "full-resolution image)."
        )
    values = [value for _, value in found]
    if max(values) > _AGREEMENT * min(values):
        listed = "; ".join(f"{source}: {value:.4g}" for source, value in found)
        raise ValueError(
            f"The evidence for the pixel size of image {image_key!r} disagrees by over 5 % (µm/px: {listed}); correct "
            "the transforms, or pass both mpp= and force=True."
        )
    value = float(values[0])
    geometry = [source for source, _ in found if source.startswith(("bins", "Visium", "legacy"))]
    if len(geometry) == len(found) and abs(value - 1) < _AS_MICRONS and not force:
        raise ValueError(
            f"By {geometry[0]} image {image_key!r} has 1 µm/px, as if their coordinates were in µm instead of its "
            "pixels: scale them with spatialdata.transformations.set_transformation, or pass mpp=1 if it is so."
        )
    if value > _COARSEST and not force:
        raise ValueError(
            f"Image {image_key!r} has {value:.3g} µm/px; pixel2gene needs {_COARSEST:g} µm/px or finer, because nuclei "
            "are not resolved in coarser images; load the full-resolution image, or pass force=True."
        )
    if value < _FINEST and not force:
        raise ValueError(
            f"Image {image_key!r} has {value:.3g} µm/px, implausible for a slide scanner ({_FINEST:g} or coarser "
            "expected); correct mpp= or the transforms, or pass force=True."
        )
    if sdata.attrs.get("spatialdata_io_reader") == "xenium" and _unmoved(sdata, image_key):
        warnings.warn(
            f"Image {image_key!r} lies pixel by pixel on the images of the Xenium, as one that was read without its "
            "alignment file does: unless it was registered to them, read it with "
            "spatialdata_io.xenium_aligned_image(image, alignment_file).",
            stacklevel=3,
        )
    return value


def evidence(sdata: SpatialData, image_key: str) -> list[Evidence]:
    """Sizes of an image's pixels that follow from its transforms, then from bins and spots.

    Parameters
    ----------
    sdata
        Holds the image.
    image_key
        Image.

    Returns
    -------
    In order of authority; empty if nothing is known.

    Raises
    ------
    KeyError
        If there is no such image.
    ValueError
        If a transform involved is sheared or anisotropic, or if the image's coordinate systems contradict each other.
    """
    get_element(sdata, image_key, "images")
    systems = system_matrices(sdata, image_key)
    found = [
        Evidence(f"transform to {name!r}", square_pixels(matrix, f"The transform of image {image_key!r} to {name!r}"))
        for name, matrix in systems.items()
        if _MICRONS.fullmatch(name)
    ]
    unit = _UNIT_OF_READER.get(sdata.attrs.get("spatialdata_io_reader", ""))
    if unit is not None:
        named = "in µm" if unit == 1 else f"in steps of {unit:g} µm"
        found += [
            Evidence(f"{key!r} {named}", unit / square_pixels(affine(sdata, key, image_key)))
            for key in [*sdata.points, *sdata.shapes]
            if _VENDOR.fullmatch(key) and not systems.keys().isdisjoint(system_matrices(sdata, key))
        ]
    for key, shapes in sdata.shapes.items():
        if systems.keys().isdisjoint(system_matrices(sdata, key)) or shapes.empty:
            continue
        known = _known_length(key, shapes)
        if known is not None:
            source, microns, length = known
            found.append(Evidence(source, microns / (length * square_pixels(affine(sdata, key, image_key)))))
    return found


def _unmoved(sdata: SpatialData, image_key: str) -> bool:
    return any(np.array_equal(matrix, np.eye(3)) for matrix in system_matrices(sdata, image_key).values())


def _known_length(key: str, shapes: gpd.GeoDataFrame) -> tuple[str, float, float] | None:
    """Name what is known, its length in µm, and the same length in the shapes' own coordinates."""
    sample = shapes.iloc[:: len(shapes) // _SAMPLE + 1]
    kinds = set(sample.geom_type)
    circular = kinds == {"Point"} and "radius" in shapes
    bins = _BINS.search(key)
    if bins and (circular or kinds == {"Polygon"}):
        # Readers turn bins to circles that touch.
        sides = 2 * sample["radius"] if circular else np.sqrt(sample.area)
        return f"bins of {int(bins[1])} µm {key!r}", int(bins[1]), float(sides.median())
    spots = lattice(shapes)
    if spots is None:
        return None
    # By design the radius is 27.5 µm, in Space Ranger's files 32.5.
    if spots.neighbours == 6 and 0.25 < spots.width < 0.36:
        return f"Visium spots {key!r} 100 µm apart", _VISIUM_PITCH, spots.pitch
    if spots.neighbours == 4 and 0.225 < spots.width < 0.275:
        return f"legacy spots {key!r} 200 µm apart", _LEGACY_PITCH, spots.pitch
    return None
