"""Sections of HER2-positive breast cancer, from local files or from the authors' repository."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tempfile
import urllib.request
from pathlib import Path

import pandas as pd
from spatialdata import SpatialData

from pixel2gene.io import legacy_st

_REPOSITORY = "https://raw.githubusercontent.com/almaan/her2st"
_COUNTS_COMMIT = "e75e5c53a994726a8ad251aaf653a02d7932eb6a"
_SPOTS_COMMIT = "9f2260c6aa8347996955d53f0a5f06ac14c93470"
_LABELS_COMMIT = "5ef75b9530d59eff0965ad104672e75a7f0e2023"
# Array that each section was on, by which its image is named.
_ARRAYS = {"C2": "C2", "C3": "D1", "C4": "D2"}
_SHA256 = {
    "counts/C2.tsv.gz": "c1c59ea6cffae36b9ecb561b8e2a97e3aa5f4085f748e991a0e330ed9d09773d",
    "counts/C3.tsv.gz": "e00c55a3eb9caac5d9c71b8906aae8be8b38f93e23938f4a0ebee17683ef6a2a",
    "counts/C4.tsv.gz": "33201f76d41d7131dc600a0f87d9a70383af3503e81698b4d11e6f2e8d73e9da",
    "spots/C2_selection.tsv": "235b5f4306b3b57c628ffc82c98c7109602474fbcc79a917b9c50517f99b6b1c",
    "spots/C3_selection.tsv": "7fd76c13370b7804ac3bb377b846d22485cf9223f9dd8dfc25be06e5aaf65755",
    "spots/C4_selection.tsv": "47e79f3b9dbfa3a8c18af9e948ba7ba4bf0a75ea1b4c292bc714ced7d0917d4c",
    "images/C2.jpg": "26e2f73ae840cdd46c5bba405aae181f13a56a376b9848dff23f7a9c5de7f19e",
    "images/C3.jpg": "0005a92674014d473040a28f0afca89ce5fa5c44019b479b638ceb3272ceb568",
    "images/C4.jpg": "f40607eb1d5f0d125decd71c48b0c5d29cf6776ad92297fd185631208c82d6f2",
    "cluster_labels/C2-cluster-annotation.tsv.gz": "3211500325b1be1cd2be7480f2b094a48647fc25df4d8fe6afb8c48c15650ece",
    "cluster_labels/C3-cluster-annotation.tsv.gz": "a1522a14855bc2022ccbb9ea9cbae59837cbcd310bc4c02727ae6bfa37e6d369",
    "cluster_labels/C4-cluster-annotation.tsv.gz": "a5cc7a3a40983a21ea8400145c80a7dc5b13e7468b987ec0610f4c2123978c71",
}
_VARIABLE = "PIXEL2GENE_DATA"
_REMEDY = (
    "pass the folder that holds her2st/counts, her2st/spots and her2st/images as folder=, or name it in the "
    f"environment variable {_VARIABLE}."
)
_BLOCK = 1 << 20

logger = logging.getLogger("pixel2gene")


def her2st(section: str = "C2", *, folder: str | Path | None = None) -> SpatialData:
    """Load a section of HER2-positive breast cancer, measured by legacy Spatial Transcriptomics.

    Three sections of one patient, each with about 180 spots of 100 µm and 15,700 genes, from Andersson et al., Nat
    Commun 12:6012, 2021 (https://doi.org/10.1038/s41467-021-26271-2), CC-BY 4.0. Cite them when you use the data.

    The files are looked for in ``her2st`` in `folder`; else in the folder that the environment variable
    ``PIXEL2GENE_DATA`` names; else in ``shared/data`` in a parent of the working directory. Where there are none, 5 MB
    are downloaded once from the authors' GitHub repository to ``~/.cache/pixel2gene`` (or ``XDG_CACHE_HOME``).

    Parameters
    ----------
    section
        ``"C2"``, ``"C3"`` or ``"C4"``.
    folder
        Folder that holds ``her2st`` with ``counts``, ``spots``, ``images`` and, if you like, ``cluster_labels``.

    Returns
    -------
    SpatialData as :func:`pixel2gene.io.legacy_st` makes it, with the authors' expression clusters in
    ``tables["counts"].obs["cluster"]`` where their file is there.

    Raises
    ------
    ValueError
        If the section is not known, or if a download is not the file that it should be.
    FileNotFoundError
        If the folder lacks a file, or if there is no folder and the download fails.

    Examples
    --------
    >>> sdata = p2g.datasets.her2st("C2")  # doctest: +SKIP
    """
    if section not in _ARRAYS:
        raise ValueError(f"No section {section!r} of her2st; there are {sorted(_ARRAYS)}.")
    counts, spots, image, labels = _names(section)
    root = _local_root(folder)
    if root is None:
        root = _cache() / "her2st"
        for name, path in _names_in_repository(section).items():
            _fetch(f"{_REPOSITORY}/{path}", root / name, _SHA256[name])
    missing = [name for name in (counts, spots, image) if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{root} lacks {missing}; {_REMEDY}")
    sdata = legacy_st(root / counts, root / spots, root / image)
    if (root / labels).is_file():
        _add_clusters(sdata, root / labels)
    return sdata


def _names(section: str) -> tuple[str, str, str, str]:
    return (
        f"counts/{section}.tsv.gz",
        f"spots/{section}_selection.tsv",
        f"images/{section}.jpg",
        f"cluster_labels/{section}-cluster-annotation.tsv.gz",
    )


def _names_in_repository(section: str) -> dict[str, str]:
    """Commit and path in the repository of each of our files."""
    paths = (
        f"{_COUNTS_COMMIT}/data/ST-cnts/{section}.tsv.gz",
        f"{_SPOTS_COMMIT}/data/ST-spotfiles/{section}_selection.tsv",
        f"{_SPOTS_COMMIT}/data/ST-imgs/C/{section}/5714_HE_BT_{_ARRAYS[section]}.jpg",
        f"{_LABELS_COMMIT}/res/ST-cluster/lbl/{section}-cluster-annotation.tsv.gz",
    )
    return dict(zip(_names(section), paths, strict=True))


def _local_root(folder: str | Path | None) -> Path | None:
    named = folder or os.environ.get(_VARIABLE)
    if named:
        return Path(named).expanduser() / "her2st"
    found = (parent / "shared" / "data" / "her2st" for parent in Path.cwd().parents)
    return next((root for root in found if root.is_dir()), None)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixel2gene"


def _fetch(url: str, target: Path, sha256: str) -> None:
    """Download a file unless it is there already; it appears whole and as expected, or not at all."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # A warning, because nobody sees less by default and nobody likes a program that calls out in silence.
    logger.warning("Downloading %s to %s.", url, target)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        try:
            with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
                while block := response.read(_BLOCK):
                    file.write(block)
        except (OSError, http.client.HTTPException) as error:
            raise FileNotFoundError(f"{url} could not be downloaded ({error}); {_REMEDY}") from error
        logger.warning("Downloaded %.2f MB.", part.stat().st_size / 1e6)
        found = hashlib.sha256(part.read_bytes()).hexdigest()
        if found != sha256:
            raise ValueError(
                f"{url} is not the file that it was: its SHA-256 is {found}, {sha256} is expected; {_REMEDY}"
            )
        os.replace(part, target)


def _add_clusters(sdata: SpatialData, path: Path) -> None:
    frame = pd.read_csv(path, sep="\t")
    frame.index = pd.Index([f"{x}x{y}" for x, y in zip(frame["x"], frame["y"], strict=True)])
    obs = sdata.tables["counts"].obs
    obs["cluster"] = pd.Categorical(frame["label"].reindex(obs.index).astype("Int64").astype("string"))
