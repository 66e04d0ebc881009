"""Mutants of `core` and `spatial`: one small change each, and whether a test notices.

mutmut makes them (its own changes, and those of MORE below). A sample of them is judged, each in a fork of a process
that has imported all libraries, by the tests that run its line: those of its floor before others, the quick before the
slow, as many as fit into the budget. A mutant survives when none of them fails. Out of play are the words of errors and
warnings, and `strict=` of `zip`, which guards against mistakes of ours.

uv run --with mutmut==3.8.1 python benchmarks/mutants.py cover    # which tests run which lines: once
uv run --with mutmut==3.8.1 python benchmarks/mutants.py judge --sample 300 --seed 1 --out mutants.json
"""

from __future__ import annotations

import os

# Only a process without threads can be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

import difflib
import gc
import json
import multiprocessing
import pkgutil
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Annotated, Any

import libcst as cst
import pytest
import typer
from hypothesis import Phase, settings
from libcst import matchers
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.file_mutation import create_mutations
from mutmut.mutation.mutators import mutation_operators
from scipy.stats import binomtest

app = typer.Typer(add_completion=False, help=__doc__)
FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FLOORS = ("core", "spatial")
JUDGES = "tests/core tests/spatial tests/tl tests/contracts tests/io tests/test_bad_input.py tests/test_cli_verbs.py"
TOOL = 4  # of sys.monitoring; free by convention
PYTEST = [
    "-o",
    "addopts=--import-mode=importlib",
    "-p",
    "no:cacheprovider",
    "-p",
    "_hypothesis_pytestplugin",
    "-q",
    "--tb=line",
]
Cover = Annotated[Path, typer.Option(help="JSON: the lines that each test runs.")]


def negated(node: cst.If) -> Iterable[cst.CSTNode]:
    """The other branch."""
    if not matchers.matches(node.test, matchers.Name("TYPE_CHECKING")):
        inner = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inner))


def returns_nothing(node: cst.Return) -> Iterable[cst.CSTNode]:
    if node.value is not None and not matchers.matches(node.value, matchers.Name("None")):
        yield node.with_changes(value=cst.Name("None"))


def left_out(node: cst.SimpleStatementLine) -> Iterable[cst.CSTNode]:
    """A call for its effect, or an error, that does not happen."""
    if matchers.matches(node, matchers.SimpleStatementLine(body=[matchers.Expr(matchers.Call()) | matchers.Raise()])):
        yield node.with_changes(body=[cst.Pass()])


def other_extreme(node: cst.Name) -> Iterable[cst.CSTNode]:
    others = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}
    if node.value in others:
        yield node.with_changes(value=others[node.value])


def one_less(node: cst.Integer) -> Iterable[cst.CSTNode]:
    if node.evaluated_value > 0:
        yield node.with_changes(value=str(node.evaluated_value - 1))


MORE = [
    (cst.If, negated),
    (cst.Return, returns_nothing),
    (cst.SimpleStatementLine, left_out),
    (cst.Name, other_extreme),
    (cst.Integer, one_less),
]
mutation_operators.extend(MORE)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Mutant:
    """One change: where, in which lines of which function, and the source with it."""

    name: str
    module: str
    lines: range
    function: range | None
    make: Callable[[], str]

    @property
    def path(self) -> Path:
        return source_of(self.module)

    def diff(self) -> str:
        pair = self.path.read_text().splitlines(), self.make().splitlines()
        return "\n".join(list(difflib.unified_diff(*pair, lineterm="", n=0))[3:])


def source_of(module: str) -> Path:
    path = SOURCE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def all_modules() -> list[str]:
    paths = [path for floor in FLOORS for path in sorted((SOURCE / "pixel2gene" / floor).rglob("*.py"))]
    return [".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    path = source_of(module)
    tree, mutations, *_ = create_mutations(str(path), path.read_text())
    wrapper = MetadataWrapper(tree, unsafe_skip_copy=True)
    places, parents = wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider)
    found = []
    for number, change in enumerate(mutations):
        around = list(ancestors(change.original_node, parents))
        if any(map(out_of_play, around)) or strict_dropped(change.original_node, change.mutated_node):
            continue
        functions = [node for node in around if isinstance(node, cst.FunctionDef)]
        # A statement's condition, not all that hangs on it.
        place = places[getattr(change.original_node, "test", change.original_node)]
        found.append(
            Mutant(
                f"{module}:{place.start.line}:{number}",
                module,
                lines_of(place),
                lines_of(places[functions[-1]]) if functions else None,
                lambda change=change: tree.deep_replace(change.original_node, change.mutated_node).code,  # type: ignore
            )
        )
    return found


def lines_of(place: CodeRange) -> range:
    return range(place.start.line, place.end.line + 1)


def ancestors(node: cst.CSTNode, parents: Any) -> Iterator[cst.CSTNode]:
    while (node := parents.get(node)) is not None:
        yield node


def out_of_play(node: cst.CSTNode) -> bool:
    """Whether it is what an error or a warning says, or the argument `strict`."""
    said = matchers.Call(matchers.Attribute(attr=matchers.Name("warn")))
    return matchers.matches(node, matchers.Raise() | said | matchers.Arg(keyword=matchers.Name("strict")))


def strict_dropped(before: cst.CSTNode, after: cst.CSTNode) -> bool:
    """Whether all that changed is that `zip` is not strict."""
    if not matchers.matches(before, matchers.Call(matchers.Name("zip"))):
        return False
    kept = [[arg for arg in call.args if arg.keyword is None] for call in (before, after)]  # type: ignore[attr-defined]
    return kept[0] == kept[1]


class Lines:
    """Plugin of pytest: the lines of `core` and `spatial` that each test runs, and how long it takes.

    What a fixture of a session or module runs counts for all tests that use it.
    """

    def __init__(self) -> None:
        self.lines: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.fixtures: dict[str, list[str]] = {}
        self.wrong: set[str] = set()
        self.running = ["import"]
        self.since = time.perf_counter()
        self.modules = {str(source_of(module)): module for module in all_modules()}
        sys.monitoring.use_tool_id(TOOL, "mutants")
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.LINE, self.line)
        sys.monitoring.set_events(TOOL, sys.monitoring.events.LINE)

    def line(self, code: CodeType, number: int) -> object:
        if code.co_filename in self.modules:
            self.lines[self.running[-1]].add((self.modules[code.co_filename], number))
        return sys.monitoring.DISABLE

    @contextmanager
    def recorded_as(self, name: str) -> Iterator[None]:
        self.clock()
        self.running.append(name)
        sys.monitoring.restart_events()
        try:
            yield
        finally:
            self.clock()
            self.running.pop()
            sys.monitoring.restart_events()

    def clock(self) -> None:
        now = time.perf_counter()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[Any]:
        defined = item._fixtureinfo.name2fixturedefs
        shared = [each for name in item.fixturenames for each in defined.get(name, ())[-1:] if each.scope != "function"]
        self.fixtures[item.nodeid] = [fixture_name(each) for each in shared]
        with self.recorded_as(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        if fixturedef.scope == "function":
            return (yield)
        with self.recorded_as(fixture_name(fixturedef)):
            return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self.wrong.add(report.nodeid)

    def save(self, path: Path) -> None:
        """Add to what is known of other tests."""
        known = json.loads(path.read_text()) if path.exists() else {}
        for test in self.fixtures.keys() - self.wrong:
            ran = set(self.lines[test]).union(*(self.lines[name] for name in self.fixtures[test]))
            by_module: defaultdict[str, list[int]] = defaultdict(list)
            for module, number in sorted(ran):
                by_module[module].append(number)
            known[test] = {
                "seconds": self.seconds[test],
                "fixtures": {name: self.seconds[name] for name in self.fixtures[test]},
                "lines": by_module,
            }
        path.write_text(json.dumps(known))


def fixture_name(fixture: Any) -> str:
    return f"fixture {fixture.baseid} {fixture.argname}"


class Mutated(SourceFileLoader):
    """Finds one module, with another source than it has."""

    def __init__(self, module: str, source: str) -> None:
        super().__init__(module, str(source_of(module)))
        self.source = source

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


def warm_up() -> None:
    """Import what pixel2gene imports, and forget pixel2gene."""
    import pixel2gene

    for library in ("scanpy", "squidpy", "spatialdata_io", "spatialdata_plot", "timm.models", "skimage.transform"):
        import_module(library)
    for found in pkgutil.walk_packages(pixel2gene.__path__, "pixel2gene."):
        import_module(found.name)
    for name in [name for name in sys.modules if name.split(".")[0] == "pixel2gene"]:
        del sys.modules[name]
    # No search for the smallest example.
    settings.register_profile("mutants", deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")
    # Forks would copy what their garbage collection looks at.
    gc.collect()
    gc.freeze()


def in_fork(work: Callable[[], int], log: Path, seconds: float | None = None) -> int | None:
    """Exit status of work done in a fork; None if it took too long."""

    def run() -> None:
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 1
        try:
            status = int(work())
        finally:
            os._exit(status)

    process = FORK.Process(target=run)
    process.start()
    process.join(seconds)
    late = process.is_alive()
    try:
        os.killpg(process.pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.join()
    return None if late else process.exitcode


def run_tests(tests: Iterable[str], folder: str, plugins: list[object] | None = None) -> int:
    return pytest.main([*PYTEST, f"--basetemp={folder}/pytest", *tests], plugins=plugins)


def judges(mutant: Mutant, known: dict[str, Any], budget: float) -> tuple[list[str], float]:
    """Tests that run the lines of a mutant, else its function, module or package; and the seconds they take."""
    package = mutant.module.rpartition(".")[0]
    ran = {test: set(row["lines"].get(mutant.module, ())) for test, row in known.items()}
    tests = [test for test in ran if mutant.function and not ran[test].isdisjoint(mutant.lines)]
    tests = tests or [test for test in ran if mutant.function and not ran[test].isdisjoint(mutant.function)]
    if mutant.function is None:
        tests = [test for test in ran if ran[test]]
        tests = tests or [test for test in ran if any(name.startswith(package) for name in known[test]["lines"])]
    floor = f"tests/{mutant.module.split('.')[1]}/"
    tests.sort(
        key=lambda test: (not test.startswith(floor), known[test]["seconds"] + sum(known[test]["fixtures"].values()))
    )
    chosen: list[str] = []
    ready: set[str] = set()
    total = 0.0
    for test in tests:
        new = known[test]["fixtures"].keys() - ready
        total += known[test]["seconds"] + sum(known[test]["fixtures"][name] for name in new)
        if chosen and total > budget:
            break
        ready |= new
        chosen.append(test)
    return chosen, total


def judge_one(mutant: Mutant, known: dict[str, Any], budget: float, folder: str) -> dict[str, Any]:
    tests, expected = judges(mutant, known, budget)
    start, log = time.perf_counter(), Path(folder) / "log"
    status: int | None = 0
    source = mutant.make()

    def work() -> int:
        sys.meta_path.insert(0, Mutated(mutant.module, source))
        return run_tests(["-x", *tests], folder)

    if tests:
        status = in_fork(work, log, 20 + 4 * expected)
    return {
        "mutant": mutant.name,
        "survived": status == 0,
        "status": "late" if status is None else status,
        "tests": len(tests),
        "seconds": round(time.perf_counter() - start, 1),
        "diff": mutant.diff(),
        "said": log.read_text().splitlines()[-4:] if status else [],
    }


@app.command()
def cover(tests: str = JUDGES, cover: Cover = Path("mutants_cover.json")) -> None:
    """Record which lines each test runs; those of tests recorded before are kept."""
    warm_up()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:

        def work() -> int:
            lines = Lines()
            status = run_tests(tests.split(), folder, [lines])
            lines.save(cover)
            return status

        status = in_fork(work, Path(folder) / "log")
        print((Path(folder) / "log").read_text()[-3000:])
    if status != 0:
        raise typer.Exit(1)


@app.command()
def judge(
    sample: int = 300,
    seed: int = 0,
    modules: Annotated[str, typer.Option(help="All of core and spatial unless given.")] = "",
    budget: Annotated[float, typer.Option(help="Seconds of tests per mutant.")] = 20,
    resume: Annotated[bool, typer.Option(help="Keep what is in the file already.")] = False,
    again: Annotated[bool, typer.Option(help="Judge again those that survived in the file.")] = False,
    cover: Cover = Path("mutants_cover.json"),
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Judge a random sample; print one row per module, and the survivors."""
    known = json.loads(cover.read_text())
    every = [mutant for module in modules.split(",") if module for mutant in mutants_of(module)]
    every = every or [mutant for module in all_modules() for mutant in mutants_of(module)]
    drawn = random.Random(seed).sample(every, min(sample, len(every)))
    done = json.loads(out.read_text())["rows"] if (resume or again) and out is not None else []
    rows = {row["mutant"]: row for row in done if not (again and row["survived"])}
    warm_up()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        for number, mutant in enumerate(drawn):
            if mutant.name not in rows:
                rows[mutant.name] = row = judge_one(mutant, known, budget, folder)
                answer = f"SURVIVED\n{row['diff']}" if row["survived"] else "killed"
                print(f"{number} {mutant.name} {row['tests']} tests {row['seconds']} s: {answer}", flush=True)
            if out is not None:
                kept = {"of": len(every), "seed": seed, "budget": budget, "rows": list(rows.values())}
                out.write_text(json.dumps(kept, indent=1))
    table([rows[mutant.name] for mutant in drawn], len(every))


def table(rows: list[dict[str, Any]], of: int) -> None:
    """One row per module, and the share of all mutants that the sample speaks of."""
    by_module: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for row in rows:
        by_module[row["mutant"].split(":")[0]][row["survived"]] += 1
    print(f"\n{'module':<44}{'mutants':>9}{'killed':>9}{'survived':>9}")
    for module, count in sorted(by_module.items()):
        print(f"{module:<44}{count.total():>9}{count[False]:>9}{count[True]:>9}")
    killed = sum(not row["survived"] for row in rows)
    interval = binomtest(killed, len(rows)).proportion_ci(method="wilson")
    print(
        f"{'all':<44}{len(rows):>9}{killed:>9}{len(rows) - killed:>9}\n"
        f"{killed / len(rows):.1%} of {of} mutants killed (95 % interval {interval.low:.1%} to {interval.high:.1%})"
    )


if __name__ == "__main__":
    app()
