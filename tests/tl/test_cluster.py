"""The same on the workers of a dask cluster, also if one of them dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from spatialdata import SpatialData, deepcopy, read_zarr

import pixel2gene as p2g
from pixel2gene.spatial import raster

PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client


def stored(sdata: SpatialData, path: Path) -> SpatialData:
    """Without its embedding."""
    copy = deepcopy(sdata)
    del copy["he_embedding"]
    copy.attrs["pixel2gene"] = {"he_tissue": sdata.attrs["pixel2gene"]["he_tissue"]}
    copy.write(path)
    return read_zarr(path)


def kill_one_once(client: Client, store: Path) -> tuple[threading.Thread, threading.Event]:
    """Kill a worker as soon as a tile is finished, while others are being worked on."""
    killed = threading.Event()
    victim = min(info["pid"] for info in client.run(lambda: {"pid": os.getpid()}).values())

    def wait_and_kill() -> None:
        deadline = time.monotonic() + PATIENCE
        while not list(store.glob(".pixel2gene/tiles-*/*.tile")):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread, killed


def test_workers_do_what_threads_do_and_may_die(
    client: Client, embedded_once: SpatialData, fitted_once: p2g.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small tiles, so that there are many.
    monkeypatch.setattr(raster, "ENCODED", 16)
    (tmp_path / "local").mkdir()
    with client.as_current():
        sdata = stored(embedded_once, tmp_path / "slide.zarr")
        killer, killed = kill_one_once(client, tmp_path / "slide.zarr")
        p2g.tl.embed(sdata, "he", progress=False)
        killer.join()
        assert killed.is_set()
        p2g.tl.predict(sdata, fitted_once, lazy=True, progress=False)
        sdata.write_element("predicted_map")
    results = read_zarr(sdata.path)

    alone = stored(embedded_once, tmp_path / "local" / "slide.zarr")
    with dask.config.set(scheduler="threads"):
        p2g.tl.embed(alone, "he", progress=False)
        p2g.tl.predict(alone, fitted_once, lazy=True, progress=False)
        expected = alone["predicted_map"].compute()
    np.testing.assert_array_equal(results["he_embedding"].values, alone["he_embedding"].values)
    for key in ("predicted_latent", "predicted_trust"):
        np.testing.assert_allclose(results[key].values, alone[key].values, rtol=2e-3, atol=2e-3)
    found = results["predicted_map"].compute()
    assert found.coords.equals(expected.coords)
    xr.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)
