"""The page works in a real browser, without network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pixel2gene as p2g

DECODED = """Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth)))"""
PANELS = "[...document.querySelectorAll('#panels [data-panel] img')].map(image => image.alt.split(':')[0])"


def test_it_opens_without_network_and_shows_all_pictures(browser: Callable[..., Any], page: Path) -> None:
    one = browser()
    one.open(page)
    widths = one.tell(DECODED)
    assert len(widths) == 5 + 4 and min(widths) > 20
    asked = [e["params"]["request"]["url"] for e in one.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked[0] == page.as_uri()
    assert all(url.startswith("data:") for url in asked[1:])
    bad = [e for e in one.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert bad == []
    assert one.tell("document.title") == "<slide> & co – pixel2gene"


def test_genes_are_searched_and_picked(browser: Callable[..., Any], page: Path, fitted_once: p2g.Model) -> None:
    one = browser()
    one.open(page)
    ranked = fitted_once.scores["pearson"].fillna(-9).sort_values(ascending=False, kind="stable").index
    assert one.tell("[...document.getElementById('list').options].map(option => option.text)") == list(ranked)
    assert one.tell("document.getElementById('gene').textContent") == ranked[0]
    wanted = ranked[7]
    one.tell("document.getElementById('search').focus()")
    one.do("Input.insertText", text=wanted.lower())
    assert one.tell("document.getElementById('gene').textContent") == wanted
    assert one.tell("document.getElementById('matches').textContent") == "1 gene"
    assert one.tell(PANELS) == [f"{wanted}, {panel}" for panel in ("measured", "denoised", "predicted")]
    score = fitted_once.scores.at[wanted, "pearson"]
    told = one.tell("document.getElementById('told').textContent")
    assert float(told.split("Pearson ")[1].split(",")[0]) == pytest.approx(score, rel=0.06)
    # The list by the keyboard, after the search was emptied.
    one.tell("document.getElementById('search').value = ''")
    one.tell("document.getElementById('search').dispatchEvent(new Event('input'))")
    one.tell("document.getElementById('list').focus()")
    one.press("ArrowDown", 40)
    assert one.tell("document.getElementById('gene').textContent") == ranked[1]
    before = one.tell("document.querySelector('[data-panel=predicted] img').src.length")
    one.press("ArrowDown", 40)
    assert one.tell("document.getElementById('gene').textContent") == ranked[2]
    assert one.tell("document.querySelector('[data-panel=predicted] img').src.length") != before
    assert min(one.tell(DECODED)) > 20


def test_a_search_without_a_match_leaves_what_is_shown(browser: Callable[..., Any], page: Path) -> None:
    one = browser()
    one.open(page)
    before = one.tell("document.getElementById('gene').textContent")
    one.tell("document.getElementById('search').focus()")
    one.do("Input.insertText", text="no such gene")
    assert one.tell("document.getElementById('matches').textContent") == "0 genes"
    assert one.tell("document.getElementById('gene').textContent") == before


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(browser: Callable[..., Any], page: Path, width: int) -> None:
    one = browser(width, 800)
    one.open(page)
    one.tell("document.querySelector('details').open = true")
    assert one.tell("document.documentElement.scrollWidth") <= width
    # Controls are large enough for a finger.
    heights = one.tell("['search', 'list'].map(id => document.getElementById(id).getBoundingClientRect().height)")
    assert min(heights) >= 32
