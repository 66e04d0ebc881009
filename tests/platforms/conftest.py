"""Simulated slides in the layouts of vendors, as their software writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
import zarr
from anndata import AnnData
from PIL import Image
from scipy import sparse
from skimage.draw import polygon2mask
from spatialdata import SpatialData, deepcopy
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Scale

import pixel2gene as p2g
from pixel2gene.spatial.geometry import raster_levels

SIZE, MPP, GENES, MEASURED = (640, 640), 0.5, 12, 0.7
HIRES = 0.1  # px per full-resolution px
XENIUM_UM = 0.2125  # per px of the morphology image
LETTERS = "abcdefghijklmnop"  # digits of the ids of cells
MERSCOPE_UM, COSMX_UM, DNB_UM = 0.108, 0.12028, 0.5  # per px
FOVS = 2
CHIP = 64  # DNBs from the corner of the chip to that of the slide: whole blocks of superpixels, but not whole bins
BINS = (20, 50)  # DNBs
TURN = np.array([[-1.0, 0, SIZE[1]], [0, -1, SIZE[0]], [0, 0, 1]])


@dataclass(frozen=True)
class Delivery:
    """A folder as the vendor delivers it, and the slide that it was made from."""

    folder: Path
    direct: SpatialData
    # From the pixels (x, y, 1) of the H&E that is delivered to those of the simulated one.
    scanned: np.ndarray = field(default_factory=lambda: np.eye(3))


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
def transcripts() -> SpatialData:
    """Simulate what all platforms that tell the place of each transcript have measured."""
    return p2g.datasets.simulate(
        "xenium", size=SIZE, n_genes=GENES, measured=MEASURED, counts_per_superpixel=60, seed=5
    )


@pytest.fixture(scope="session")
def xenium(tmp_path_factory: pytest.TempPathFactory, transcripts: SpatialData) -> Delivery:
    """Write a bundle of the Xenium analyzer, version 2, with an H&E that was aligned in the Explorer."""
    direct = transcripts
    folder, table = tmp_path_factory.mktemp("xenium"), direct["counts"]
    specs = {"analysis_sw_version": "xenium-2.0.0.10", "pixel_size": XENIUM_UM}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    outlines = direct["cells"].geometry.to_numpy()
    ids = np.array(["aaaaa" + "".join(digits) + "-1" for digits in product(LETTERS, repeat=3)])[: len(outlines)]
    write_10x(folder / "cell_feature_matrix.h5", table.X, ids.tolist(), table.var_names.tolist(), controls=3)
    write_cells(folder, ids, outlines)
    write_transcripts(folder, direct["transcripts"].compute(), ids[0])
    tifffile.imwrite(folder / "sim_he_image.ome.tif", turned(direct), photometric="rgb")
    write_alignment(folder / "sim_he_imagealignment.csv", np.diag([1 / XENIUM_UM, 1 / XENIUM_UM, 1]), TURN)
    return Delivery(folder, direct, TURN)


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

    masks = cell_masks(outlines, XENIUM_UM)
    prefix = [int("".join(f"{LETTERS.index(letter):x}" for letter in name[:8]), 16) for name in ids]
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("cell_id", data=np.stack([prefix, np.ones(len(ids))], axis=1).astype(np.uint32))
        columns = {"column_names": ["nucleus_count"]}
        group.create_array("cell_summary", data=np.ones((len(ids), 1)), attributes=columns)
        for i in range(2):
            group.create_array(f"masks/{i}", data=masks)
            group.create_array(f"polygon_sets/{i}/cell_index", data=np.arange(len(ids), dtype=np.uint32))


def cell_masks(outlines: np.ndarray, um: float) -> np.ndarray:
    """(y, x) number of the cell, from 1, in pixels of so many µm."""
    masks = np.zeros([round(n * MPP / um) for n in SIZE], np.uint32)
    for label, outline in enumerate(outlines, start=1):
        rim = shapely.get_coordinates(outline)[:, ::-1] / um - 0.5
        low, high = np.floor(rim.min(0)).astype(int).clip(0), np.ceil(rim.max(0)).astype(int) + 1
        inside = polygon2mask(tuple(high - low), rim - low)
        part = masks[low[0] : high[0], low[1] : high[1]]
        part[inside[: part.shape[0], : part.shape[1]]] = label
    return masks


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


def turned(sdata: SpatialData) -> np.ndarray:
    """H&E turned by 180°: the scanner knows nothing of the machine."""
    return picture(sdata)[::-1, ::-1]


def write_alignment(path: Path, machine: np.ndarray, scanned: np.ndarray) -> None:
    """Map the pixels of the H&E to the coordinates of the machine, to which `machine` maps µm."""
    np.savetxt(path, machine @ np.diag([MPP, MPP, 1]) @ scanned, delimiter=",")


@pytest.fixture(scope="session")
def merscope(tmp_path_factory: pytest.TempPathFactory, transcripts: SpatialData) -> Delivery:
    """Write a region of the MERSCOPE, without its mosaics; the H&E is a file of its own."""
    folder = tmp_path_factory.mktemp("202511_sim") / "region_0"
    (folder / "images").mkdir(parents=True)
    # The mosaic begins elsewhere than the µm do.
    matrix = np.array([[1 / MERSCOPE_UM, 0, 150], [0, 1 / MERSCOPE_UM, -40], [0, 0, 1]])
    np.savetxt(folder / "images" / "micron_to_mosaic_pixel_transform.csv", matrix)
    points, table = transcripts["transcripts"].compute(), transcripts["counts"]
    outlines = transcripts["cells"].geometry
    frame = pd.DataFrame(
        {
            "barcode_id": 0,
            "global_x": points["x"].to_numpy(),
            "global_y": points["y"].to_numpy(),
            "global_z": np.arange(len(points)) % 7.0,
            "x": points["x"].to_numpy() / MERSCOPE_UM % 2048,
            "y": points["y"].to_numpy() / MERSCOPE_UM % 2048,
            "fov": 0,
            "gene": points["feature_name"].astype(str).to_numpy(),
        }
    )
    blank = frame.sample(200, random_state=0).assign(gene="Blank-1")
    pd.concat([frame, blank], ignore_index=True).to_csv(folder / "detected_transcripts.csv")
    ids = (110_000_000_000_000_000 + np.arange(table.n_obs)).astype(str)
    counts = pd.DataFrame(table.X.toarray().astype(int), pd.Index(ids, name="cell"), table.var_names)
    counts.assign(**{"Blank-1": 1}).to_csv(folder / "cell_by_gene.csv")
    cells = {"fov": 0, "volume": outlines.area * 10, "center_x": outlines.centroid.x, "center_y": outlines.centroid.y}
    pd.DataFrame(cells).set_index(pd.Index(ids, name="EntityID")).to_csv(folder / "cell_metadata.csv")
    planes = [
        gpd.GeoDataFrame(
            {"EntityID": ids.astype(np.int64), "ZIndex": z, "Geometry": [shapely.MultiPolygon([o]) for o in outlines]},
            geometry="Geometry",
        )
        for z in range(2)
    ]
    pd.concat(planes, ignore_index=True).to_parquet(folder / "cell_boundaries.parquet")
    tifffile.imwrite(folder / "he.tif", turned(transcripts), photometric="rgb")
    write_alignment(folder / "he_alignment.csv", matrix, TURN)
    return Delivery(folder, transcripts, TURN)


@pytest.fixture(scope="session")
def cosmx(tmp_path_factory: pytest.TempPathFactory, transcripts: SpatialData) -> Delivery:
    """Write flat files of the CosMx SMI: fields of view below one another, in coordinates whose y points upwards."""
    folder = tmp_path_factory.mktemp("cosmx")
    outlines, table = transcripts["cells"].geometry.to_numpy(), transcripts["counts"]
    width, height = round(MEASURED * SIZE[1] * MPP / COSMX_UM), round(SIZE[0] * MPP / COSMX_UM) // FOVS
    masks = cell_masks(outlines, COSMX_UM)

    def fields(um: np.ndarray) -> pd.DataFrame:
        """Where places in µm are."""
        x, y = um.T / COSMX_UM
        fov = (y // height).astype(int).clip(max=FOVS - 1)
        local = (fov + 1) * height - y
        place = {"fov": fov + 1, "x_local_px": x, "y_local_px": local, "x_global_px": x + 7000}
        return pd.DataFrame(place | {"y_global_px": local + (FOVS - fov) * height})

    cells = fields(shapely.get_coordinates(shapely.centroid(outlines)))
    cells.insert(1, "cell_ID", cells.groupby("fov").cumcount() + 1)
    names = {f"{axis}_{of}_px": f"Center{axis.upper()}_{of}_px" for axis in "xy" for of in ("local", "global")}
    cells.rename(columns=names).assign(Area=900).to_csv(folder / "sim_metadata_file.csv", index=False)
    counts = pd.DataFrame(table.X.toarray().astype(int), columns=table.var_names).assign(NegPrb1=1)
    outside = pd.DataFrame({"fov": np.arange(FOVS) + 1, "cell_ID": 0}).reindex(columns=["fov", "cell_ID", *counts])
    whole = pd.concat([cells[["fov", "cell_ID"]].join(counts), outside.fillna(9).astype(int)])
    whole.to_csv(folder / "sim_exprMat_file.csv", index=False)

    points = transcripts["transcripts"].compute()
    frame = fields(points[["x", "y"]].to_numpy()).assign(
        cell_ID=0, z=0, target=points["feature_name"].astype(str).to_numpy(), CellComp="None"
    )
    control = frame.sample(200, random_state=0).assign(target="NegPrb1")
    pd.concat([frame, control]).to_csv(folder / "sim_tx_file.csv", index=False)
    corners = {"fov": np.arange(FOVS) + 1, "x_global_px": 7000, "y_global_px": np.arange(FOVS, 0, -1) * height}
    pd.DataFrame(corners).to_csv(folder / "sim_fov_positions_file.csv", index=False)
    number = np.append(0, cells["cell_ID"])
    for name in ("CellComposite", "CellLabels"):
        (folder / name).mkdir()
    for fov in range(FOVS):
        own = np.append(False, cells["fov"] == fov + 1)
        seen = masks[fov * height : (fov + 1) * height, :width]
        labels = np.where(own, number, 0)[seen].astype(np.uint16)
        tifffile.imwrite(folder / "CellLabels" / f"CellLabels_F{fov + 1:03d}.tif", labels)
        Image.new("RGB", labels.shape[::-1]).save(folder / "CellComposite" / f"CellComposite_F{fov + 1:03d}.jpg")
    tifffile.imwrite(folder / "he.tif", picture(transcripts), photometric="rgb")
    top = (FOVS + 1) * height
    machine = np.array([[1 / COSMX_UM, 0, 7000], [0, -1 / COSMX_UM, top], [0, 0, 1]])
    write_alignment(folder / "he_alignment.csv", machine, np.eye(3))
    return Delivery(folder, transcripts)


@pytest.fixture(scope="session")
def stereoseq(tmp_path_factory: pytest.TempPathFactory, transcripts: SpatialData) -> Delivery:
    """Write what SAW writes: square bins and cells in DNBs, which are the pixels of the registered images."""
    folder, points = tmp_path_factory.mktemp("stereoseq"), transcripts["transcripts"].compute()
    for name in ("02.count", "03.register", "04.tissuecut", "041.cellcut", "051.cellcluster"):
        (folder / name).mkdir()
    direct = deepcopy(transcripts)
    dnb = np.floor(points[["x", "y"]].to_numpy() / DNB_UM).astype(np.int64) + CHIP
    genes = points["feature_name"].cat.categories
    with h5py.File(folder / "04.tissuecut" / "SIM.gef", "w") as file:
        for side in BINS:
            corner = dnb // side * side
            # Bins that are cut by the border of what is measured would seem to be poor.
            whole = (corner >= CHIP).all(1) & (corner + side <= np.array([MEASURED * SIZE[1], SIZE[0]]) + CHIP).all(1)
            gene = points["feature_name"].cat.codes.to_numpy()
            bins, table = binned(corner[whole], gene[whole], side, genes)
            direct[f"square_{side}"], direct[f"bin{side}"] = bins, table
            write_square_bins(file.create_group(f"geneExp/bin{side}"), table, side)
    (folder / "02.count" / "SIM.gef").touch()
    write_cell_bins(folder, direct["counts"], direct["cells"].geometry.to_numpy())
    chip = np.full((SIZE[0] + CHIP, SIZE[1] + CHIP, 3), 255, np.uint8)
    chip[CHIP:, CHIP:] = picture(direct)
    tifffile.imwrite(folder / "03.register" / "SIM_ssDNA_regist.tif", chip[..., 0])
    tifffile.imwrite(folder / "SIM_HE_regist.tif", chip, photometric="rgb")
    return Delivery(folder, direct, np.array([[1, 0, -CHIP], [0, 1, -CHIP], [0, 0, 1]]))


def binned(corners: np.ndarray, gene: np.ndarray, side: int, genes: pd.Index) -> tuple[gpd.GeoDataFrame, AnnData]:
    """Square bins of so many DNBs, and the transcripts in each."""
    corner, owner = np.unique(corners, axis=0, return_inverse=True)
    counts = sparse.csr_matrix((np.ones(len(gene)), (owner, gene)), shape=(len(corner), len(genes)))
    to_pixels = {"global": Scale([1 / XENIUM_UM] * 2, axes=("x", "y"))}
    low, name = (corner - CHIP) * DNB_UM, f"square_{side}"
    boxes = shapely.box(*low.T, *(low + side * DNB_UM).T)
    table = AnnData(counts, var=pd.DataFrame(index=genes), obs=pd.DataFrame({"x": corner[:, 0], "y": corner[:, 1]}))
    table.obs["region"], table.obs["id"] = pd.Categorical([name] * len(corner)), np.arange(len(corner))
    squares = ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes), transformations=to_pixels)
    return squares, TableModel.parse(table, region=name, region_key="region", instance_key="id")


def write_square_bins(group: h5py.Group, table: AnnData, side: int) -> None:
    """Counts of genes one after the other, each bin by its upper left corner."""
    by_gene = sparse.csc_matrix(table.X)
    place = table.obs[["x", "y"]].to_numpy()[by_gene.indices]
    rows = np.empty(by_gene.nnz, [("x", "<i4"), ("y", "<i4"), ("count", "<u2")])
    rows["x"], rows["y"], rows["count"] = *place.T, by_gene.data
    group.create_dataset("expression", data=rows).attrs["resolution"] = np.uint32(1000 * DNB_UM)
    genes = np.empty(table.n_vars, [("gene", "S32"), ("offset", "<u4"), ("count", "<u4")])
    genes["gene"], genes["offset"] = table.var_names.to_numpy("S32"), by_gene.indptr[:-1]
    genes["count"] = np.diff(by_gene.indptr)
    group["gene"] = genes


def write_cell_bins(folder: Path, table: AnnData, outlines: np.ndarray) -> None:
    """Cells, as a table of their counts and as outlines relative to their centres."""
    centres = np.rint(shapely.get_coordinates(shapely.centroid(outlines)) / DNB_UM).astype(int)
    borders = np.full((len(outlines), 32, 2), 32767, np.int16)
    for border, centre, outline in zip(borders, centres, outlines, strict=True):
        rim = shapely.get_coordinates(outline)[:-1] / DNB_UM
        border[: len(rim)] = np.rint(rim - centre)
    fields = "id x y offset geneCount expCount dnbCount area cellTypeID clusterID".split()
    cells = np.zeros(table.n_obs, [(field, "<i4") for field in fields])
    cells["x"], cells["y"] = (centres + CHIP).T
    cells["id"], cells["area"] = np.arange(table.n_obs), shapely.area(outlines) / DNB_UM**2
    of_gene = [("geneName", "S32"), *((f, "<u4") for f in ("offset", "cellCount", "expCount", "maxMIDcount"))]
    genes = np.zeros(table.n_vars, of_gene)
    genes["geneName"] = table.var_names.to_numpy("S32")
    counts = np.zeros(table.X.nnz, [("geneID", "<u4"), ("cellID", "<u4"), ("count", "<u2")])
    with h5py.File(folder / "041.cellcut" / "SIM.cellbin.gef", "w") as file:
        group = file.create_group("cellBin")
        group["cell"], group["cellBorder"], group["gene"] = cells, borders, genes
        group["cellExp"] = group["geneExp"] = counts
        for name, size in {"cellExon": table.n_obs, "geneExon": table.n_vars}.items():
            group[name] = np.zeros(size, np.uint16)
        for name in ("cellExpExon", "geneExpExon"):
            group[name] = np.zeros(len(counts), np.uint16)
        for name in ("blockIndex", "blockSize", "cellTypeList"):
            group[name] = np.zeros(1, np.uint32)
    obs = pd.DataFrame(index=np.arange(table.n_obs).astype(str))
    clustered = AnnData(table.X, obs=obs, var=pd.DataFrame(index=table.var_names))
    clustered.write_h5ad(folder / "051.cellcluster" / "SIM.cell.cluster.h5ad")
