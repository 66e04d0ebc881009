"""What a model was made of, how good it is, and what it is not for, to read."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from pixel2gene.core.paper import RECIPES

if TYPE_CHECKING:
    from pixel2gene.core.model import Model, TrainingSlide

THRESHOLDS = (0.5, 0.3, 0.2)
NAMED = 10  # genes at either end
COLUMNS = {
    "pearson": "Pearson",
    "pearson_ceiling": "ceiling",
    "pearson_share": "share of the ceiling",
    "deviance_explained": "deviance explained",
    "dispersion": "dispersion",
    "mean_count": "counts per unit",
}
ENCODER = {
    "mpp": "µm per pixel",
    "superpixel_um": "superpixel (µm)",
    "weights_sha256": "SHA-256 of the weights",
    "overlap": "overlap of windows",
    "stain": "stain normalised by",
    "scales": "fields seen, times its own",
}
EFFECTS = {
    "row_stripes": "sd of row stripes",
    "column_stripes": "sd of column stripes",
    "diffusion_um": "diffusion (µm)",
    "capture": "sd of log capture",
}
WIDTH, LABEL_WIDTH = 100, 28
# No colours of its own: it has those of the page, light or dark.
STYLE = """
.p2g-card {max-width: 60em; color: inherit}
.p2g-card h3, .p2g-card h4 {margin: 1em 0 .3em}
.p2g-card table {border-collapse: collapse; margin: 0; color: inherit}
.p2g-card th, .p2g-card td {text-align: left; vertical-align: top; padding: .15em 1em .15em 0;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, .3); overflow-wrap: anywhere; white-space: normal}
.p2g-card th {font-weight: normal; opacity: .75; white-space: nowrap}
.p2g-card th, .p2g-card td, .p2g-card li {line-height: 1.4}
.p2g-card summary {cursor: pointer; margin-top: .6em}
.p2g-card .genes {max-height: 30em; overflow: auto}
.p2g-card .genes td {text-align: right; font-variant-numeric: tabular-nums}
.p2g-card .genes td:first-child {text-align: left}
"""

type _Facts = dict[str, dict[str, str]]


@dataclass(frozen=True, repr=False)
class Card:
    """The card of a model: shown as a page in a notebook, printed as text.

    Attributes
    ----------
    text
        In lines of up to 100 characters.
    html
        The same with a table of all genes, as a fragment of a page in ASCII that needs nothing else.
    """

    text: str
    html: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def card(model: Model) -> Card:
    """Write the card of a model."""
    title = f"pixel2gene model of {len(model.genes)} genes"
    facts = {
        "Training": _training(model),
        "Encoder": {ENCODER.get(name, name): str(value) for name, value in model.encoder.items() if value is not None},
        "Out-of-fold scores": _scores(model.scores),
    }
    limits = _limits(model)
    return Card(_text(title, facts, limits), _html(title, facts, limits, model.scores))


def _training(model: Model) -> dict[str, str]:
    recipe = model.recipe
    name = next(name for name, kind in RECIPES.items() if isinstance(recipe, kind))
    usual = dataclasses.asdict(RECIPES[name]())
    changed = [f"{key}={value}" for key, value in dataclasses.asdict(recipe).items() if value != usual[key]]
    return {
        "slides": ", ".join(f"{slide.name} (relative depth {slide.depth:.2g})" for slide in model.slides),
        "effects of the platform": ", ".join(_effects(model.slides)) or "none found",
        **{key.removesuffix("_key"): value for key, value in model.inputs.items() if value is not None},
        "panel": f"{len(model.genes)} genes",
        "recipe": name + (f" with {', '.join(changed)}" if changed else ""),
        "folds": str(recipe.folds),
        "steps": str(model.history.step[model.history.best]),
        "started from": "random weights" if model.reference is None else f"a model of {', '.join(model.reference)}",
        "version of pixel2gene": model.version,
    }


def _effects(slides: list[TrainingSlide]) -> Iterator[str]:
    for slide in slides:
        found = {name: getattr(slide.platform, name) for name in EFFECTS}
        for name, value in found.items():
            if value > 0:
                yield f"{EFFECTS[name]} {value:.2g}" + (f" ({slide.name})" if len(slides) > 1 else "")


def _scores(scores: pd.DataFrame) -> dict[str, str]:
    ranked = scores["pearson"].dropna().sort_values(ascending=False)
    facts = {f"Pearson above {t}": f"{(ranked > t).sum()} of {len(scores)} genes" for t in THRESHOLDS}
    facts["median Pearson"] = f"{ranked.median():.2f}"
    if "pearson_share" in scores:
        facts["median share of the ceiling"] = f"{scores['pearson_share'].median():.2f}"
    facts["best"] = _named(ranked[:NAMED])
    facts["worst"] = _named(ranked[NAMED:][-NAMED:])
    facts["not scored"] = ", ".join(scores.index[scores["pearson"].isna()][:NAMED])
    return {label: value for label, value in facts.items() if value}


def _named(ranked: pd.Series) -> str:
    return ", ".join(f"{gene} {value:.2f}" for gene, value in ranked.items())


def _limits(model: Model) -> list[str]:
    poor = len(model.genes) - int((model.scores["pearson"] > THRESHOLDS[-1]).sum())
    return [
        "Diagnosis, treatment or any other decision about a patient: it is for research only.",
        "Other tissues, species, stains, scanners or fixations than those of its slides: it was not scored on any, nor "
        "on slides of other patients. The scores are of regions left out of its own slides.",
        f"Genes that it does not read off the H&E: {poor} of {len(model.genes)} have no out-of-fold Pearson above "
        f"{THRESHOLDS[-1]}.",
        "Absolute quantities: values are counts that are expected at the depth of its slides, with their platform and "
        "panel, not molecules per cell.",
        "Tests and gene-gene correlations that take predictions for measurements: all genes are read off the same H&E, "
        "so that they vary less, and more alike, than expression itself.",
    ]


def _text(title: str, facts: _Facts, limits: list[str]) -> str:
    lines = [title]
    for heading, rows in facts.items():
        lines += ["", heading]
        lines += [_indented(f"  {label:{LABEL_WIDTH}}  ", value) for label, value in rows.items()]
    lines += ["", "Not for", *(_indented("  - ", limit) for limit in limits)]
    return "\n".join(lines)


def _indented(label: str, value: str) -> str:
    indent = " " * len(label)
    return textwrap.fill(value, WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False)


def _html(title: str, facts: _Facts, limits: list[str], scores: pd.DataFrame) -> str:
    parts = [f"<style>{STYLE}</style>", f"<h3>{escape(title)}</h3>"]
    for heading, rows in facts.items():
        cells = (f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>" for label, value in rows.items())
        parts.append(f"<h4>{escape(heading)}</h4><table>{''.join(cells)}</table>")
    parts.append(_gene_table(scores))
    parts.append(f"<h4>Not for</h4><ul>{''.join(f'<li>{escape(limit)}</li>' for limit in limits)}</ul>")
    # Right whatever encoding a page declares.
    return f'<div class="p2g-card">{"".join(parts)}</div>'.encode("ascii", "xmlcharrefreplace").decode()


def _gene_table(scores: pd.DataFrame) -> str:
    """Every gene, best first."""
    columns = [name for name in COLUMNS if name in scores]
    head = "".join(f"<th>{label}</th>" for label in ["gene", *(COLUMNS[name] for name in columns)])
    rows = []
    for gene, *values in scores.sort_values("pearson", ascending=False)[columns].itertuples():
        cells = [escape(str(gene)), *("&ndash;" if pd.isna(value) else f"{value:.3f}" for value in values)]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<details><summary>all {len(scores)} genes</summary>"
        f'<div class="genes"><table><tr>{head}</tr>{body}</table></div></details>'
    )
