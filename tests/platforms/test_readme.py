"""What the README shows to somebody with a Visium HD slide, as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.usefixtures("short_default")
def test_own_visium_hd(visium_hd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.M | re.S)
    for name, simulated in zip(("EPCAM", "COL1A1", "CD74"), visium_hd.direct["counts"].var_names, strict=False):
        assert f'"{name}"' in code
        code = code.replace(name, simulated)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(visium_hd.folder, "outs")
    # Space Ranger itself puts no name of a sample before this file.
    Path("outs/sim_feature_slice.h5").rename("outs/feature_slice.h5")
    Path("outs/microscope_image/he.tif").rename("he.tif")
    exec(code, {})
    plt.close("all")
    assert Path("gene.png").stat().st_size > 20_000
