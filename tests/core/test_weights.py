"""Files that pass for weights."""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch

from pixel2gene.core.encoders.hipt import GLOBAL_FILE, LOCAL_FILE, hipt_from_folder
from pixel2gene.core.encoders.vit_folder import vit_from_folder


@pytest.mark.parametrize(
    ("load", "files"), [(hipt_from_folder, (LOCAL_FILE, GLOBAL_FILE)), (vit_from_folder, ("pytorch_model.bin",))]
)
def test_a_tar_archive_is_refused_and_not_unpacked(
    load: object, files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    for file in files:
        with tarfile.open(tmp_path / file, "w") as archive:
            archive.add(tmp_path / "config.json", "storages")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="is a tar archive"):
        load(tmp_path, torch.device("cpu"))
