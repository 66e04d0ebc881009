"""Each gene is drawn at its scores, and names can be read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba_array

from pixel2gene import pl
from pixel2gene.pl._accuracy import spread


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def scores(n: int = 40) -> pd.DataFrame:
    """Of genes in random order; the last has none."""
    rng = np.random.default_rng(0)
    pearson = np.append(rng.permutation(np.linspace(-0.1, 0.8, n - 1)), np.nan)
    index = pd.Index([f"G{i}" for i in range(n)], name="gene")
    return pd.DataFrame(
        {"mean_count": rng.gamma(1, 2, n), "pearson": pearson, "pearson_ceiling": pearson + 0.1}, index=index
    )


def named(ax: plt.Axes) -> dict[str, np.ndarray]:
    """Colours by name, and where the line points to."""
    return {text.get_text(): to_rgba_array(text.get_color())[0] for text in ax.texts}


def test_each_gene_at_its_score() -> None:
    table = scores()
    by_expression, by_ceiling = pl.accuracy(table)
    known = table.dropna().sort_values("pearson")
    for ax, column in ((by_expression, "mean_count"), (by_ceiling, "pearson_ceiling")):
        np.testing.assert_allclose(ax.collections[0].get_offsets(), known[[column, "pearson"]])
    assert by_expression.get_xscale() == "log"
    (x0, y0), (x1, y1) = by_ceiling.lines[-1].get_xydata()
    assert (x0, y0) == (-0.1, -0.1) and (x1, y1) == (1, 1)
    assert by_expression.get_ylabel() == "held-out Pearson"


def test_best_and_worst_are_named_beside_their_points() -> None:
    table = scores()
    ax = pl.accuracy(table, names=5)[0]
    ranked = table["pearson"].dropna().sort_values().index
    found = named(ax)
    assert set(found) == {*ranked[:5], *ranked[-5:]}
    assert len({tuple(found[name]) for name in ranked[:5]}) == len({tuple(found[name]) for name in ranked[-5:]}) == 1
    assert tuple(found[ranked[0]]) != tuple(found[ranked[-1]])
    for text in ax.texts:
        np.testing.assert_allclose(text.xy, table.loc[text.get_text(), ["mean_count", "pearson"]].to_numpy(float))


def test_no_name_lies_over_another_or_over_the_points() -> None:
    table = scores()
    table["pearson"] = table["pearson"].round(0)  # many alike
    ax = pl.accuracy(table, names=7)[0]
    ax.figure.canvas.draw()
    boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 14
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.overlaps(ax.get_window_extent()) for box in boxes)


@pytest.mark.parametrize(("genes", "names"), [(1, 5), (3, 5), (4, 0)])
def test_few_genes_are_named_once(genes: int, names: int) -> None:
    ax = pl.accuracy(scores(genes + 1), names=names)[0]
    assert len(ax.texts) == len(named(ax)) == min(genes, 2 * names)


def test_several_slides() -> None:
    both = pd.concat({"one": scores(5), "two": scores(5)}, names=["slide", "gene"])
    ax = pl.accuracy(both, names=1)[0]
    assert all(name.split(", ")[1] in ("one", "two") for name in named(ax))


def test_axes_and_another_score(tmp_path: Path) -> None:
    table = scores().rename(columns=lambda name: name.replace("pearson", "spearman"))
    _, given = plt.subplots(1, 2)
    assert list(pl.accuracy(table, score="spearman", axes=given, save=tmp_path / "a.png")) == list(given)
    assert given[0].get_ylabel() == "held-out Spearman" and (tmp_path / "a.png").exists()
    with pytest.raises(ValueError, match="1 axes given for 2 panels"):
        pl.accuracy(table, score="spearman", axes=given[:1])


def test_tables_that_do_not_do() -> None:
    with pytest.raises(KeyError, match=r"lacks \['pearson_ceiling'\]; it has \['mean_count', 'pearson'\]"):
        pl.accuracy(scores()[["mean_count", "pearson"]])
    with pytest.raises(ValueError, match="No gene of the table has a 'pearson'"):
        pl.accuracy(scores().assign(pearson=np.nan))


@given(wanted=st.lists(st.floats(0, 1), max_size=30), apart=st.floats(0.01, 0.2))
def test_names_are_spread(wanted: list[float], apart: float) -> None:
    wanted = sorted(wanted)
    found = spread(np.array(wanted), apart)
    assert len(found) == len(wanted)
    if wanted:
        assert (np.diff(found) >= apart - 1e-9).all()
        assert found.min() >= -1e-9
        assert found.max() <= max(1, apart * (len(wanted) - 1)) + 1e-9
        # Where there is room, they stay.
        if (np.diff(wanted) >= apart).all():
            np.testing.assert_allclose(found, wanted, atol=1e-9)
