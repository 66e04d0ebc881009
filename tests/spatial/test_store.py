"""One process at a time, and whole or not at all, wherever it dies."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from pixel2gene.core.lock import locked
from pixel2gene.spatial import store as module
from pixel2gene.spatial.elements import image_element, labels_element, table_element, write_elements
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.store import OWN, RECORDS, alone


def slide():
    he = Image2DModel.parse(np.zeros((3, 32, 48), np.uint8), dims=("c", "y", "x"))
    return SpatialData(images={"he": he})


@pytest.fixture
def backed(tmp_path):
    slide().write(tmp_path / "slide.zarr")
    return read_zarr(tmp_path / "slide.zarr")


def results(sdata, value=1.0):
    """An image, labels and a table that annotates them, of another size for each value."""
    side = int(value) + 1
    grid = Grid((side, side), 8.0, {"global": Identity()})
    rows = np.full((grid.size, 2), value, np.float32)
    table = ad.AnnData(rows, var=pd.DataFrame(index=["ACTB", "ERBB2"]))
    return {
        "predicted": table_element(table, "predicted_superpixels", np.arange(1, grid.size + 1)),
        "predicted_map": image_element(rows.T.reshape(2, side, side), grid, ["ACTB", "ERBB2"]),
        "predicted_superpixels": labels_element(grid.ids(np.ones(grid.shape, bool)), grid),
    }


def assert_holds(sdata, value):
    expected = results(slide(), value)
    for key in ("predicted_map", "predicted_superpixels"):
        np.testing.assert_array_equal(sdata[key].values, expected[key].values)
    np.testing.assert_array_equal(sdata.tables["predicted"].X, expected["predicted"].X)


class Death(BaseException):
    """No handler of errors sees it, and nothing is put in order."""


@alone
def verb(sdata, change=lambda sdata: None):
    change(sdata)


def put(sdata, value, instead_of=()):
    write_elements(
        sdata,
        results(sdata, value),
        {"verb": "predict", "value": value},
        progress=False,
        label="predict",
        instead_of=instead_of,
    )


def names(store):
    return {
        f"{path.parent.name}/{path.name}"
        for path in Path(store).glob("*/*")
        if path.is_dir() and path.parent.name != OWN
    }


def listed(store):
    """Elements that the consolidated metadata name, None if there are none."""
    root = json.loads((Path(store) / "zarr.json").read_text()).get("consolidated_metadata")
    return None if root is None else {name for name in root["metadata"] if name.count("/") == 1}


@pytest.mark.parametrize("step", range(9))
def test_wherever_it_dies_all_is_old_or_the_next_verb_finishes(backed, monkeypatch, step):
    put(backed, 1.0)
    renamed, rename = [], os.rename

    def dying(source, target):
        if len(renamed) == step:
            raise Death
        renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", dying)
    try:
        verb(backed, lambda sdata: put(sdata, 2.0))
        died = False
    except Death:
        died = True
    monkeypatch.undo()
    # One to make ready, two for each of three elements, one to end.
    assert died == (step < 8)
    assert listed(backed.path) in (None, names(backed.path))
    again = read_zarr(backed.path)
    committed = step > 0
    if not committed:
        assert_holds(again, 1.0)
    verb(again)
    for sdata in (again, read_zarr(backed.path)):
        assert_holds(sdata, 2.0 if committed else 1.0)
        assert sdata.attrs[RECORDS]["predicted"]["value"] == (2.0 if committed else 1.0)
    assert listed(backed.path) == names(backed.path)
    assert not (Path(backed.path) / OWN).exists()


def test_what_stands_instead_is_dropped_also_later(backed, monkeypatch):
    put(backed, 1.0)
    grid_image = {"other": results(backed)["predicted_map"]}
    rename = os.rename

    def dying(source, target):
        if Path(source).name == "predicted_map":
            raise Death
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", dying)
    with pytest.raises(Death):
        write_elements(backed, grid_image, {"verb": "x"}, progress=False, label="x", instead_of=["predicted_map"])
    monkeypatch.undo()
    again = read_zarr(backed.path)
    assert "predicted_map" in again and "other" in again
    verb(again)
    assert "predicted_map" not in again and "predicted_map" not in read_zarr(backed.path)


def ready(backed, monkeypatch):
    """Die when all is written and nothing moved in."""
    monkeypatch.setattr(module, "_finish", lambda store: (_ for _ in ()).throw(Death))
    with pytest.raises(Death):
        put(backed, 2.0)
    monkeypatch.undo()
    return Path(backed.path) / OWN / "ready"


def test_what_the_user_wrote_meanwhile_stays(backed, monkeypatch):
    ready(backed, monkeypatch)
    again = read_zarr(backed.path)
    again["predicted_map"] = results(again, 5.0)["predicted_map"]
    again.write_element("predicted_map")
    verb(again)
    expected = results(slide(), 5.0)["predicted_map"].values
    np.testing.assert_array_equal(read_zarr(backed.path)["predicted_map"].values, expected)
    # It is the user's own, and the others came in.
    assert set(again.attrs[RECORDS]) == {"predicted", "predicted_superpixels"}


def test_names_that_lead_elsewhere_are_left_alone(backed, monkeypatch, tmp_path):
    (tmp_path / "thesis").mkdir()
    root = ready(backed, monkeypatch) / "zarr.json"
    staged = json.loads(root.read_text())
    staged["attributes"]["dropped"] = ["../../thesis", "..", ".", str(tmp_path / "thesis")]
    root.write_text(json.dumps(staged))
    verb(read_zarr(backed.path))
    assert (tmp_path / "thesis").is_dir()
    assert_holds(read_zarr(backed.path), 2.0)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'])
def test_a_damaged_journal_is_told(backed, monkeypatch, damage):
    place = ready(backed, monkeypatch)
    (place / "zarr.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"\.pixel2gene/ready is damaged: remove it"):
        verb(backed)


def test_records_that_others_wrote_stay(backed):
    """Of two SpatialData on one store, the later verb keeps what the earlier recorded."""
    other = read_zarr(backed.path)
    put(backed, 1.0)
    grid_image = {"other": results(other)["predicted_map"]}
    write_elements(other, grid_image, {"verb": "x"}, progress=False, label="x")
    assert set(read_zarr(backed.path).attrs[RECORDS]) == {*results(slide()), "other"}


def test_the_second_is_refused_and_the_first_goes_on(backed):
    other = read_zarr(backed.path)

    def change(sdata):
        with pytest.raises(BlockingIOError, match=f"Process {os.getpid()} is writing to the store .*slide.zarr: wait"):
            verb(other)
        put(sdata, 1.0)

    verb(backed, change)
    verb(other)
    assert sorted(path.name for path in Path(backed.path).iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_verb_that_was_stopped_leaves_no_lock(backed, error):
    def change(sdata):
        raise error

    with pytest.raises(error):
        verb(backed, change)
    verb(backed)


def test_a_lock_dies_with_its_process(tmp_path):
    lock = tmp_path / "lock"
    holding = (
        "import os, signal, sys; from pathlib import Path; from pixel2gene.core.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'it'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", holding, lock], check=False)
    assert lock.exists()
    with locked(lock, "it"):
        pass
    assert not lock.exists()


def test_without_locks_it_goes_on(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("pixel2gene.core.lock.fcntl.flock", none)
    with locked(tmp_path / "lock", "it"):
        pass


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (
            lambda store, patch: patch.setattr(module.os, "access", lambda *_: False),
            PermissionError,
            "cannot be written",
        ),
        (lambda store, patch: store.rename(store.with_name("moved")), FileNotFoundError, "There is no store"),
        (lambda store, patch: (store / "zarr.json").unlink(), ValueError, "format of early versions of SpatialData"),
    ],
    ids=["read-only", "gone", "early format"],
)
def test_a_store_that_cannot_be_written_is_refused(backed, monkeypatch, prepare, error, message):
    prepare(Path(backed.path), monkeypatch)
    with pytest.raises(error, match=message):
        verb(backed)


def test_a_full_disk_is_told(backed):
    def change(sdata):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"The disk of .*slide.zarr is full: make room and run the same again"):
        verb(backed, change)
    verb(backed)


def test_what_is_no_spatialdata_is_refused():
    with pytest.raises(TypeError, match="sdata is a dict; a SpatialData is expected"):
        verb({})
