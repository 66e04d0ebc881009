"""Whatever is given to a command, it works or says what is wrong in one sentence."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from spatialdata import read_zarr
from typer.testing import CliRunner

import pixel2gene as p2g
from pixel2gene.cli import app
from pixel2gene.core.regression import Recipe

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HINTS = {command.callback.__name__: get_type_hints(command.callback) for command in app.registered_commands}
# What a command cannot do without, as arguments and as options.
GIVEN: dict[str, list[str]] = {
    "demo": ["--folder", "{new}", "--side", "256", "--genes", "4"],
    "run": ["{store}", "--out", "{new}/out.zarr"],
    "rerun": ["{store}", "--out", "{new}/again.zarr"],
    "fit": ["{store}", "--out", "{new}/m.p2g", "--folds", "2"],
    "predict": ["{store}", "{model}", "--key-added", "new"],
    "denoise": ["{store}", "{model}", "--key-added", "new"],
    "aggregate": ["{store}", "predicted", "square_008um", "--key-added", "new"],
    "info": ["{store}"],
    "encoders": [],
}
TEXTS = ["", " ", "nope", "he", "counts", "predicted", "../up", "a b", "ä", "{", "-1", "0", "None", "x" * 300, "a\nb"]
WHOLE = ["-1", "0", "1", "2", "3", "7", "65", "1.5", "x", "", "-99999999999999999999", "4294967296", "1" * 30]
NUMBERS = [*WHOLE, "nan", "inf", "-inf", "1e-300", "1e300", "0.5", "1e999", "0x1"]
PATHS = ["", ".", "/", "{file}", "{file}/below", "{store}", "{model}", "{new}", "{new}/a/b.zarr", "nope", "/dev/null",
         "/proc/nope", "{new}/" + "x" * 300, "ä", "{empty}"]  # fmt: skip


def values(command: str, parameter: Any) -> list[str]:
    kind = str(HINTS[command][parameter.name])
    return next((odd for name, odd in (("Path", PATHS), ("float", NUMBERS), ("int", WHOLE)) if name in kind), TEXTS)


@st.composite
def calls(draw: st.DrawFn, name: str) -> list[str]:
    """A right call, with some options more, or some arguments replaced."""
    parameters = [one for one in COMMANDS[name].params if one.name not in ("help", "as_json")]
    positional = [one for one in parameters if one.param_type_name == "argument"]
    options = [one for one in parameters if one.param_type_name == "option"]
    call = list(GIVEN[name])
    if positional and draw(st.booleans()):
        place = draw(st.integers(0, len(positional) - 1))
        call[place] = draw(st.sampled_from(values(name, positional[place])))
    for option in draw(st.lists(st.sampled_from(options), max_size=2, unique_by=id)) if options else []:
        flag = draw(st.sampled_from(option.opts + option.secondary_opts))
        call += [flag] if option.is_flag else [flag, draw(st.sampled_from(values(name, option)))]
    return [name, *call]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    sdata = p2g.datasets.simulate(size=(256, 256), n_genes=4, counts_per_superpixel=60, measured=1.0, seed=3)
    sdata.write(folder / "slide.zarr")
    sdata = read_zarr(folder / "slide.zarr")
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    model = p2g.tl.fit(
        sdata, "counts", image_key="he", recipe=Recipe(folds=2, hidden=(8,), max_checks=1), progress=False
    )
    p2g.tl.predict(sdata, model, progress=False)
    model.save(folder / "m.p2g")
    (folder / "file").write_text("text")
    (folder / "empty").mkdir()
    return {
        "store": folder / "slide.zarr",
        "model": folder / "m.p2g",
        "file": folder / "file",
        "empty": folder / "empty",
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = lambda **options: Recipe(**{"folds": 2, "hidden": (8,), "max_checks": 1, **options})  # noqa: E731
    monkeypatch.setattr("pixel2gene.spatial.training.RECIPES", {"default": short})
    for module in ("run", "demo"):
        for drawn in ("figure", "report"):
            monkeypatch.setattr(sys.modules[f"pixel2gene.cli.{module}"], drawn, lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.filterwarnings("ignore")
def test_a_command_works_or_says_what_is_wrong(name: str, places: dict[str, Path]) -> None:
    @settings(
        deadline=None,
        max_examples=2 if name == "demo" else 5,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(calls(name))
    def check(call: list[str]) -> None:
        with tempfile.TemporaryDirectory() as new:
            # What succeeds may write into the store.
            store = Path(new) / "slide.zarr"
            shutil.copytree(places["store"], store)
            there = {**places, "store": store, "new": Path(new) / "new"}
            filled = [part.format_map(there) if part.startswith("{") and "}" in part else part for part in call]
            done = CliRunner().invoke(app, filled)
        said = f"{filled}\n{done.output}"
        assert done.exception is None or isinstance(done.exception, SystemExit), said
        assert done.exit_code in (0, 1, 2), said
        assert "Traceback" not in done.output, said
        if done.exit_code == 1:
            last = done.stderr.strip("\n").splitlines()[-1]
            assert last.startswith("pixel2gene: ") and 20 < len(last) < 1000, said
            assert done.stderr.count("pixel2gene: ") == 1, said
        event(f"exit code {done.exit_code}")

    check()
