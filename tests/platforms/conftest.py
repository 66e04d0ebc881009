"""Simulated slides in the layouts of vendors, as their software writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
import zarr
from PIL import Image
from scipy import sparse
from skimage.draw import polygon2mask
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.spatial.geometry import raster_levels

SIZE, MPP, GENES = (640, 640), 0.5, 12
HIRES = 0.1  # px per full-resolution px
XENIUM_UM = 0.2125  # per px of the morphology image
LETTERS = "abcdefghijklmnop"  # digits of the ids of cells


@dataclass(frozen=True)
class Delivery:
    """A folder as the vendor delivers it, and the slide that it was made from."""

    folder: Path
    direct: SpatialData


def picture(sdata: SpatialData) -> np.ndarray:
    """(y, x, 3) full resolution."""
    return np.moveaxis(raster_levels(sdata["he"])[0].to_numpy(), 0, -1)


def write_10x(path: Path, counts: Any, barcodes: list[str], genes: list[str], controls: int = 0) -> None:
    """Feature-barcode matrix, with some control probes that count as they like."""
    names = [*genes, *(f"NegControlProbe_{i:05d}" for i in range(controls))]
    counts = sparse.hstack([counts, np.ones((counts.shape[0], controls), np.int32)], format="csr")
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, "S")
        # Features x barcodes by column, which is barcodes x features by row.
        matrix["data"], matrix["indices"] = counts.data.astype(np.int32), counts.indices.astype(np.int64)
        matrix["indptr"], matrix["shape"] = counts.indptr.astype(np.int64), np.array(counts.shape[::-1], np.int32)
        kinds = ["Gene Expression"] * len(genes) + ["Negative Control Probe"] * controls
        columns = {
            "id": [f"ENSG{i:011d}" for i in range(len(names))],
            "name": names,
            "feature_type": kinds,
            "genome": ["GRCh38"] * len(names),
        }
        for key, values in columns.items():
            matrix[f"features/{key}"] = np.array(values, "S")


def write_pictures(folder: Path, he: np.ndarray) -> None:
    """Write the images that Space Ranger shrinks, which are none to work on."""
    folder.mkdir(parents=True)
    for name, scale in {"hires": HIRES, "lowres": HIRES / 2}.items():
        small = Image.fromarray(he).resize((round(he.shape[1] * scale), round(he.shape[0] * scale)))
        small.save(folder / f"tissue_{name}_image.png")


def scale_factors(**more: float) -> str:
    return json.dumps({"tissue_hires_scalef": HIRES, "tissue_lowres_scalef": HIRES / 2, **more})


def write_bins(folder: Path, side: int, table: Any, he: np.ndarray) -> None:
    """Bins of `side` µm, made of those of 8 µm."""
    where = table.obs[["array_row", "array_col"]].to_numpy() // (side // 8)
    unit, owner = np.unique(where, axis=0, return_inverse=True)
    join = sparse.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    middle = (join @ table.obsm["spatial"]) / join.sum(axis=1)
    barcodes = [f"s_{side:03d}um_{row:05d}_{column:05d}-1" for row, column in unit]
    write_pictures(folder / "spatial", he)
    write_10x(folder / "filtered_feature_bc_matrix.h5", join @ table.X, barcodes, table.var_names.tolist())
    positions = {
        "barcode": barcodes,
        "in_tissue": 1,
        "array_row": unit[:, 0],
        "array_col": unit[:, 1],
        "pxl_row_in_fullres": np.asarray(middle[:, 1]).ravel(),
        "pxl_col_in_fullres": np.asarray(middle[:, 0]).ravel(),
    }
    pd.DataFrame(positions).to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False)
    (folder / "spatial" / "scalefactors_json.json").write_text(
        scale_factors(spot_diameter_fullres=side / MPP, bin_size_um=float(side), microns_per_pixel=MPP)
    )


@pytest.fixture(scope="session")
def visium_hd(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """Write what Space Ranger writes for Visium HD."""
    direct = p2g.datasets.simulate(size=SIZE, n_genes=GENES, measured=0.7, counts_per_superpixel=60, seed=5)
    folder, he = tmp_path_factory.mktemp("hd"), picture(direct)
    for side in (8, 16):
        write_bins(folder / "binned_outputs" / f"square_{side:03d}um", side, direct["counts"], he)
    write_pictures(folder / "spatial", he)
    with h5py.File(folder / "sim_feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps({"file_format": "1.0"})})
    (folder / "microscope_image").mkdir()
    tifffile.imwrite(folder / "microscope_image" / "he.tif", he, photometric="rgb", tile=(256, 256))
    return Delivery(folder, direct)


@pytest.fixture(scope="session")
def visium(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """Write what Space Ranger writes for Visium: the spots are 55 µm wide, its files say 65."""
    direct = p2g.datasets.simulate(
        "visium", size=(1280, 1280), n_genes=GENES, measured=1.0, counts_per_superpixel=60, seed=5
    )
    folder, he, table = tmp_path_factory.mktemp("visium"), picture(direct), direct["counts"]
    barcodes = [f"AAAC{i:012d}-1" for i in range(table.n_obs)]
    write_pictures(folder / "spatial", he)
    write_10x(folder / "filtered_feature_bc_matrix.h5", table.X, barcodes, table.var_names.tolist())
    centres = table.obsm["spatial"]
    positions = {
        "barcode": barcodes,
        "in_tissue": 1,
        "array_row": table.obs["array_row"],
        "array_col": table.obs["array_col"],
        "pxl_row_in_fullres": centres[:, 1].round().astype(int),
        "pxl_col_in_fullres": centres[:, 0].round().astype(int),
    }
    pd.DataFrame(positions).to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    (folder / "spatial" / "scalefactors_json.json").write_text(scale_factors(spot_diameter_fullres=65 / MPP))
    tifffile.imwrite(folder / "he.tif", he, photometric="rgb")
    return Delivery(folder, direct)


@pytest.fixture(scope="session")
def xenium(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """Write a bundle of the Xenium analyzer, version 2, with an H&E that was aligned in the Explorer."""
    direct = p2g.datasets.simulate("xenium", size=SIZE, n_genes=GENES, measured=0.7, counts_per_superpixel=60, seed=5)
    folder, table = tmp_path_factory.mktemp("xenium"), direct["counts"]
    specs = {"analysis_sw_version": "xenium-2.0.0.10", "pixel_size": XENIUM_UM}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    outlines = direct["cells"].geometry.to_numpy()
    ids = np.array(["aaaaa" + "".join(digits) + "-1" for digits in product(LETTERS, repeat=3)])[: len(outlines)]
    write_10x(folder / "cell_feature_matrix.h5", table.X, ids.tolist(), table.var_names.tolist(), controls=3)
    write_cells(folder, ids, outlines)
    write_transcripts(folder, direct["transcripts"].compute(), ids[0])
    write_aligned(folder, picture(direct))
    return Delivery(folder, direct)


def write_cells(folder: Path, ids: np.ndarray, outlines: np.ndarray) -> None:
    centres = shapely.get_coordinates(shapely.centroid(outlines))
    cells = {
        "cell_id": ids,
        "x_centroid": centres[:, 0],
        "y_centroid": centres[:, 1],
        "cell_area": shapely.area(outlines),
    }
    pd.DataFrame(cells).to_parquet(folder / "cells.parquet", index=False)
    vertices, owner = shapely.get_coordinates(outlines, return_index=True)
    rims = {"cell_id": ids[owner], "vertex_x": vertices[:, 0], "vertex_y": vertices[:, 1], "label_id": owner + 1}
    pd.DataFrame(rims).to_parquet(folder / "cell_boundaries.parquet", index=False)

    shape = [round(n * MPP / XENIUM_UM) for n in SIZE]
    masks = np.zeros(shape, np.uint32)
    for label, outline in enumerate(outlines, start=1):
        rim = shapely.get_coordinates(outline)[:, ::-1] / XENIUM_UM - 0.5
        low, high = np.floor(rim.min(0)).astype(int).clip(0), np.ceil(rim.max(0)).astype(int) + 1
        inside = polygon2mask(tuple(high - low), rim - low)
        part = masks[low[0] : high[0], low[1] : high[1]]
        part[inside[: part.shape[0], : part.shape[1]]] = label
    prefix = [int("".join(f"{LETTERS.index(letter):x}" for letter in name[:8]), 16) for name in ids]
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("cell_id", data=np.stack([prefix, np.ones(len(ids))], axis=1).astype(np.uint32))
        columns = {"column_names": ["nucleus_count"]}
        group.create_array("cell_summary", data=np.ones((len(ids), 1)), attributes=columns)
        for i in range(2):
            group.create_array(f"masks/{i}", data=masks)
            group.create_array(f"polygon_sets/{i}/cell_index", data=np.arange(len(ids), dtype=np.uint32))


def write_transcripts(folder: Path, points: pd.DataFrame, cell: str) -> None:
    """Transcripts in three dimensions, and as many control probes anywhere."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "transcript_id": np.arange(len(points)),
            "cell_id": cell,
            "overlaps_nucleus": 0,
            "feature_name": points["feature_name"].astype(str).to_numpy(),
            "x_location": points["x"].to_numpy(np.float32),
            "y_location": points["y"].to_numpy(np.float32),
            "z_location": rng.uniform(0, 30, len(points)).astype(np.float32),
            "qv": 40.0,
        }
    )
    control = frame.sample(200, random_state=0).assign(feature_name="UnassignedCodeword_0001")
    pd.concat([frame, control]).to_parquet(folder / "transcripts.parquet", index=False)


def write_aligned(folder: Path, he: np.ndarray) -> None:
    """H&E with pixels of its own, turned by 180°: the scanner knows nothing of the Xenium."""
    turned = he[::-1, ::-1]
    tifffile.imwrite(folder / "sim_he_image.ome.tif", turned, photometric="rgb")
    height, width = he.shape[:2]
    scale = MPP / XENIUM_UM
    alignment = np.array([[-scale, 0, scale * width], [0, -scale, scale * height], [0, 0, 1]])
    np.savetxt(folder / "sim_he_imagealignment.csv", alignment, delimiter=",")
