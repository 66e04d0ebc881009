"""The entry for the registry of the scverse ecosystem has what its schema (2.0) requires."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_entry() -> None:
    entry = yaml.safe_load((ROOT / "docs" / "meta.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = {"name", "description", "project_home", "documentation_home", "license", "version", "category"}
    assert all(isinstance(entry[key], str) for key in texts)
    assert entry["name"] == entry["install"]["pypi"] == project["name"]
    assert entry["license"] == project["license"] and entry["category"] == "ecosystem"
    assert entry["tags"] and len(set(entry["tags"])) == len(entry["tags"]) and entry["contact"]
    assert entry["test_command"] in (ROOT / "README.md").read_text()
