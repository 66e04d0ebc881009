"""A few of the damaged and hostile files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def test_each_is_read_or_refused_in_words() -> None:
    # Of its own, because its memory is limited.
    ended = subprocess.run([sys.executable, SCRIPT, "--inputs", "200", "--seed", "7"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "FileNotFoundError" in ended.stdout
