"""Another encoder is one argument: what it leaves in the record, the model and its card."""

import json
from pathlib import Path

import numpy as np
import pytest
from spatialdata import read_zarr
from typer.testing import CliRunner

import pixel2gene as p2g
from pixel2gene.cli import app
from pixel2gene.core.regression import Recipe

runner = CliRunner()


def test_a_folder_of_weights_from_pixels_to_the_card(embedded, timm_folder):
    folder = timm_folder("my-vit", patch_size=14, reg_tokens=4)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n")
    p2g.tl.embed(embedded, "he", encoder=folder, key_added="he_vit", progress=False)
    record = embedded.attrs["pixel2gene"]["he_vit"]["encoder"]
    assert (record["name"], record["licence"], record["overlap"]) == ("my-vit", "cc-by-nc-nd-4.0", 0.5)
    assert record["channels"] == 3 * (24 + 7) == embedded["he_vit"].sizes["c"]
    inside = embedded["he_tissue"].data.compute() > 0
    values = embedded["he_vit"].data.compute()
    assert np.isfinite(values).all() and not values[:, ~inside].any()
    assert (values[:24, inside].std(axis=1) > 0).all()

    genes = embedded["counts"].var_names[:3].tolist()
    recipe = Recipe(folds=3, hidden=(8,), max_checks=1)
    model = p2g.tl.fit(
        embedded, "counts", image_key="he", embedding_key="he_vit", genes=genes, recipe=recipe, progress=False
    )
    assert model.encoder == record
    text = model.card().text
    assert record["weights_sha256"] in text and "cc-by-nc-nd-4.0" in text
    with pytest.raises(ValueError, match="my-vit"):
        p2g.tl.predict(embedded, model, embedding_key="he_embedding", progress=False)


def test_overlap_is_refused_where_there_are_no_windows(embedded):
    with pytest.raises(ValueError, match="'lite0' sees every superpixel with 128 px around it"):
        p2g.tl.embed(embedded, "he", overlap=0.5, key_added="again", progress=False)
    assert "again" not in embedded


def test_stain_is_kept_in_the_record_and_asked_for_again(embedded, fitted):
    assert fitted.encoder["stain"] is None and "stain" not in fitted.card().text.split("Not for")[0]
    plain = embedded["he_embedding"].data.compute()
    p2g.tl.embed(embedded, "he", stain="macenko", overwrite=True, progress=False)
    assert embedded.attrs["pixel2gene"]["he_embedding"]["encoder"]["stain"] == "macenko"
    assert not np.array_equal(embedded["he_embedding"].data.compute(), plain)
    with pytest.raises(ValueError, match="stain: model None, embedding macenko"):
        p2g.tl.predict(embedded, fitted, progress=False)
    with pytest.raises(
        ValueError, match=r"stain='h&e'; one of \['macenko', 'vahadane', 'reinhard'\], or None, expected"
    ):
        p2g.tl.embed(embedded, "he", stain="h&e", overwrite=True, progress=False)


def test_scales_are_kept_in_the_record_and_asked_for_again(embedded, fitted):
    assert fitted.encoder["scales"] is None
    p2g.tl.embed(embedded, "he", scales=(1, 2), key_added="he_wide", progress=False)
    record = embedded.attrs["pixel2gene"]["he_wide"]["encoder"]
    assert record["scales"] == [1, 2] and record["channels"] == embedded["he_wide"].sizes["c"] == 4 * 183
    with pytest.raises(ValueError, match=r"scales: model None, embedding \[1, 2\]"):
        p2g.tl.predict(embedded, fitted, embedding_key="he_wide", progress=False)

    genes = embedded["counts"].var_names[:3].tolist()
    recipe = Recipe(folds=3, hidden=(8,), max_checks=1)
    model = p2g.tl.fit(
        embedded, "counts", image_key="he", embedding_key="he_wide", genes=genes, recipe=recipe, progress=False
    )
    assert model.encoder == record and "[1, 2]" in model.card().text
    with pytest.raises(ValueError, match=r"scales: model \[1, 2\], embedding None"):
        p2g.tl.predict(embedded, model, embedding_key="he_embedding", progress=False)
    # Trust is by the superpixels themselves and what is near.
    np.testing.assert_allclose(model.familiarity.mean, fitted.familiarity.mean, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"scales=\(2, 1\): whole numbers expected that grow from 1"):
        p2g.tl.embed(embedded, "he", scales=(2, 1), key_added="again", progress=False)


def test_an_unknown_encoder_lists_those_there_are(embedded):
    with pytest.raises(ValueError, match=r"No encoder 'resnet'; there are \[.*'lite0'.*'uni'.*\], and folders"):
        p2g.tl.embed(embedded, "he", encoder="resnet", key_added="again", progress=False)


def test_the_command_line_lists_encoders():
    shown = runner.invoke(app, ["encoders"])
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert len(lines) == 1 + len(p2g.encoders())
    assert any(line.startswith("h-optimus-0 ") and "Apache-2.0" in line for line in lines)
    listed = json.loads(runner.invoke(app, ["encoders", "--json"]).output)
    assert [row["name"] for row in listed] == list(p2g.encoders().index)
    assert listed[0]["mean"] == [0.5, 0.5, 0.5]


def test_the_command_line_takes_an_encoder(embedded, tmp_path: Path):
    embedded.write(tmp_path / "slide.zarr")
    out = tmp_path / "out.zarr"
    result = runner.invoke(app, ["run", str(tmp_path / "slide.zarr"), "--out", str(out), "--encoder", "resnet"])
    assert result.exit_code == 1
    assert "Embed the H&E" in result.output and "No encoder 'resnet'" in result.stderr


@pytest.mark.usefixtures("short_default")
def test_the_command_line_takes_scales(embedded, tmp_path: Path):
    store, model = str(tmp_path / "slide.zarr"), tmp_path / "model.p2g"
    embedded.write(store)
    fit = ["fit", store, "--out", str(model), "--scale", "1", "--scale", "2"]
    fit += ["--gene", str(embedded["counts"].var_names[0])]
    result = runner.invoke(app, fit)
    assert result.exit_code == 1 and "'he_embedding' was made at scales [1], not [1, 2]" in result.stderr
    result = runner.invoke(app, [*fit, "--embedding-key", "he_wide"])
    assert result.exit_code == 0, result.output
    assert p2g.Model.load(model).encoder["scales"] == [1, 2]

    new = str(tmp_path / "new.zarr")
    del embedded["he_embedding"], embedded["counts"]
    embedded.write(new)
    result = runner.invoke(app, ["predict", new, str(model)])
    assert result.exit_code == 0, result.output
    assert read_zarr(new).attrs["pixel2gene"]["he_wide"]["encoder"]["scales"] == [1, 2]
