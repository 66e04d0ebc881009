"""her2st: where it is looked for, and that a download is announced, checked and whole."""

import hashlib
import io
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pixel2gene import datasets
from pixel2gene.datasets import _her2st


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("PIXEL2GENE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def offline(url: str, timeout: float) -> io.BytesIO:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)


def write_section(root: Path, section: str = "C2") -> None:
    for name in ("counts", "spots", "images", "cluster_labels"):
        (root / "her2st" / name).mkdir(parents=True, exist_ok=True)
    counts, spots, image, labels = (root / "her2st" / name for name in _her2st._names(section))
    x, y = (axis.ravel() + 1 for axis in np.indices((4, 4)))
    frame = pd.DataFrame({"x": x, "y": y, "pixel_x": 10.0 * x, "pixel_y": 10.0 * y})
    frame.to_csv(spots, sep="\t", index=False)
    names = [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
    pd.DataFrame(1, index=names, columns=["ERBB2"]).to_csv(counts, sep="\t")
    # The last spot is in no cluster.
    frame.assign(label=x % 2).iloc[:-1].to_csv(labels, sep="\t")
    Image.fromarray(np.full((60, 60, 3), 200, np.uint8)).save(image)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Serve a section, with the right checksums; tells the URLs that were asked for."""
    write_section(tmp_path / "server")
    content = {
        f"{_her2st._REPOSITORY}/{path}": (tmp_path / "server" / "her2st" / name).read_bytes()
        for name, path in _her2st._names_in_repository("C2").items()
    }
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content[url])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for name, path in _her2st._names_in_repository("C2").items():
        sha256 = hashlib.sha256(content[f"{_her2st._REPOSITORY}/{path}"]).hexdigest()
        monkeypatch.setitem(_her2st._SHA256, name, sha256)
    return lambda: asked


def test_folder(tmp_path: Path) -> None:
    write_section(tmp_path / "mine")
    table = datasets.her2st("C2", folder=tmp_path / "mine")["counts"]
    assert table.shape == (16, 1)
    cluster = table.obs["cluster"]
    assert cluster.loc["2x3"] == "0" and cluster.loc["3x2"] == "1"
    assert cluster.isna().sum() == 1


def test_clusters_are_optional(tmp_path: Path) -> None:
    write_section(tmp_path / "mine")
    (tmp_path / "mine" / "her2st" / _her2st._names("C2")[3]).unlink()
    assert "cluster" not in datasets.her2st(folder=tmp_path / "mine")["counts"].obs


def test_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_section(tmp_path / "mine", "C3")
    monkeypatch.setenv("PIXEL2GENE_DATA", str(tmp_path / "mine"))
    assert datasets.her2st("C3")["counts"].n_obs == 16


def test_shared_folder_beside_the_project(tmp_path: Path) -> None:
    write_section(tmp_path / "shared" / "data", "C4")
    assert datasets.her2st("C4")["counts"].n_obs == 16


def test_download_once(served: Callable[[], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert datasets.her2st("C2")["counts"].n_obs == 16
    assert len(served()) == 4 and all(url.startswith("https://") for url in served())
    assert all(url in caplog.text for url in served())
    assert " MB" in caplog.text
    datasets.her2st("C2")
    assert len(served()) == 4
    kept = {str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert kept == {f"pixel2gene/her2st/{name}" for name in _her2st._names("C2")}


def test_wrong_download_is_refused(
    served: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_her2st._SHA256, "images/C2.jpg", "0" * 64)
    with pytest.raises(ValueError, match="5714_HE_BT_C2.jpg is not the file that it was"):
        datasets.her2st("C2")
    assert not list((tmp_path / "cache").rglob("*.jpg"))


def test_offline() -> None:
    with pytest.raises(FileNotFoundError, match="no network.*folder=.*PIXEL2GENE_DATA"):
        datasets.her2st("C2")


def test_incomplete_folder(tmp_path: Path) -> None:
    write_section(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match=r"lacks \['counts/C4.tsv.gz', .*PIXEL2GENE_DATA"):
        datasets.her2st("C4", folder=tmp_path / "mine")


def test_unknown_section() -> None:
    with pytest.raises(ValueError, match=r"No section 'A1' of her2st; there are \['C2', 'C3', 'C4'\]"):
        datasets.her2st("A1")
