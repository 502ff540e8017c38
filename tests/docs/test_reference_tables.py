"""The reference tables of the pages are complete: tables, manifest fields, checks, environment variables, formats."""

import re
from typing import get_args

from tests.support.paths import ROOT
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.stages.versions import REVISIONS
from tokenuq_ml.tables import TABLES
from tokenuq_pipeline.runtime.manifest import Manifest, Provenance

INTERNAL = {
    "TOKENUQ_PARENT_PIPE",
    "TOKENUQ_PARENT_LEASE_SECONDS",
    "TOKENUQ_PRELOADED_SOCKET",
    "TOKENUQ_JOB_VARIABLES",
    "TOKENUQ_JOB_FOLDER",
    "TOKENUQ_JOB_STORE",
    "TOKENUQ_GIVEN_",
    "TOKENUQ_RANKS_START",
    "TOKENUQ_STEP_JOB",
}
"""Set by tokenuq for its own child processes."""


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def test_the_store_layout_has_every_table_and_manifest_field():
    layout = text("store_layout.md")
    assert not [table for table in TABLES if f"`{table}/" not in layout]
    assert not [name for name in (*Manifest.model_fields, *Provenance.model_fields) if f"`{name}`" not in layout]


def test_every_stage_is_in_the_asset_graph():
    graph = text("architecture.md").partition("## The asset graph")[2].partition("## ")[0]
    assert not [stage for stage in REVISIONS if stage not in graph]


def test_every_environment_variable_is_explained():
    code = [
        path.read_text() for package in ("tokenuq_ml", "tokenuq_pipeline") for path in (ROOT / package).rglob("*.py")
    ]
    variables = {name for source in code for name in re.findall(r"\bTOKENUQ_[A-Z_]+\b", source)}
    pages = text("operations.md") + text("data.md")
    assert not [name for name in variables - INTERNAL if f"`{name}`" not in pages]


def test_every_format_is_explained():
    formats = get_args(DatasetSpec.model_fields["format"].annotation)
    assert formats and not [name for name in formats if f"| `{name}` |" not in text("data.md")]
