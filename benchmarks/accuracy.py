"""Accuracy of filling, denoising and predicting new slides, next to the methods that a reader would ask for.

    uv run python benchmarks/accuracy.py table      one scoreboard: all methods, same features, same splits
    uv run python benchmarks/accuracy.py stop       does training stop at the right time?
    uv run python benchmarks/accuracy.py deciles    18,000 genes in one fit: do rare genes suffer?
    uv run python benchmarks/accuracy.py ablation   what each choice of the default recipe is worth

Scores are means over genes of Pearson's correlation, medians over seeds. Simulated slides are scored against the true
rates (denoising: true counts of the measured units, which leave out the noise of single units, as the layer "expected"
does), real sections against log-normalised counts. A constant has no correlation: "gene mean" counts as 0, as does any
gene for which a method predicts the same everywhere.
"""

from __future__ import annotations

import fnmatch
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import sections
import typer
from methods import (
    Fitted,
    Method,
    PaperOptions,
    mean_pearson,
    measurement,
    methods,
    pearson,
    pixel2gene,
    ridge,
)
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from slides import (
    HELD_BACK,
    OTHER_PICTURE,
    SOURCES,
    Options,
    Sizes,
    Source,
    Training,
    blocks,
    half,
    nothing,
    training,
    why_missing,
)

import pixel2gene as p2g
from pixel2gene.core import regression
from pixel2gene.core.device import choose_device
from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.outputs import finish, leading_genes

TASKS = ("fill half", "fill blocks", "denoise", "new slide")
NO_RIVALS = ("default", "oracle")
DECILES = 10
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "genes weighted by 1 / mean": {"gene_power": 1},
    "genes not weighted": {"gene_power": 0},
    "last layer of 64": {"hidden": (256, 256, 64)},
    "two layers": {"hidden": (256, 16)},
    "two layers, last of 64": {"hidden": (256, 64)},
    "four layers": {"hidden": (256, 256, 256, 16)},
    "10 folds": {"folds": 10},
    "dropout 0.2": {"dropout": 0.2, "input_dropout": 0.2},
}

Row = dict[str, Any]

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
Out = Annotated[Path | None, typer.Option(help="JSON to write, row by row as they come.")]
Data = Annotated[str, typer.Option(help="Rows: patterns separated by commas, such as 'hd,*/C2' or '*,-visium*'.")]
Side = Annotated[int, typer.Option(help="Height and width in pixels of 0.5 µm.")]


class Rows:
    """Results so far, written whenever one is added, so that a killed run keeps what it has."""

    def __init__(self, out: Path | None, options: dict[str, Any], *, resume: bool = False) -> None:
        self._out, self._options = out, options
        self.rows: list[Row] = []
        if resume and out is not None and out.exists():
            found = json.loads(out.read_text())
            if found["options"] != options:
                raise typer.BadParameter(f"{out} was made with {found['options']}.", param_hint="--resume")
            self.rows = found["rows"]

    def has(self, data: str, tasks: list[str], seed: int, method: str) -> bool:
        found = {row["task"] for row in self.rows if (row["data"], row["seed"], row["method"]) == (data, seed, method)}
        return found.issuperset(tasks)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if self._out is not None:
            aside = self._out.with_name(f".{self._out.name}.partial")
            aside.write_text(json.dumps({"options": self._options, "rows": self.rows}, indent=1))
            os.replace(aside, self._out)


@app.command()
def table(
    out: Out = None,
    data: Data = "*",
    tasks: Annotated[str, typer.Option(help=f"Of {', '.join(TASKS)}.")] = "*",
    method: Annotated[str, typer.Option("--methods", help=f"Of {', '.join(methods(PaperOptions()))}.")] = "*",
    seeds: int = 3,
    side: Side = Sizes.side,
    visium_side: Side = Sizes.visium_side,
    genes: int = Sizes.genes,
    transcriptome_genes: Annotated[int, typer.Option(help="Sampled of 18,000.")] = Sizes.transcriptome_genes,
    paper_folds: int = PaperOptions.folds,
    paper_epochs: int = PaperOptions.epochs,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that are in the JSON.")] = False,
) -> None:
    """Score all methods on all data."""
    sizes = Sizes(side, visium_side, genes, transcriptome_genes)
    paper = PaperOptions(paper_folds, paper_epochs)
    known = methods(paper)
    chosen_tasks, chosen = matching(TASKS, tasks, "--tasks"), matching(known, method, "--methods")
    names = available(matching([*SOURCES, sections.NAME], data, "--data"))
    rows = Rows(out, {**asdict(sizes), "paper": asdict(paper)}, resume=resume)
    for name in names:
        for seed in range(seeds):
            found = (
                score_sections(chosen_tasks, chosen, paper, seed, rows, {})
                if name == sections.NAME
                else score_slide(SOURCES[name], sizes, chosen_tasks, {one: known[one] for one in chosen}, seed, rows)
            )
            for row in found:
                rows.add(row)
                say(f"{name}, seed {seed}, {row['task']}, {row['method']}: {row['score']:.3f}, {row['seconds']:.1f} s")
    frame = pd.DataFrame(rows.rows)
    print(
        f"\nMean Pearson over genes: median over {seeds} seeds, ± half the range. {_described(sizes, paper, chosen)}\n"
    )
    print(_scoreboard(frame, chosen).to_string(na_rep="-"))
    if "equal_depth" in frame:
        print("\nThe same on the deeper spots, thinned to one depth: what the H&E tells of depth is not rewarded\n")
        print(_scoreboard(frame.dropna(subset="equal_depth"), chosen, "equal_depth").to_string(na_rep="-"))
    if "default" in chosen:
        print(
            "\nThe default recipe (ratios of medians; by prediction: denoised by the H&E alone; with own counts: also"
        )
        print("by the noisy count of the unit itself; out-of-fold and unmeasured: Pearson with counts, as the model's")
        print("scores tell it and as it is)\n")
        print(_standing(frame))
    print("\nSeconds to fit, median\n")
    print(_seconds(frame, chosen))


@app.command()
def stop(
    out: Out = None,
    data: Data = "*",
    seeds: int = 1,
    looks: Annotated[int, typer.Option(help="At the held-out deviance; training goes on to the last.")] = 60,
    side: Side = Sizes.side,
    visium_side: Side = Sizes.visium_side,
    genes: int = Sizes.genes,
    transcriptome_genes: int = Sizes.transcriptome_genes,
) -> None:
    """Follow the scores against the truth through training, and compare the early stop with the best one."""
    sizes = Sizes(side, visium_side, genes, transcriptome_genes)
    rows = Rows(out, {**asdict(sizes), "seeds": seeds, "looks": looks})
    for name in available(matching(SOURCES, data, "--data")):
        for seed in range(seeds):
            slide = SOURCES[name].slide(sizes, seed)
            path = _trajectory(training(slide, half(slide), seed), looks)
            for row in path.to_dict("records"):
                rows.add({"data": name, "seed": seed, **row})
            say(f"{name}, seed {seed}: {len(path)} looks, lowest deviance at {path['deviance'].idxmin() + 1}")
    frame = pd.DataFrame(rows.rows)
    print("\nMean Pearson with the true rate by look at the held-out deviance: unmeasured half (fill), measured half\n")
    print(_stops(frame))


@app.command()
def deciles(
    out: Out = None,
    side: Side = 1024,
    genes: int = 18_000,
    counts: Annotated[int, typer.Option(help="Fewest counts of a gene that is fitted.")] = 1,
    alone: Annotated[bool, typer.Option(help="Fit the genes of each decile by themselves, too.")] = False,
    seed: int = 0,
) -> None:
    """Fit the sparsity of a whole transcriptome at once, and score filling by decile of the mean count."""
    sizes = Sizes(side, transcriptome_genes=genes)
    slide = SOURCES["hd-transcriptome"].slide(sizes, seed)
    data = training(slide, half(slide), seed, counts)
    rows = Rows(out, {"side": side, "genes": genes, "min_counts": counts, "seed": seed})
    say(f"{len(data.genes)} of {genes} genes have {counts} counts or more in {len(data.measured.rows)} units")
    before = _peak_gib(reset=True)
    fitted, seconds = _timed(pixel2gene, data)
    peak = _peak_gib()
    truth = _rates(data, data.held)
    ours = pearson(fitted.predict(slide)[data.held], truth)
    linear, linear_seconds = _timed(lambda one: ridge(one, RidgeCV(np.geomspace(1, 1e6, 13))), data)
    theirs = pearson(linear.predict(slide)[data.held], truth)
    totals = np.asarray(data.measured.counts.sum(axis=0)).ravel()
    for i, members in enumerate(np.array_split(np.argsort(totals, kind="stable"), DECILES)):
        row: Row = {
            "decile": i + 1,
            "genes": len(members),
            "counts per gene": float(np.median(totals[members])),
            "ridge CV": mean_pearson(theirs[members]),
            "default": mean_pearson(ours[members]),
        }
        if alone:
            own = _only(data, np.sort(members))
            row["default, alone"] = mean_pearson(
                pearson(pixel2gene(own).predict(slide)[data.held], _rates(own, data.held))
            )
        rows.add(row)
        say(f"decile {i + 1}: {row}")
    print(
        f"\n{len(data.genes)} genes, {len(data.measured.rows)} bins: "
        f"default {seconds:.0f} s, ridge {linear_seconds:.0f} s;"
    )
    print(f"peak memory of the fit {peak:.1f} GiB, of which {before:.1f} GiB were there before\n")
    print(pd.DataFrame(rows.rows).set_index("decile").round(3).to_string())


@app.command()
def ablation(
    out: Out = None,
    data: Data = "hd,hd/C2,hd-transcriptome",
    seeds: int = 3,
    side: Side = Sizes.side,
    visium_side: Side = Sizes.visium_side,
    genes: int = Sizes.genes,
    transcriptome_genes: int = Sizes.transcriptome_genes,
) -> None:
    """Change one choice of the default recipe at a time."""
    sizes = Sizes(side, visium_side, genes, transcriptome_genes)
    variants: dict[str, Method] = {
        name: partial(pixel2gene, recipe=replace(regression.Recipe(), **changes)) for name, changes in VARIANTS.items()
    }
    rows = Rows(out, {**asdict(sizes), "seeds": seeds})
    for name in available(matching(SOURCES, data, "--data")):
        for seed in range(seeds):
            for row in score_slide(SOURCES[name], sizes, ["fill half", "fill blocks"], variants, seed, rows):
                rows.add(row)
                say(f"{name}, seed {seed}, {row['task']}, {row['method']}: {row['score']:.3f}, {row['seconds']:.1f} s")
    frame = pd.DataFrame(rows.rows)
    print(f"\nMean Pearson with the true rate: median over {seeds} seeds, ± half the range\n")
    # Variants have long names: one row each.
    print(_scoreboard(frame, list(variants)).T.to_string(na_rep="-"))


def score_slide(
    source: Source, sizes: Sizes, tasks: list[str], chosen: dict[str, Method], seed: int, done: Rows
) -> Iterator[Row]:
    def left(*together: str) -> dict[str, Method]:
        wanted = [task for task in together if task in tasks]
        return {name: one for name, one in chosen.items() if not done.has(source.name, wanted, seed, name)}

    def filling(task: str) -> dict[str, Method]:
        return {name: one for name, one in left(task).items() if name not in ("raw counts", "smoothing")}

    slide = source.slide(sizes, seed)
    if {"fill half", "denoise"} & set(tasks):
        data = training(slide, half(slide), seed)
        for name, fitted, row in _fits(source, "fill half", data, left("fill half", "denoise")):
            if "fill half" in tasks and fitted.fills:
                yield row | _filled(data, fitted) | (_on_counts(data, fitted) if name == "default" else {})
            if "denoise" in tasks:
                yield row | {"task": "denoise"} | _denoised(source, data, fitted)
    if "fill blocks" in tasks:
        data = training(slide, blocks(slide, seed), seed)
        for name, fitted, row in _fits(source, "fill blocks", data, filling("fill blocks")):
            yield row | _filled(data, fitted) | (_on_counts(data, fitted) if name == "default" else {})
    if "new slide" in tasks:
        data = training(slide, nothing(slide), seed)
        new = source.new_slide(sizes, seed)
        truth = new.truth(data.genes)[new.superpixels]
        for _, fitted, row in _fits(source, "new slide", data, filling("new slide")):
            yield row | {"score": mean_pearson(pearson(fitted.predict(new), truth))}


def _fits(source: Source, task: str, data: Training, chosen: dict[str, Method]) -> Iterator[tuple[str, Fitted, Row]]:
    for name, method in chosen.items():
        try:
            fitted, seconds = _timed(method, data)
        except ValueError as error:
            # Such as too few blocks for the folds of a recipe: the others are scored all the same.
            say(f"{source.name}, seed {data.seed}, {task}, {name} is left out: {error}")
            continue
        yield (
            name,
            fitted,
            {
                "data": source.name,
                "task": task,
                "seed": data.seed,
                "method": name,
                "seconds": seconds,
                "genes": len(data.genes),
                "units": len(data.measured.rows),
            },
        )


def _filled(data: Training, fitted: Fitted) -> Row:
    return {"score": mean_pearson(pearson(fitted.predict(data.slide)[data.held], _rates(data, data.held)))}


def _denoised(source: Source, data: Training, fitted: Fitted) -> Row:
    """Against the true counts of the units, or between and under spots against the true rates.

    A constant correlates with true counts where bins hold more or less tissue.
    """
    rate = fitted.predict(data.slide)
    if source.super_resolved:
        inside = ~half(data.slide).ravel()[data.slide.superpixels]
        return {"score": mean_pearson(pearson(rate[inside], _rates(data, inside)))}
    truth, predicted = data.true_counts(), data.overlap @ rate
    if fitted.denoise is None:
        return {"score": mean_pearson(pearson(predicted, truth))}
    if fitted.expect is None:
        return {"score": mean_pearson(pearson(fitted.denoise(), truth))}
    # What the neighbours of a unit add to the prediction, or take from it, and what its own counts do.
    return {
        "score": mean_pearson(pearson(fitted.expect(), truth)),
        "by_prediction": mean_pearson(pearson(predicted, truth)),
        "with_own_counts": mean_pearson(pearson(fitted.denoise(), truth)),
    }


def _on_counts(data: Training, fitted: Fitted) -> Row:
    """What a user is told of the accuracy, and what it is where nothing was measured."""
    told = fitted.model.scores["pearson_counts"].mean()
    found = p2g.tl.evaluate(data.sdata, fitted.model, table_key=HELD_BACK)["pearson_counts"].mean()
    return {"out_of_fold": float(told), "unmeasured": float(found)}


def score_sections(
    tasks: list[str], chosen: list[str], paper: PaperOptions, seed: int, done: Rows, embedding: Options
) -> Iterator[Row]:
    spots = sections.load(embedding)
    for task in sections.TASKS:
        if task in tasks:
            able = [name for name in chosen if name in sections.METHODS]
            left = [name for name in able if not done.has(sections.NAME, [task], seed, name)]
            yield from sections.score(spots, task, left, paper, seed)


def _rates(data: Training, which: NDArray[np.bool_]) -> NDArray[np.float32]:
    """True rates of some superpixels of the tissue."""
    return data.slide.truth(data.genes)[data.slide.superpixels[which]]


def _only(data: Training, members: NDArray[np.intp]) -> Training:
    """Only some of the genes."""
    measured = replace(data.measured, counts=data.measured.counts[:, members])
    return replace(data, genes=[data.genes[i] for i in members], measured=measured)


def _trajectory(data: Training, looks: int) -> pd.DataFrame:
    """Deviance and scores against the truth at each look, of one fit that does not stop early.

    Scored is what `pixel2gene.tl.fit` would return if it stopped there, its outputs fitted anew where that is better.
    """
    slide, device, measured = data.slide, choose_device(None), measurement(data)
    inside = ~half(slide).ravel()[slide.superpixels]
    parts = {"fill": data.held, "measured": inside}
    truth = {name: _rates(data, part) for name, part in parts.items()}
    genes = np.arange(len(data.genes))
    rows: list[Row] = []

    def look(network: Ensemble) -> None:
        stopped = finish(network, lead, measured, recipe, device, data.seed).network
        rate = regression.predict_rates(stopped, slide.features, genes, device)[0]
        scores = {name: mean_pearson(pearson(rate[part], truth[name])) for name, part in parts.items()}
        rows.append({"look": len(rows) + 1, **scores})

    recipe = regression.Recipe(patience=10**9, max_checks=looks)
    lead = leading_genes(measured.counts, recipe.lead_genes)
    leading = measured.of_genes(lead)
    _, history = regression.fit_ensemble(leading, recipe, device, data.seed, progress=False, on_look=look)
    return pd.DataFrame(rows).assign(step=history.step, deviance=history.deviance)


def _stopped(deviance: NDArray[np.floating], patience: int) -> int:
    """Position that `fit_ensemble` would have returned."""
    best = 0
    for i, value in enumerate(deviance):
        if value < deviance[best]:
            best = i
        elif i - best >= patience:
            break
    return best


def _stops(frame: pd.DataFrame) -> str:
    grid = [look for look in (5, 10, 15, 20, 30, 40, 60, 100) if look <= frame["look"].max()]
    rows = []
    for (name, seed), path in frame.groupby(["data", "seed"], sort=False):
        path = path.reset_index(drop=True)
        ours = path.loc[_stopped(path["deviance"].to_numpy(), regression.Recipe().patience)]
        row: Row = {"data": name, "seed": seed, "stopped at": int(ours["look"])}
        for part in ("fill", "measured"):
            best = path.loc[path[part].idxmax()]
            row |= {part: ours[part], f"{part}: best": best[part], "at": int(best["look"])}
            row |= {f"{part}: lost": best[part] - ours[part]}
            row[f"{part}: best at"] = row.pop("at")
        row |= {f"fill at {look}": path["fill"][look - 1] for look in grid}
        rows.append(row)
    return pd.DataFrame(rows).set_index(["data", "seed"]).round(3).to_string()


def _scoreboard(frame: pd.DataFrame, order: list[str], column: str = "score") -> pd.DataFrame:
    def cell(scores: pd.Series) -> str:
        spread = f" ±{(scores.max() - scores.min()) / 2:.3f}" if len(scores) > 1 else ""
        return f"{scores.median():.3f}{spread}"

    cells = per_seed(frame, column).groupby(["data", "task", "method"], sort=False).agg(cell)
    return _wide(cells, order)


def per_seed(frame: pd.DataFrame, column: str = "score") -> pd.Series:
    """Sections are no repeats: their mean is the score of a seed."""
    return frame.groupby(["data", "task", "method", "seed"], sort=False)[column].mean()


def _standing(frame: pd.DataFrame) -> str:
    """How the default recipe stands to the others, and its own word to the outcome."""
    median = _wide(
        per_seed(frame).groupby(["data", "task", "method"], sort=False).median(), list(frame["method"].unique())
    )
    rivals = median[[name for name in median if name not in NO_RIVALS]]
    found = pd.DataFrame({"score": median["default"]})
    if len(rivals.columns):
        found["best other"] = rivals.idxmax(axis=1)
        found["ratio"] = median["default"] / rivals.max(axis=1).where(lambda best: best > 0)
    for name, label in {"paper": "to paper", "oracle": "share of oracle"}.items():
        if name in median:
            found[label] = median["default"] / median[name]
    ours = frame[frame["method"] == "default"].groupby(["data", "task"], sort=False)
    for name in ("by_prediction", "with_own_counts"):
        if name in frame:
            found[name.replace("_", " ")] = ours[name].median()
    if "out_of_fold" in frame:
        found["out-of-fold"], found["unmeasured"] = ours["out_of_fold"].median(), ours["unmeasured"].median()
        found["difference"] = found["out-of-fold"] - found["unmeasured"]
    return found.round(3).to_string(na_rep="-")


def _seconds(frame: pd.DataFrame, order: list[str]) -> str:
    # "denoise" is of the fit of "fill half".
    fits = frame.drop_duplicates(["data", "seed", "method", "seconds"])
    shape = frame.groupby("data", sort=False)[["units", "genes"]].median().astype(int)
    seconds = _wide(fits.groupby(["data", "method"], sort=False)["seconds"].median(), order)
    return shape.join(seconds).round(1).to_string(na_rep="-")


def _wide(long: pd.Series, order: list[str]) -> pd.DataFrame:
    wide = long.unstack("method", sort=False)
    return wide[[name for name in order if name in wide]]


def _described(sizes: Sizes, paper: PaperOptions, chosen: list[str]) -> str:
    told = (
        f"Slides of {sizes.side} px (visium {sizes.visium_side}) of 0.5 µm, {sizes.genes} genes "
        f"({sizes.transcriptome_genes} of a transcriptome)"
    )
    return told + (f"; paper: {paper.folds} folds, {paper.epochs} epochs." if "paper" in chosen else ".")


def matching(known: Any, patterns: str, option: str) -> list[str]:
    """Names that match, in their own order; a pattern after a minus takes out of what the others chose, or of all."""
    split = [one.strip() for one in patterns.split(",")]
    wanted = [one for one in split if not one.startswith("-")] or ["*"]
    unwanted = [one[1:] for one in split if one.startswith("-")]

    def among(name: str, some: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, one) for one in some)

    found = [name for name in known if among(name, wanted) and not among(name, unwanted)]
    if not found:
        raise typer.BadParameter(f"{patterns!r} matches none of {', '.join(known)}.", param_hint=option)
    return found


def available(names: list[str]) -> list[str]:
    """Leave out, and say so, what needs files that are not there."""
    kept = []
    for name in names:
        picture = SOURCES[name].picture if name in SOURCES else None
        needed = sections.SECTIONS if name == sections.NAME else (picture, OTHER_PICTURE[picture]) if picture else ()
        reason = next((why for section in needed if (why := why_missing(section))), None)
        if reason is None:
            kept.append(name)
        else:
            say(f"{name} is skipped: {reason}")
    if not kept:
        raise typer.BadParameter("nothing is left to score.", param_hint="--data")
    return kept


def _timed(method: Method, data: Training) -> tuple[Fitted, float]:
    start = time.perf_counter()
    fitted = method(data)
    return fitted, time.perf_counter() - start


def _peak_gib(*, reset: bool = False) -> float:
    """Highest resident memory of this process; since the last reset, where Linux allows one."""
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            say("The peak of memory cannot be reset here: it includes the simulation.")
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
