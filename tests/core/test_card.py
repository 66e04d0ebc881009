"""The card says what the model holds, as text and as a page that needs nothing else."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from pixel2gene.core.card import Card, card
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.platform import Platform
from pixel2gene.core.regression import History, Recipe
from pixel2gene.core.trust import fit_familiarity

PEARSON = np.array([np.nan, *np.linspace(-0.1, 0.6, 29)])
GENES = ["<i>A&B", *(f"G{i}" for i in range(1, 30))]


@pytest.fixture
def model() -> Model:
    scores = pd.DataFrame(
        {"mean_count": 1.5, "pearson": PEARSON, "pearson_share": PEARSON * 2, "dispersion": 0.25},
        index=pd.Index(GENES, name="gene"),
    )
    fold = np.zeros((1, 1), np.int8)
    return Model(
        genes=GENES,
        encoder={"name": "lite0", "mpp": 0.5, "licence": "Apache-2.0", "weights_sha256": "57ab" * 16},
        inputs={"image_key": "he", "table_key": "square_008um", "layer": None, "embedding_key": None},
        recipe=Recipe(folds=5, library_size=True),
        network=Ensemble(Architecture(5, 8, 30, (6, 4), 0.1, 0.2)),
        slides=[TrainingSlide("0f", "first", 0.8, fold, 64), TrainingSlide("1f", "<script>µ & co", 1.2, fold, 64)],
        scores=scores,
        history=History([10, 20, 30], [1.5, 1.25, 1.3]),
        version="1.2.3",
        familiarity=fit_familiarity(np.random.default_rng(0).normal(size=(60, 30)), np.arange(60) % 3),
    )


class Page(HTMLParser):
    """Cells of each row, and all that a page asks for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def facts(text: str) -> dict[str, str]:
    """Values by their labels, lines joined."""
    found: dict[str, str] = {}
    for line in text[: text.index("Not for")].splitlines():
        if line.startswith("  "):
            label, value = line[2:30].strip(), line[32:]
            if label:
                last = label
                found[last] = value
            else:
                found[last] += f" {value}"
    return found


def test_facts(model):
    found = facts(card(model).text)
    assert found["slides"] == "first (relative depth 0.8), <script>µ & co (relative depth 1.2)"
    assert (found["table"], found["image"], found["panel"]) == ("square_008um", "he", "30 genes")
    assert "layer" not in found
    assert found["recipe"] == "default with folds=5, library_size=True"
    assert (found["folds"], found["steps"]) == ("5", "20")
    assert found["version of pixel2gene"] == "1.2.3"
    assert found["started from"] == "random weights"
    assert found["licence"] == "Apache-2.0"
    assert found["SHA-256 of the weights"] == "57ab" * 16


def test_recipe_and_reference(model):
    found = facts(card(replace(model, recipe=PaperRecipe(), reference=["a", "b"])).text)
    assert found["recipe"] == "paper"
    assert found["started from"] == "a model of a, b"


def test_scores(model):
    found = facts(card(model).text)
    for threshold in (0.2, 0.3, 0.5):
        assert found[f"Pearson above {threshold}"] == f"{np.nansum(PEARSON > threshold):.0f} of 30 genes"
    assert found["median Pearson"] == f"{np.nanmedian(PEARSON):.2f}"
    assert found["median share of the ceiling"] == f"{np.nanmedian(2 * PEARSON):.2f}"
    assert found["best"] == ", ".join(f"G{i} {PEARSON[i]:.2f}" for i in range(29, 19, -1))
    assert found["worst"] == ", ".join(f"G{i} {PEARSON[i]:.2f}" for i in range(10, 0, -1))
    assert found["not scored"] == "<i>A&B"


def test_few_genes_are_named_once(model):
    few = facts(card(replace(model, genes=GENES[1:12], scores=model.scores[1:12])).text)
    assert few["best"].count("G") == 10
    assert few["worst"] == f"G1 {PEARSON[1]:.2f}"
    assert "not scored" not in few
    assert "worst" not in facts(card(replace(model, genes=GENES[1:4], scores=model.scores[1:4])).text)


def test_what_it_is_not_for(model):
    words = " ".join(card(model).text.split())
    assert "for research only" in words
    assert f"{30 - np.nansum(PEARSON > 0.2):.0f} of 30 have no out-of-fold Pearson above 0.2" in words
    page = Page(card(model).html)
    assert page.tags.count("li") == card(model).text.count("  - ") > 3


def test_text_keeps_its_width(model):
    slides = [replace(model.slides[0], name=f"slide number {i}") for i in range(40)]
    assert max(map(len, card(replace(model, slides=slides)).text.splitlines())) <= 100


def test_page_has_every_gene_best_first(model):
    page = Page(card(model).html)
    start = page.rows.index(["gene", "Pearson", "share of the ceiling", "dispersion", "counts per unit"])
    genes = page.rows[start + 1 :]
    assert [row[0] for row in genes] == [*GENES[:0:-1], GENES[0]]
    assert genes[0] == ["G29", "0.600", "1.200", "0.250", "1.500"]
    assert genes[-1] == ["<i>A&B", "–", "–", "0.250", "1.500"]


def test_page_says_what_the_text_says(model):
    made = card(model)
    cells = {row[0]: row[1] for row in Page(made.html).rows if len(row) == 2}
    assert cells == facts(made.text)


def test_names_are_no_markup_and_nothing_is_fetched(model):
    page = Page(card(model).html)
    assert page.open == []
    assert not {"script", "i", "img", "link", "iframe", "a"} & set(page.tags)
    assert page.attributes == {"class"}
    assert not [word for word in ("url(", "@import", "http") if word in card(model).html]
    assert card(model).html.isascii()


def test_shown_as_text_and_as_a_page(model):
    made = card(model)
    assert isinstance(made, Card)
    assert str(made) == repr(made) == made.text
    assert made._repr_html_() == made.html


def test_models_without_scores(model):
    scores = model.scores[["mean_count", "pearson"]].assign(pearson=np.nan)
    made = card(replace(model, scores=scores))
    found = facts(made.text)
    assert found["Pearson above 0.2"] == "0 of 30 genes"
    assert "best" not in found and "median share of the ceiling" not in found
    assert found["not scored"].count(",") == 9
    assert "30 of 30 have no" in made.text


def test_effects_of_the_platform_are_named_with_their_slide(model: Model) -> None:
    assert "none found" in card(model).text
    striped = replace(model.slides[0], platform=Platform(row_stripes=0.2, diffusion_um=8.0))
    text = card(replace(model, slides=[striped, model.slides[1]])).text
    assert "sd of row stripes 0.2 (first), diffusion (µm) 8 (first)" in text
    assert "diffusion (µm) 8\n" in card(replace(model, slides=[striped])).text
