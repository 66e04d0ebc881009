"""The page holds all that it needs, and says what it leaves out."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from spatialdata import SpatialData, deepcopy
from spatialdata.transformations import Sequence, Translation, get_transformation, set_transformation

import pixel2gene as p2g
from pixel2gene.core.alignment import Alignment
from pixel2gene.pl._panels import GeneMaps, Panel
from pixel2gene.pl._raster import scaled
from pixel2gene.report import write_report
from pixel2gene.report.page import _alignment, _in_order, _json, _read, _within
from pixel2gene.report.pictures import GenePictures, SlidePictures, on_frame

SMALL = "so that the page stays small: the best by held-out Pearson"
VOID = {"meta", "link", "img", "input"}


class Parsed(HTMLParser):
    """Tags with their attributes, scripts by their ids, and the text of everything else."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.open: list[str] = []
        self.words = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.tags[-1][1].get("id") or "code"] = data
        elif self.open and self.open[-1] != "style":
            self.words += re.sub(r"\s+", " ", data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def decoded(source: str) -> Image.Image:
    kind, data = re.fullmatch(r"data:image/(png|webp);base64,(.+)", source).groups()
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.format.lower() == kind
    image.load()
    return image


@pytest.fixture(scope="module")
def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))


def test_nothing_is_fetched(page: Path, parsed: Parsed) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text, re.IGNORECASE)
    assert "url(" not in text and "@import" not in text
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    assert {"http-equiv": "Content-Security-Policy"}.items() <= parsed.all("meta")[3].items()
    assert parsed.all("meta")[3]["content"].startswith("default-src 'none'")


def test_all_genes_are_there_and_their_pictures_decode(parsed: Parsed, fitted_once: p2g.Model) -> None:
    index = json.loads(parsed.scripts["index"])
    assert sorted(gene["name"] for gene in index) == sorted(fitted_once.genes)
    scores = fitted_once.scores
    for i, gene in enumerate(index):
        assert gene["pearson"] == pytest.approx(scores.at[gene["name"], "pearson"])
        maps = json.loads(parsed.scripts[f"maps-{i}"])
        assert list(maps) == ["measured", "denoised", "predicted"]
        assert len({decoded(source).size for source in maps.values()}) == 1
    assert f"All {len(index)} genes of the model are here." in parsed.words
    for attributes in parsed.all("img"):
        assert min(decoded(attributes["src"]).size) > 20


def test_it_tells_what_was_read_and_made(parsed: Parsed, fitted_once: p2g.Model, finished: SpatialData) -> None:
    text = parsed.words
    assert "768 x 768 px (0.38 x 0.38 mm)" in text
    assert "0.5 µm, by transform to 'micrometers': 0.5" in text
    assert f"counts: {finished['counts'].n_obs} units x {finished['counts'].n_vars} genes" in text
    assert f"{finished['predicted'].n_obs} superpixels of 8 µm hold tissue" in text
    above = int((fitted_once.scores["pearson"] > 0.3).sum())
    assert f"{above} of {len(fitted_once.genes)} genes have a Pearson correlation above 0.3" in text
    assert fitted_once.scores["pearson"].idxmax() in text
    assert "pixel2gene model of 40 genes" in text and "For research use only" in text
    assert p2g.__version__ in text
    assert "<slide> & co" in text


def test_it_is_accessible(parsed: Parsed) -> None:
    assert parsed.all("html") == [{"lang": "en"}]
    assert all(attributes.get("alt") for attributes in parsed.all("img"))
    labelled = {attributes["for"] for attributes in parsed.all("label")}
    controls = [attributes["id"] for tag in ("input", "select") for attributes in parsed.all(tag)]
    assert set(controls) == labelled
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in parsed.all("a"):
        assert attributes["href"][1:] in ids
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_the_template_is_part_of_the_package() -> None:
    assert (resources.files("pixel2gene.report") / "templates" / "page.html").is_file()


def test_genes_asked_for_come_first_then_the_best(fitted_once: p2g.Model) -> None:
    ranked = fitted_once.scores["pearson"].fillna(-9).sort_values(ascending=False, kind="stable").index.tolist()
    asked = [ranked[20], "nope", ranked[3], ranked[20]]
    order, unknown = _in_order(fitted_once, asked)
    assert order[:2] == [ranked[20], ranked[3]] and unknown == ["nope"]
    assert order[2:] == [gene for gene in ranked if gene not in order[:2]]


@pytest.mark.parametrize(
    ("budget", "least", "number"), [(100, 0, 3), (99, 0, 3), (90, 0, 3), (89, 0, 2), (0, 2, 2), (0, 0, 1)]
)
def test_pictures_are_bounded(budget: int, least: int, number: int) -> None:
    pictures = GenePictures(1.0, {"measured": "x" * 10, "predicted": "y" * 20})
    assert list(_within(budget, list("abcdef"), least, lambda _: pictures)) == list("abcdef")[:number]


def test_genes_left_out_are_told(finished: SpatialData, fitted_once: p2g.Model, tmp_path: Path) -> None:
    worst = fitted_once.scores["pearson"].idxmin()
    write_report(finished, fitted_once, tmp_path / "a.html", name="a", genes=[worst, "nope"], budget=0)
    found = Parsed((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [gene["name"] for gene in json.loads(found.scripts["index"])] == [worst]
    assert f"1 of the 40 genes of the model are here, {SMALL}, and those asked for ({worst})" in found.words
    assert "Not modelled, because they were not measured or have too few counts: nope." in found.words
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_odd_slides(finished: SpatialData, fitted_once: p2g.Model, tmp_path: Path) -> None:
    """Counts in a layer that lie off, without scores, without denoised counts."""
    sdata = deepcopy(finished)
    sdata["counts"].layers["raw"] = sdata["counts"].X
    sdata["counts"].X = None
    for name, old in get_transformation(sdata["square_008um"], get_all=True).items():
        shift = Translation([40 if name == "micrometers" else 80, 0], axes=("x", "y"))
        set_transformation(sdata["square_008um"], Sequence([old, shift]), name)
    del sdata["denoised"], sdata["denoised_map"]
    bare = replace(fitted_once, scores=fitted_once.scores.assign(pearson=np.nan))
    write_report(sdata, bare, tmp_path / "a.html", name="a", layer="raw", budget=0)
    found = Parsed((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "The counts seem to lie +" in found.words or "cannot be told" in found.words
    assert "none could be scored" in found.words and "None has a Pearson above 0.3" in found.words
    assert list(json.loads(found.scripts["maps-0"])) == ["measured", "predicted"]
    assert json.loads(found.scripts["index"])[0]["pearson"] is None


@pytest.mark.parametrize(
    ("known", "off", "verdict"),
    [
        (False, False, "How the counts are aligned to the H&E cannot be told"),
        (True, True, "The counts seem to lie +3.0 ± 1.0 µm in x and -4.0 ± 2.0 µm in y from where the H&E says"),
        (True, False, "The counts lie where the H&E says: +3.0 ± 1.0 µm in x and -4.0 ± 2.0 µm in y"),
    ],
)
def test_alignment_is_told(monkeypatch: pytest.MonkeyPatch, known: bool, off: bool, verdict: str) -> None:
    shifts = np.arange(-8.0, 9, 4)
    found = Alignment((3.0, -4.0), (1.0, 2.0), 0.0, 0.1, 8.0, shifts, np.eye(5), known, off)
    monkeypatch.setattr("pixel2gene.report.page.tl.check_alignment", lambda *_, **__: found)
    told = _alignment(SpatialData(), "he", "counts", None, 0.5)
    assert told["verdict"].startswith(verdict)
    assert decoded(told["figure"]).size[0] > 100


def test_too_few_units_to_check_the_alignment_of(finished: SpatialData) -> None:
    few = deepcopy(finished)
    few["few"] = few["counts"][:20].copy()
    facts, told = _read(few, "he", "few", None)
    assert told["verdict"].startswith("Not checked: 20 units of 'few'") and told["figure"] is None
    assert facts["counts"].startswith("few: 20 units")


def test_maps_have_the_colours_of_their_values(finished: SpatialData, fitted_once: p2g.Model) -> None:
    gene = fitted_once.scores["pearson"].idxmax()
    maps = GeneMaps(finished, "he", (0, 768, 768, 0), "counts", "denoised", "predicted")
    pictures = SlidePictures(maps, gene)
    drawn = pictures.gene(gene)
    rgb = np.asarray(decoded(drawn.maps["predicted"]).convert("RGB")) / 255
    raster = finished["predicted_map"].sel(c=gene).to_numpy().astype(float)
    left, right, bottom, top = (round(edge / 16) for edge in pictures.window)
    shown = raster[top:bottom, left:right]
    assert rgb.shape[:2] == shown.shape
    inside = np.isfinite(shown)
    assert (rgb[~inside] == 1).all()
    expected = mpl.colormaps["viridis"]((shown[inside] / drawn.top).clip(0, 1))[:, :3]
    assert np.abs(rgb[inside] - expected).max() < 0.04


def test_frames_look_up_the_nearest_value() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    panel = Panel("", values, scaled(10.0, 5.0, 0.0))
    found = on_frame(panel, (0, 60, 40, 0), (4, 6))
    # Six columns of 10 px from x = 0: the middle of the first is on the border of the raster.
    np.testing.assert_array_equal(found[:3, :4], values)
    assert np.isnan(found[3]).all() and np.isnan(found[:, 4:]).all()


def test_scripts_hold_no_tags() -> None:
    text = str(_json({"a": "</script><!-- & \u2028"}))
    assert "<" not in text and json.loads(text) == {"a": "</script><!-- & \u2028"}
