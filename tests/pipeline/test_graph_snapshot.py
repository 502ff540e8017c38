"""The graph of the shipped configuration: keys, dependencies, groups, ops, pools, checks, automation."""

import difflib
import os
from pathlib import Path

import pytest

from tests.support.graph_snapshot import shipped

SNAPSHOT = Path(__file__).with_name("graph_snapshot.txt")


@pytest.mark.slow
def test_the_shipped_graph_is_the_one_in_the_snapshot(monkeypatch):
    for variable in [name for name in os.environ if name.startswith("TOKENUQ_")]:
        monkeypatch.delenv(variable)
    expected, found = SNAPSHOT.read_text().splitlines(), shipped().splitlines()
    changed = "\n".join(difflib.unified_diff(expected, found, "graph_snapshot.txt", "config/", lineterm="", n=0))
    assert not changed, f"{changed}\nIf this is intended: python -m tests.support.graph_snapshot > {SNAPSHOT}"
