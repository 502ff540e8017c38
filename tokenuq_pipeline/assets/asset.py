"""One asset of the graph as plain data."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.stages.versions import code_version
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.runtime.store import Store

"""Rows of the report that no ablation makes."""


@dataclass(frozen=True)
class StageCheck:
    """A blocking check that runs inside the stage's own op, right after its asset is published."""

    name: str
    description: str
    evaluate: Callable[[Store], dg.AssetCheckResult]


@dataclass(frozen=True)
class StageAsset:
    """What one asset is made from, by what, and where it lies. Places are relative to the store."""

    stage: str
    path: tuple[str, ...]
    fields: dict
    description: str
    kinds: frozenset[str]
    outputs: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)
    deps: tuple[tuple[str, ...], ...] = ()
    table: str | None = None
    study: str | None = None
    ablation: str | None = None
    checks: tuple[StageCheck, ...] = ()
    observed: tuple[tuple[str, ...], ...] = ()
    """Inputs that no stage makes: Dagster compares them, the store does not know them."""
    needs_model: bool = False
    """Whether the child loads a model: then it takes a slot of the pool `accelerator`."""
    follows_inputs: bool = False
    """Whether it is so cheap that it may be rebuilt, unasked, whenever its inputs have changed."""

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey(self.path)

    @property
    def name(self) -> str:
        """The key as people write it; also the name of the asset's manifest."""
        return "/".join(self.path)

    @property
    def code_version(self) -> str:
        return code_version(self.stage, self.fields)

    @property
    def group(self) -> str:
        if self.study is None:
            return self.path[0]
        return f"{self.study}__{self.ablation}" if self.ablation else self.study

    @property
    def tables(self) -> dict[str, str]:
        """Output name -> table, of the outputs that are tables."""
        names = {output: table_of(output) for output in self.outputs}
        return {output: table for output, table in names.items() if table}


def seed_of(fields: dict) -> int | None:
    """The seed that decides the asset: its own, its ablation's, or that of what it measures; None where none does."""
    own = (fields, fields.get("ablation"), fields.get("uncertainty"), fields.get("evaluation"))
    return next((part["seed"] for part in own if part and part.get("seed") is not None), None)


def table_of(output: str) -> str | None:
    """The table that an output holds, if any: `evaluations_base` is of `evaluations`."""
    return next(
        (name for name in (output, re.sub(rf"_({'|'.join(REFERENCE_ROWS)})$", "", output)) if name in TABLES), None
    )
