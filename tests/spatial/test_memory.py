"""How much a result may take."""

from collections import namedtuple

import psutil
import pytest

from pixel2gene.spatial.memory import free_memory, genes_that_fit, memory_limit, require_memory


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """10 GB free, 2 GB taken by the process."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(10e9))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: namedtuple("Info", "rss")(2e9))


def test_all_that_is_free_unless_there_is_a_limit():
    assert free_memory() == 10e9
    with memory_limit(5):
        assert free_memory() == 3e9
    with memory_limit(50):
        assert free_memory() == 10e9
    with memory_limit(None):
        assert free_memory() == 10e9


def test_genes_that_fit():
    assert genes_that_fit(1_000_000, 8) == 1250
    with memory_limit(1):
        assert genes_that_fit(1_000_000, 8) == 0


def test_what_does_not_fit_is_refused_with_the_remedy():
    require_memory(1_000_000, 1250, 8, "no remedy")
    with pytest.raises(
        MemoryError, match=r"1000000 x 1251 genes takes 10.0 GB, and 10.0 GB of memory are free: name fewer"
    ):
        require_memory(1_000_000, 1251, 8, "name fewer")


def test_maps_are_counted():
    assert genes_that_fit(1_000_000, 8, 2_000_000) == 1000
    with pytest.raises(MemoryError, match=r"x 1001 genes and its maps take 10.0 GB, and 10.0 GB"):
        require_memory(1_000_000, 1001, 8, "name fewer", 2_000_000)


def test_the_limit_ends_with_an_error():
    with pytest.raises(KeyError), memory_limit(5):
        raise KeyError
    assert free_memory() == 10e9
    with pytest.raises(ValueError, match="limit of 0 GB"), memory_limit(0):
        pass
