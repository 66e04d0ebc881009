import json
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.model import CARD, FORMAT, WEIGHTS, Model, TrainingSlide
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.platform import Platform
from pixel2gene.core.regression import History, Recipe
from pixel2gene.core.trust import fit_familiarity

GENES = ["ACTB", "ERBB2", "CD3E"]


@pytest.fixture
def model():
    network = Ensemble(Architecture(5, 8, 3, (6, 4), 0.1, 0.2), torch.Generator().manual_seed(0)).eval()
    network.feature_mean.normal_()
    network.feature_sd.uniform_(1, 2)
    fold = np.array([[0, 1, 2], [-1, 3, 4]], np.int8)
    scores = pd.DataFrame(
        {"mean_count": [1.5, 0.25, 0.0], "pearson": [0.5, 1 / 3, np.nan]}, index=pd.Index(GENES, name="gene")
    )
    return Model(
        genes=GENES,
        encoder={"name": "lite0", "channels": 8, "mpp": 0.5},
        inputs={"image_key": "he", "table_key": "bins", "layer": None},
        recipe=Recipe(folds=5, hidden=(6, 4), check_steps=(3, 7), library_size=True),
        network=network,
        slides=[
            TrainingSlide("0f", "first", 0.8, fold, 64),
            TrainingSlide("1f", "zweiter µ", 1.2, fold + 1, 32, Platform(row_stripes=0.2, diffusion_um=8.5)),
        ],
        scores=scores,
        history=History([0, 10, 20], [2.0, 1.5, 1.25], [None, 1.75, 1.5]),
        version="1.2.3",
        reference=["atlas"],
        familiarity=fit_familiarity(np.random.default_rng(0).normal(size=(60, 30)), np.arange(60) % 3),
    )


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "model.p2g")
    return tmp_path / "model.p2g"


def edit(path, change):
    card = json.loads((path / CARD).read_text())
    change(card)
    (path / CARD).write_text(json.dumps(card))


def test_round_trip(model, saved):
    read = Model.load(saved)
    features = torch.randn(9, 8)
    assert torch.equal(read.network(features), model.network(features))
    assert not read.network.training
    pd.testing.assert_frame_equal(read.scores, model.scores)
    assert np.isnan(read.scores.loc["CD3E", "pearson"])
    for name in ("genes", "encoder", "inputs", "recipe", "history", "version", "reference"):
        assert getattr(read, name) == getattr(model, name)
    assert read.network.architecture == model.network.architecture
    for found, expected in zip(read.slides, model.slides, strict=True):
        np.testing.assert_array_equal(found.fold, expected.fold)
        assert found.fold.dtype == np.int8
        for name in ("fingerprint", "name", "depth", "side", "platform"):
            assert getattr(found, name) == getattr(expected, name)
    tissue = np.random.default_rng(1).normal(size=(9, 30))
    np.testing.assert_array_equal(read.familiarity.trust(tissue), model.familiarity.trust(tissue))


def test_round_trip_of_the_published_recipe(model, tmp_path):
    architecture = replace(model.network.architecture, dropout=0.0, input_dropout=0.0, link="elu")
    network = Ensemble(architecture, torch.Generator().manual_seed(0)).eval()
    network.scale.uniform_(1, 2)
    network.offset.uniform_()
    recipe = PaperRecipe(folds=5, hidden=(6, 4), epochs=3)
    replace(model, network=network, recipe=recipe).save(tmp_path / "paper.p2g")
    read = Model.load(tmp_path / "paper.p2g")
    assert read.recipe == recipe
    assert read.network.architecture == architecture
    features = torch.randn(9, 8)
    assert torch.equal(read.network.rates(features), network.rates(features))


@pytest.mark.parametrize("kind", [Recipe, PaperRecipe])
def test_the_card_names_the_recipe(model, tmp_path, kind):
    replace(model, recipe=kind()).save(tmp_path / "m.p2g")
    name = json.loads((tmp_path / "m.p2g" / CARD).read_text())["recipe"]["name"]
    assert name == {Recipe: "default", PaperRecipe: "paper"}[kind]


def test_models_of_the_format_before_are_bounded(model, saved):
    assert Model.load(saved).network.log_ceiling is None
    edit(saved, lambda card: card.update(format=2))
    ceiling = Model.load(saved).network.log_ceiling
    np.testing.assert_allclose(ceiling[:2].exp(), [1.5e4, 0.25e4], rtol=1e-5)
    assert torch.isfinite(ceiling).all()


def test_outputs_of_another_number_of_genes_are_refused(model, tmp_path):
    model.network.log_ceiling = torch.zeros(2)
    model.save(tmp_path / "m.p2g")
    with pytest.raises(ValueError, match="not as many outputs for held-out units or highest rates"):
        Model.load(tmp_path / "m.p2g")


def test_models_of_another_format_are_refused(saved):
    edit(saved, lambda card: card.update(format=1))
    with pytest.raises(ValueError, match=f"it has format 1, this version of pixel2gene reads {FORMAT}: fit it again"):
        Model.load(saved)


def test_models_that_kept_no_loss_are_read(model, saved):
    edit(saved, lambda card: card["history"].pop("loss"))
    assert Model.load(saved).history == History(model.history.step, model.history.deviance)


def test_some_of_the_genes_know_the_same_tissue(model):
    assert model.of_genes(GENES[1:]).familiarity is model.familiarity


def test_all_scores_may_be_nan(model, tmp_path):
    model.scores["pearson"] = np.nan
    model.save(tmp_path / "nan.p2g")
    pd.testing.assert_frame_equal(Model.load(tmp_path / "nan.p2g").scores, model.scores)


def test_the_folder_holds_strict_json_and_safetensors_only(saved):
    assert sorted(file.name for file in saved.iterdir()) == sorted([CARD, WEIGHTS])
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]

    def no_json(constant):
        raise AssertionError(constant)

    json.loads((saved / CARD).read_text(), parse_constant=no_json)
    load_file(saved / WEIGHTS)
    for file in saved.iterdir():
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads(file.read_bytes())


def test_a_path_that_exists_is_refused(model, saved):
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        model.save(saved)


def test_overwrite_replaces_a_model(model, saved):
    with torch.no_grad():
        model.network.biases[-1].fill_(7)
    model.save(saved, overwrite=True)
    assert (Model.load(saved).network.biases[-1] == 7).all()
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwrite_spares_what_is_no_model(model, tmp_path, kind):
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
        (path / "chapter.txt").write_text("dear")
    else:
        path.write_text("dear")
    with pytest.raises(FileExistsError, match="it is no model"):
        model.save(path, overwrite=True)
    assert ((path / "chapter.txt") if kind == "folder" else path).read_text() == "dear"


def test_a_crash_leaves_the_old_model(model, saved, monkeypatch):
    monkeypatch.setattr("pixel2gene.core.model.json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save(saved, overwrite=True)
    monkeypatch.undo()
    Model.load(saved)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("missing", [None, CARD, WEIGHTS])
def test_no_model_there(saved, missing):
    if missing is not None:
        (saved / missing).unlink()
    path = saved if missing is not None else saved.parent / "nothing"
    with pytest.raises(FileNotFoundError, match="No model at .*model.json and weights.safetensors"):
        Model.load(path)


def truncate(path):
    content = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(content[: len(content) // 2])


def without(path, prefix):
    tensors = load_file(path / WEIGHTS)
    name = next(name for name in tensors if name.startswith(prefix))
    save_file({key: value for key, value in tensors.items() if key != name}, path / WEIGHTS)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda path: (path / WEIGHTS).write_bytes(b""),
        lambda path: (path / CARD).write_text('{"format": 1,'),
        lambda path: (path / CARD).write_bytes(b"\xff\xfe\x00"),
        lambda path: (path / CARD).write_text("[]"),
        lambda path: (path / CARD).write_text("{}"),
        lambda path: edit(path, lambda card: card.update(format=FORMAT + 1)),
        lambda path: edit(path, lambda card: card["genes"].append("KRT5")),
        lambda path: edit(path, lambda card: card["architecture"].update(hidden=[6, 5])),
        lambda path: edit(path, lambda card: card["recipe"].update(magic=1)),
        lambda path: edit(path, lambda card: card["recipe"].update(name="secret")),
        lambda path: edit(path, lambda card: card["architecture"].update(link="elu")),
        lambda path: edit(path, lambda card: card.update(recipe=None)),
        lambda path: edit(path, lambda card: card.pop("inputs")),
        lambda path: edit(path, lambda card: card["scores"]["pearson"].pop()),
        lambda path: without(path, "network.weights"),
        lambda path: without(path, "fold."),
        lambda path: without(path, "familiarity.axes"),
    ],
)
def test_damage_is_told_in_one_error(saved, damage):
    damage(saved)
    with pytest.raises(ValueError, match="The model at .*model.p2g cannot be read: "):
        Model.load(saved)


def test_says_what_it_is(model):
    assert "3 genes on lite0 embeddings, 5 folds, trained on first, zweiter µ" in repr(model)
    assert "Pearson 0.417" in repr(model)
