"""Counts and where they were measured."""

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy.sparse import csc_matrix, csr_array, csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from pixel2gene.spatial.grid import superpixel_grid
from pixel2gene.spatial.overlap import overlap
from pixel2gene.spatial.units import MEASURED_REACH, Units, measured_units, select_genes

HERE = {"global": Identity()}
GENES = ["ACTB", "ERBB2", "CD3E"]


def base(**elements):
    image = Image2DModel.parse(np.zeros((3, 320, 400), np.uint8), dims=("c", "y", "x"), transformations=HERE)
    return SpatialData.init_from_elements({"he": image, **elements})


def squares(n, index=None, transformations=HERE):
    """In the n-th column of superpixels, each a superpixel moved by half of one."""
    boxes = [shapely.box(16 * i + 8, 16 * i, 16 * i + 24, 16 * i + 16) for i in range(n)]
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes, index=index), transformations=transformations)


def table_of(counts, region="bins", ids=None, genes=GENES, **options):
    table = ad.AnnData(counts, var=pd.DataFrame(index=genes), **options)
    table.obs["region"] = pd.Categorical(np.broadcast_to(region, table.n_obs))
    table.obs["id"] = np.arange(table.n_obs) if ids is None else ids
    return TableModel.parse(table, region=sorted(set(table.obs["region"])), region_key="region", instance_key="id")


def read(sdata, key="table", layer=None):
    return measured_units(sdata, key, "he", superpixel_grid(sdata, "he", 0.5), layer)


def counts_of(n=4, seed=0):
    return np.random.default_rng(seed).poisson(3, (n, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", [np.asarray, csr_matrix, csc_matrix, lambda x: x.astype(np.int64)])
def test_counts_and_places(kind):
    units = read(base(bins=squares(4), table=table_of(kind(counts_of()))))
    np.testing.assert_array_equal(units.counts.toarray(), counts_of())
    assert units.genes.tolist() == GENES and units.superpixels is None
    expected = np.zeros((4, 20 * 25))
    for i in range(4):
        expected[i, i * 25 + i : i * 25 + i + 2] = 0.5
    np.testing.assert_allclose(units.overlap.toarray(), expected, atol=1e-6)


def test_a_layer_of_counts():
    table = table_of(np.log1p(counts_of()), layers={"counts": counts_of()})
    np.testing.assert_array_equal(
        read(base(bins=squares(4), table=table), layer="counts").counts.toarray(), counts_of()
    )


def test_ids_are_matched_whatever_the_order():
    units = read(base(bins=squares(4, index=[7, 3, 9, 1]), table=table_of(counts_of(3), ids=[9, 7, 1])))
    assert [row.indices[0] for row in units.overlap] == [2 * 26, 0, 3 * 26]


def test_several_regions_in_mixed_order():
    labels = np.zeros((320, 400), np.int32)
    labels[160:200, 160:230], labels[250:260, 20:100] = 5, 8
    circles = gpd.GeoDataFrame({"radius": [20.0, 30.0]}, geometry=[shapely.Point(300, 40), shapely.Point(350, 200)])
    elements = {
        "bins": squares(3),
        "spots": ShapesModel.parse(circles, transformations=HERE),
        "cells": Labels2DModel.parse(labels, dims=("y", "x"), transformations=HERE),
    }
    regions = ["cells", "bins", "spots", "bins", "cells", "spots", "bins"]
    ids = [8, 2, 0, 0, 5, 1, 1]
    sdata = base(**elements, table=table_of(counts_of(7), regions, ids))
    units = read(sdata)
    grid = superpixel_grid(sdata, "he", 0.5)
    for row, (region, one) in enumerate(zip(regions, ids, strict=True)):
        expected = overlap(elements[region], [one], grid.from_pixels, grid.shape).toarray()
        assert expected.sum() > 0
        np.testing.assert_allclose(units.overlap[[row]].toarray(), expected)


def test_units_in_another_coordinate_system():
    """Boxes in µm, aligned to the image by their transformation."""
    to_pixels = {"global": Scale([2, 2], axes=("x", "y"))}
    boxes = gpd.GeoDataFrame(geometry=[shapely.box(8, 16, 16, 24)])
    sdata = base(bins=ShapesModel.parse(boxes, transformations=to_pixels), table=table_of(counts_of(1)))
    found = read(sdata).overlap.toarray()[0]
    assert np.flatnonzero(found).tolist() == [2 * 25 + 1] and found.max() == pytest.approx(1)


def test_centres():
    sdata = base(bins=squares(3, index=[0, 1, 2]), table=table_of(counts_of(3)))
    grid = superpixel_grid(sdata, "he", 0.5)
    np.testing.assert_allclose(read(sdata).centres(grid), [[i + 1, i + 0.5] for i in range(3)])
    outside = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 16, 16), shapely.box(900, 900, 916, 916)])
    sdata = base(bins=ShapesModel.parse(outside, transformations=HERE), table=table_of(counts_of(2)))
    centres = read(sdata).centres(grid)
    np.testing.assert_allclose(centres[0], [0.5, 0.5])
    assert np.isnan(centres[1]).all()


def changed(value):
    counts = counts_of()
    counts[1, 1] = value
    return counts


def unlinked():
    table = table_of(counts_of())
    del table.uns["spatialdata_attrs"]
    return table


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table_of(changed(np.nan)), "values of table 'table' contain NaN or infinity"),
        (lambda: table_of(changed(np.inf)), "contain NaN or infinity"),
        (lambda: table_of(changed(-1)), "partly negative"),
        (
            lambda: table_of(changed(1.5), layers={"raw": counts_of()}),
            r"not whole numbers.*pass layer= with the counts \(layers: \['raw'\]\)",
        ),
        (lambda: table_of(np.zeros((4, 0), np.float32), genes=[]), r"is empty \(4 units, 0 genes\)"),
        (lambda: table_of(None, shape=(4, 3), layers={"raw": counts_of()}), r"No X in table 'table'.*\['raw'\]"),
        (unlinked, "annotates no element: link it"),
    ],
)
def test_what_is_no_table_of_counts_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        read(base(bins=squares(4), table=make()))


def test_an_unknown_layer_lists_those_there_are():
    table = table_of(counts_of(), layers={"raw": changed(0.5), "more": counts_of()})
    sdata = base(bins=squares(4), table=table)
    with pytest.raises(KeyError, match=r"No layer 'counts' in table 'table'; there are \['more', 'raw'\]"):
        read(sdata, layer="counts")
    with pytest.raises(ValueError, match="The values of table 'table', layer 'raw' are not whole numbers"):
        read(sdata, layer="raw")


def test_an_unknown_table_lists_those_there_are():
    with pytest.raises(KeyError, match=r"No 'counts' among the tables; there are \['table'\]"):
        read(base(bins=squares(4), table=table_of(counts_of())), "counts")


def test_units_beside_the_image_are_refused():
    away = {"global": Scale([100, 100], axes=("x", "y"))}
    shapes = squares(4, transformations=away)
    shapes = shapes.assign(geometry=shapes.translate(500, 500))
    with pytest.raises(ValueError, match=r"No unit of table 'table' overlaps image 'he'.*\['global'\]"):
        read(base(bins=shapes, table=table_of(counts_of())))


def test_unknown_instances_are_refused():
    with pytest.raises(
        KeyError, match=r"1 of 4 ids are not in the index of the element that the table annotates, such as \[99\]"
    ):
        read(base(bins=squares(4), table=table_of(counts_of(), ids=[0, 1, 99, 2])))


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_of_one_name_are_told_apart():
    sdata = base(bins=squares(4), table=table_of(counts_of(), genes=["A", "B", "A"]))
    with pytest.warns(UserWarning, match="'table' has 1 gene names more than once.* such as 'A' as 'A-1'"):
        units = read(sdata)
    assert units.genes.tolist() == ["A", "B", "A-1"]
    np.testing.assert_array_equal(units.counts.toarray(), counts_of())
    assert sdata["table"].var_names.tolist() == ["A", "B", "A"]


def test_genes_by_the_other_kind_of_name():
    table = table_of(counts_of())
    table.var["gene_ids"] = ids = ["ENSG1", "ENSG2", "ENSG3"]
    units = read(base(bins=squares(4), table=table))
    message = r"not measured: \['ENSG2', 'ENSG3'\].*ACTB.*in its column var\['gene_ids'\]: rename by table.var_names ="
    with pytest.raises(KeyError, match=message):
        select_genes(units, ids[1:], 1)
    with pytest.raises(KeyError, match=r"'EPCAM'\]; there are 3, such as \['ACTB', 'ERBB2', 'CD3E'\]\."):
        select_genes(units, ["EPCAM"], 1)


def dnb_points(side, shift=0, key="bin{}_genes"):
    """Two rows of three bins, of which one is missing, some way into the chip."""
    corner = np.array([[0, 0], [1, 0], [2, 0], [0, 1], [2, 1]]) * side + 64
    points = PointsModel.parse(
        pd.DataFrame(corner + shift * np.eye(5)[:, :2], columns=["x", "y"]), transformations=HERE
    )
    key = key.format(side)
    return base(**{key: points, "table": table_of(counts_of(5), key)})


def test_bins_of_stereo_seq_are_squares():
    """Of 32 × 32 pixels of 0.5 µm: four superpixels each, from the upper left corner."""
    units = read(dnb_points(32))
    expected = np.zeros((5, 20, 25))
    for bin, (column, row) in enumerate([(4, 4), (6, 4), (8, 4), (4, 6), (8, 6)]):
        expected[bin, row : row + 2, column : column + 2] = 1
    np.testing.assert_allclose(units.overlap.toarray(), expected.reshape(5, -1), atol=1e-6)
    np.testing.assert_array_equal(units.array, [[2, 2], [2, 3], [2, 4], [3, 2], [3, 4]])


@pytest.mark.parametrize("other", [{"shift": 1}, {"key": "spots"}], ids=["off the lattice", "another name"])
def test_other_points_are_points(other):
    units = read(dnb_points(32, **other))
    np.testing.assert_array_equal(units.overlap.sum(axis=1), 1)
    assert units.overlap.nnz == 5 and units.array is None


def transcripts(xy, genes, **options):
    frame = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "gene": genes})
    return PointsModel.parse(frame, transformations=HERE, **{"feature_key": "gene", **options})


def scattered(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform([-20, -20], [420, 340], (n, 2)), rng.choice(["B", "A", "NegControlProbe_1"], n)


def test_transcripts_are_counted_by_superpixel():
    xy, genes = scattered()
    sdata = base(transcripts=transcripts(xy, genes))
    units = read(sdata, "transcripts")
    on_image = (xy >= 0).all(axis=1) & (xy < [400, 320]).all(axis=1)
    assert units.counts.sum() == on_image.sum()
    assert units.genes.tolist() == ["A", "B", "NegControlProbe_1"]
    dense = np.zeros((20, 25, 3))
    for (x, y), gene in zip(xy[on_image], genes[on_image], strict=True):
        dense[int(y // 16), int(x // 16), units.genes.get_loc(gene)] += 1
    np.testing.assert_array_equal(units.counts.toarray(), dense.reshape(-1, 3)[units.superpixels])
    np.testing.assert_array_equal(np.diff(units.superpixels) > 0, True)
    rebuilt = np.zeros(units.overlap.shape)
    rebuilt[np.arange(len(units.superpixels)), units.superpixels] = 1
    np.testing.assert_array_equal(units.overlap.toarray(), rebuilt)


def test_the_measured_area_has_gaps_filled_but_ends():
    """Transcripts in the left part only, with a hole of superpixels without any, and one far to the right."""
    y, x = np.indices((20, 25)).reshape(2, -1)
    left = (x < 10) & ~((x > 3) & (x < 7) & (y > 8) & (y < 12))
    xy = np.concatenate([np.stack([x, y], axis=1)[left], [[24, 19]]]) * 16 + 8.0
    units = read(base(transcripts=transcripts(xy, "A")), "transcripts")
    found = np.zeros(500, bool)
    found[units.superpixels] = True
    found = found.reshape(20, 25)
    assert found[:, :10].all() and found[19, 24]
    assert found.sum() == 201
    assert 24 - 10 > 2 * MEASURED_REACH


@pytest.mark.parametrize(("each", "radius"), [(1, 5), (10, 4), (60, 2)])
def test_a_hole_that_no_tissue_leaves_was_not_measured(each: int, radius: int):
    """The more transcripts, the smaller; but for what is near to some on both sides, as in corners."""
    y, x = np.indices((20, 25)).reshape(2, -1)
    hole = (x > 4) & (x < 20) & (y > 2) & (y < 18)
    narrow = (x == 2) & (y > 4) & (y < 12)
    xy = np.stack([x, y], axis=1)[~hole & ~narrow] * 16 + 8.0
    units = read(base(transcripts=transcripts(np.repeat(xy, each, axis=0), "A")), "transcripts")
    missing = np.setdiff1d(np.arange(500), units.superpixels)
    assert hole[missing].all()
    assert len(missing) > hole.sum() - 4 * radius**2


def test_transcripts_elsewhere_or_nameless_are_refused():
    xy, genes = scattered()
    with pytest.raises(ValueError, match="Only 0% of the transcripts 'transcripts' lie on image 'he'"):
        read(base(transcripts=transcripts(xy + 1000, genes)), "transcripts")
    nameless = PointsModel.parse(pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}), transformations=HERE)
    with pytest.raises(ValueError, match="no column 'feature_name'.*set feature_key in PointsModel.parse"):
        read(base(transcripts=nameless), "transcripts")


@pytest.fixture
def units():
    names = pd.Index(["ACTB", "BLANK_1", "NegControlProbe_7", "KRT5", "EMPTY", "antisense_KRT5"])
    counts = csr_matrix(np.array([[9, 9, 9, 4, 0, 9], [9, 9, 9, 1, 0, 9]]))
    return Units(names, counts, csr_matrix((2, 4)))


@pytest.mark.parametrize(("least", "chosen"), [(1, [0, 3]), (5, [0, 3]), (6, [0]), (0, [0, 3, 4])])
def test_genes_with_counts_but_no_control_probes(units, least, chosen):
    assert select_genes(units, None, least).tolist() == chosen


def test_genes_asked_for_come_in_that_order(units):
    assert select_genes(units, ["KRT5", "BLANK_1", "ACTB"], 100).tolist() == [3, 1, 0]


@pytest.mark.parametrize(
    ("genes", "least", "error", "message"),
    [
        (["ACTB", "ACTB", "KRT5"], 1, ValueError, r"names \['ACTB'\] more than once"),
        (["ACTB", "EPCAM"], 1, KeyError, r"1 of the genes asked for were not measured: \['EPCAM'\]; there are 6"),
        (["ACTB", "EMPTY"], 1, ValueError, r"have no counts: \['EMPTY'\]; leave them out"),
        (
            None,
            19,
            ValueError,
            r"None of the 3 genes .* has 19 counts or more \(the most is 18\)",
        ),
    ],
)
def test_genes_that_cannot_be_modelled_are_refused(units, genes, least, error, message):
    with pytest.raises(error, match=message):
        select_genes(units, genes, least)


@pytest.mark.parametrize(
    "name",
    [
        "NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0007", "DeprecatedCodeword_0318",
        "BLANK_0069", "antisense_SCGB3A1", "Intergenic_Region_10212",  # Xenium
        "Blank-17",  # MERSCOPE
        "NegPrb3", "Negative05", "SystemControl41", "FalseCode12",  # CosMx
    ],
)  # fmt: skip
def test_control_probes_of_vendors_are_not_modelled_unasked(name: str) -> None:
    genes = pd.Index(["NEGR1", name, "BLNK"])
    units = Units(genes, csr_array(np.full((4, 3), 50.0)), csr_array((4, 1)))
    assert genes[select_genes(units, None, 20)].tolist() == ["NEGR1", "BLNK"]
    assert select_genes(units, [name], 20).tolist() == [1]
