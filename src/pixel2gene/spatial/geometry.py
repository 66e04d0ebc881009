"""Maps between the pixels of an image and the elements that share a coordinate system with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.transformations import get_transformation

from pixel2gene.spatial.store import require_spatialdata

_TOLERANCE_PX = 0.5
_TOLERANCE_SHEAR = 0.01


def affine(sdata: SpatialData, element_key: str, image_key: str) -> NDArray[np.float64]:
    """Map the intrinsic coordinates of an element to the full-resolution pixels of an image.

    Parameters
    ----------
    sdata
        Holds both elements.
    element_key
        Shapes, points, labels or image; of a multiscale raster, the full-resolution level.
    image_key
        Image whose pixel (column j, row i) covers [j, j + 1) × [i, i + 1).

    Returns
    -------
    Matrix (3, 3) on homogeneous (x, y, 1).

    Raises
    ------
    KeyError
        If one of the keys is missing.
    ValueError
        If the two share no coordinate system, or if the systems that they share disagree by more than half a pixel.
    """
    image = raster_levels(get_element(sdata, image_key, "images"))[0]
    to_system = system_matrices(sdata, element_key)
    from_image = system_matrices(sdata, image_key)
    shared = sorted(to_system.keys() & from_image.keys())
    if not shared:
        raise ValueError(
            f"{element_key!r} and image {image_key!r} share no coordinate system: {element_key!r} is in "
            f"{sorted(to_system)}, {image_key!r} in {sorted(from_image)}; align one of them with "
            "spatialdata.transformations.set_transformation."
        )
    maps = [np.linalg.inv(from_image[name]) @ to_system[name] for name in shared]

    height, width = image.sizes["y"], image.sizes["x"]
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]], dtype=float)
    in_element = np.linalg.inv(maps[0]) @ corners
    apart = [float(np.abs((m @ in_element - corners)[:2]).max()) for m in maps]
    if max(apart) > _TOLERANCE_PX:
        found = ", ".join(f"{name!r} {distance:.1f} px" for name, distance in zip(shared, apart, strict=True))
        raise ValueError(
            f"The coordinate systems shared by {element_key!r} and image {image_key!r} disagree (distance from the "
            f"first at the corners of the image: {found}); remove the wrong one with "
            "spatialdata.transformations.remove_transformation."
        )
    return maps[0]


def square_pixels(matrix: ArrayLike, name: str = "The transform") -> float:
    """Scale of a similarity transform: rotation, reflection, uniform scale, translation.

    Parameters
    ----------
    matrix
        Affine matrix (3, 3) on (x, y, 1).
    name
        By which the error calls it.

    Returns
    -------
    Length that a unit length is mapped to.

    Raises
    ------
    ValueError
        If lengths in different directions are scaled differently by over 1 %, or if the matrix is singular.
    """
    large, small = np.linalg.svd(np.asarray(matrix, dtype=float)[:2, :2], compute_uv=False)
    if not 0 < large <= small * (1 + _TOLERANCE_SHEAR):
        raise ValueError(
            f"{name} scales lengths by {small:.6g} to {large:.6g} depending on their direction; a similarity "
            "(rotation, reflection, uniform scale, translation) was expected: correct it with "
            "spatialdata.transformations.set_transformation."
        )
    return float(np.sqrt(large * small))


def system_matrices(sdata: SpatialData, key: str) -> dict[str, NDArray[np.float64]]:
    """Matrices (3, 3) from the intrinsic (x, y) of an element to each of its coordinate systems.

    Parameters
    ----------
    sdata
        Holds the element.
    key
        Image, labels, points or shapes.

    Raises
    ------
    KeyError
        If the key is missing.
    """
    transforms = get_transformation(get_element(sdata, key, "images", "labels", "points", "shapes"), get_all=True)
    return {
        name: np.asarray(transform.to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)
        for name, transform in transforms.items()
    }


def raster_levels(raster: xr.DataArray | xr.DataTree) -> list[xr.DataArray]:
    """Levels of a single- or multiscale raster, full resolution first."""
    return [raster] if isinstance(raster, xr.DataArray) else get_pyramid_levels(raster)


def get_element(sdata: SpatialData, key: str, *kinds: str) -> Any:
    """Look up an element by its key.

    Parameters
    ----------
    sdata
        Holds the element.
    key
        Its key.
    kinds
        Where to look: ``"images"``, ``"labels"``, ``"points"``, ``"shapes"``.

    Raises
    ------
    KeyError
        If the key is missing.
    TypeError
        If it is no SpatialData.
    """
    require_spatialdata(sdata)
    known = {name: element for kind in kinds for name, element in getattr(sdata, kind).items()}
    if not isinstance(key, str) or key not in known:
        raise KeyError(f"No {key!r} among the {', '.join(kinds)}; there are {sorted(known)}.")
    return known[key]
