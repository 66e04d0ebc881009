"""A few of the moments at which verbs are stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crashes.py"


def test_nothing_is_lost_and_nothing_half_done(tmp_path: Path) -> None:
    out = tmp_path / "crashes.json"
    # Of its own, because only a process without threads can be forked.
    arguments = ["--moments", "4", "--ways", "killed", "--verbs", "embed,predict", "--out", str(out)]
    ended = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    killed = [row for row in json.loads(out.read_text())["rows"] if row["way"] == "killed"]
    assert [row["moments"] for row in killed] == [4, 4] and not any(row["wrong"] for row in killed)
    beside = [row["said"] for row in json.loads(out.read_text())["rows"] if row["way"] == "beside another"]
    assert len(beside) == 2 and all("is writing to the store" in said for said in beside)
