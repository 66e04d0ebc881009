"""The fitted model and its folder: weights as safetensors, all else as JSON, never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pixel2gene.core.card import Card, card
from pixel2gene.core.ceiling import log_ceiling_of_mean
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.errors import first_line
from pixel2gene.core.lock import locked
from pixel2gene.core.paper import RECIPES, PaperRecipe
from pixel2gene.core.platform import NO_EFFECTS, Platform
from pixel2gene.core.regression import History, Recipe
from pixel2gene.core.trust import Familiarity
from pixel2gene.core.typed import require_types

FORMAT = 3
# Format 2 knows no outputs for held-out units apart from the others, and no highest rates.
READ = (2, FORMAT)
# What is raised where a file says other things than it should.
DAMAGED = (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError)
WEIGHTS, CARD = "weights.safetensors", "model.json"
FAMILIARITY = "familiarity."


@dataclass(frozen=True)
class TrainingSlide:
    """A slide that a model was trained on, so that what was held out of each member can be told.

    Attributes
    ----------
    fingerprint
        Of its H&E.
    name
        Under which it was given.
    depth
        Mean counts per tissue superpixel in relation to the mean over the training slides.
    fold, side
        Fold of every block of superpixels (-1: no unit), and the side of a block.
    platform
        What was found that the platform did to its counts.
    table_key
        Under which its counts were found. Several captures under one H&E are told apart by it.
    """

    fingerprint: str
    name: str
    depth: float
    fold: NDArray[np.int8]
    side: int
    platform: Platform = NO_EFFECTS
    table_key: str | None = None


@dataclass(frozen=True)
class Model:
    """A fitted model: reads expected counts per superpixel off an embedding.

    Attributes
    ----------
    genes
        In the order of the outputs.
    encoder
        Of the embedding that it reads: name, channels, mpp, superpixel side in µm, licence and hash of the weights.
    inputs
        Keys under which image and counts were found in the training slides; None for the counts of several tables.
    recipe
        How it was trained.
    network
        Ensemble with one member per fold.
    slides
        What it was trained on.
    scores
        Held-out scores per gene, see `pixel2gene.tl.evaluate`.
    history
        Loss and held-out deviance during training.
    version
        Of pixel2gene.
    familiarity
        What the training tissue looks like.
    reference
        Names of the slides that the model was trained on from which training started, if it started from one.
    fitted
        How it came about, so that the fit can be repeated: arguments, hashes of what was read by slide and key, and
        versions; None of models by early versions.

    Examples
    --------
    >>> model.save("model.p2g")
    >>> model = p2g.Model.load("model.p2g")
    >>> card = model.card()
    """

    genes: list[str]
    encoder: dict[str, Any]
    inputs: dict[str, str | None]
    recipe: Recipe | PaperRecipe
    network: Ensemble
    slides: list[TrainingSlide]
    scores: pd.DataFrame
    history: History
    version: str
    familiarity: Familiarity
    reference: list[str] | None = None
    fitted: dict[str, Any] | None = None

    def __repr__(self) -> str:
        r = self.scores["pearson"].mean()
        slides = ", ".join(slide.name for slide in self.slides)
        return (
            f"Model of {len(self.genes)} genes on {self.encoder['name']} embeddings, {self.recipe.folds} folds, "
            f"trained on {slides}; mean held-out Pearson {r:.3f}"
        )

    @property
    def tables(self) -> set[str]:
        """Keys of the counts that it was trained on."""
        named = {slide.table_key or self.inputs["table_key"] for slide in self.slides}
        return {key for key in named if key is not None}

    def of_genes(self, names: list[str]) -> Model:
        """The same model, of some of its genes."""
        if names == self.genes:
            return self
        unknown = [name for name in names if name not in self.scores.index]
        if unknown:
            raise KeyError(f"The model lacks {unknown[:5]}; it has {len(self.genes)} genes, such as {self.genes[:5]}.")
        network = self.network.of_genes(pd.Index(self.genes).get_indexer(pd.Index(names)))
        return dataclasses.replace(self, genes=names, network=network, scores=self.scores.loc[names])

    def card(self) -> Card:
        """What it was made of, how good it is, and what it is not for."""
        return card(self)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder.

        Parameters
        ----------
        path
            Folder to make, such as ``"model.p2g"``.
        overwrite
            Replace a model that is there.

        Raises
        ------
        FileExistsError
            If the path exists and `overwrite` is false, or if it is no model.
        OSError
            If the folder cannot be written, the disk is full, or another process is writing the model.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(f".{path.name}.lock"), f"the model {path}"):
                self._save(path, overwrite)
        except (FileExistsError, BlockingIOError):
            raise
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"The model cannot be written to {path} ({error}): make room or save it elsewhere; what was there is "
                "as it was."
            ) from error

    def _save(self, path: Path, overwrite: bool) -> None:
        """Aside first and then renamed, so that a crash leaves no half a model."""
        _restore(path)
        if path.exists() and not (overwrite and (path / CARD).exists()):
            reason = "it is no model" if overwrite else "pass overwrite=True to replace it"
            raise FileExistsError(f"{path} exists: {reason}.")
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            save_file(self._tensors(), partial / WEIGHTS)
            (partial / CARD).write_text(json.dumps(self._card() | {"weights_sha256": _sha256(partial)}, indent=1))
            if path.exists():
                os.rename(path, _replaced(path))
            os.rename(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _restore(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model from the folder that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no model at the path.
        ValueError
            If its files are damaged, or of another format.
        """
        path = Path(path)
        if not path.exists() and _replaced(path).exists():
            path = _replaced(path)
        if not (path / CARD).is_file() or not (path / WEIGHTS).is_file():
            raise FileNotFoundError(f"No model at {path}: a folder with {CARD} and {WEIGHTS} is expected.")
        try:
            stored = json.loads((path / CARD).read_text())
            if not isinstance(stored, dict):
                raise ValueError(f"{CARD} holds no JSON object: copy it again")
            if (found := stored["format"]) not in READ:
                raise ValueError(f"it has format {found}, this version of pixel2gene reads {FORMAT}: fit it again")
            if (expected := stored.get("weights_sha256")) not in (None, _sha256(path)):
                raise ValueError(f"{WEIGHTS} has not the SHA-256 {expected} that it was saved with: copy it again")
            tensors = load_file(path / WEIGHTS)
            model = cls(
                genes=stored["genes"],
                encoder=stored["encoder"],
                inputs=stored["inputs"],
                recipe=recipe_from(stored["recipe"]),
                network=_network(Architecture(**_with_tuples(stored["architecture"])), tensors),
                slides=[_slide(slide, tensors[f"fold.{i}"]) for i, slide in enumerate(stored["slides"])],
                scores=pd.DataFrame(stored["scores"], index=pd.Index(stored["genes"], name="gene"), dtype=float),
                history=History(**stored["history"]),
                version=stored["version"],
                familiarity=_familiarity(tensors),
                reference=stored["reference"],
                fitted=stored.get("fitted"),
            )
            require_types(model)
            _require_consistent(model)
            if found < FORMAT:
                _add_ceiling(model)
            return model
        except (*DAMAGED, OSError, ValueError) as error:
            raise ValueError(f"The model at {path} cannot be read: {first_line(error)}.") from error

    def _tensors(self) -> dict[str, NDArray[Any]]:
        weights = {f"network.{name}": value.cpu().numpy() for name, value in self.network.state_dict().items()}
        folds = {f"fold.{i}": slide.fold for i, slide in enumerate(self.slides)}
        return weights | folds | {f"{FAMILIARITY}{name}": value for name, value in vars(self.familiarity).items()}

    def _card(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "genes": self.genes,
            "encoder": self.encoder,
            "inputs": self.inputs,
            "recipe": recipe_values(self.recipe),
            "architecture": dataclasses.asdict(self.network.architecture),
            "slides": [
                {
                    "fingerprint": s.fingerprint,
                    "name": s.name,
                    "depth": s.depth,
                    "side": s.side,
                    "platform": dataclasses.asdict(s.platform),
                    "table_key": s.table_key,
                }
                for s in self.slides
            ],
            "reference": self.reference,
            "fitted": self.fitted,
            "history": dataclasses.asdict(self.history),
            # NaN is no JSON.
            "scores": {
                name: [None if np.isnan(value) else float(value) for value in column]
                for name, column in self.scores.items()
            },
        }


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def _restore(path: Path) -> None:
    """Put back a model that was set aside and not replaced, by this process or one that died."""
    if path.exists():
        shutil.rmtree(_replaced(path), ignore_errors=True)
    elif _replaced(path).exists():
        os.rename(_replaced(path), path)


def _sha256(path: Path) -> str:
    with open(path / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _network(architecture: Architecture, tensors: dict[str, NDArray[Any]]) -> Ensemble:
    """Built without memory first, so that sizes that are not those of the weights take none."""
    require_types(architecture)
    with torch.device("meta"):
        network = Ensemble(architecture)
    own = {name[8:]: torch.from_numpy(value).float() for name, value in tensors.items() if name.startswith("network.")}
    network.load_state(own, assign=True)
    return network.eval()


def _require_consistent(model: Model) -> None:
    architecture = model.network.architecture
    if architecture.genes != len(model.genes):
        raise ValueError(f"it has {len(model.genes)} genes but {architecture.genes} outputs")
    if len(set(model.genes)) < len(model.genes) or "pearson" not in model.scores:
        raise ValueError("its genes or their scores are not those of a model")
    if any(value is not None and value.shape[-1] != len(model.genes) for value in model.network.optional()):
        raise ValueError(
            f"it has {len(model.genes)} genes, but not as many outputs for held-out units or highest rates"
        )
    if model.encoder.get("channels") != architecture.channels or not isinstance(model.encoder.get("name"), str):
        raise ValueError(f"its encoder is not one of {architecture.channels} channels")
    if not model.history.step or len(model.history.step) != len(model.history.deviance):
        raise ValueError("its history is not that of a training")
    if any(slide.fold.ndim != 2 or slide.side < 1 for slide in model.slides):
        raise ValueError("its folds are not those of slides")


def _add_ceiling(model: Model) -> None:
    """Bound the rates of a model that was stored when none were."""
    network = model.network
    if network.architecture.link == "exp" and "mean_count" in model.scores:
        network.log_ceiling = log_ceiling_of_mean(model.scores["mean_count"].fillna(0).to_numpy())


def _slide(stored: dict[str, Any], fold: NDArray[np.int8]) -> TrainingSlide:
    return TrainingSlide(**stored | {"fold": fold, "platform": Platform(**stored["platform"])})


def _familiarity(tensors: dict[str, NDArray[Any]]) -> Familiarity:
    arrays = {name.removeprefix(FAMILIARITY): value for name, value in tensors.items() if name.startswith(FAMILIARITY)}
    return Familiarity(**arrays)


def recipe_values(recipe: Recipe | PaperRecipe) -> dict[str, Any]:
    """Say a recipe in what JSON knows."""
    name = next(name for name, kind in RECIPES.items() if isinstance(recipe, kind))
    return {"name": name, **dataclasses.asdict(recipe)}


def recipe_from(values: dict[str, Any]) -> Recipe | PaperRecipe:
    """Make the recipe of `recipe_values`."""
    named = _with_tuples(values)
    return RECIPES[named.pop("name")](**named)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
