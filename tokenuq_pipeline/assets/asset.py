"""One asset of the graph as plain data: what makes it, from what, and where it is stored."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_ml.stages.versions import code_version
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.drawn_edges import drawn
from tokenuq_pipeline.assets.inputs import AssetPath, Input
from tokenuq_pipeline.runtime.data_files import ObservedFiles
from tokenuq_pipeline.runtime.store import Store


@dataclass(frozen=True)
class StageCheck:
    """A blocking check that runs in the op of its asset, right after the asset is published."""

    name: str
    description: str
    evaluate: Callable[[Store], dg.AssetCheckResult]


@dataclass(frozen=True)
class StageAsset:
    """One asset. Paths of inputs and outputs are relative to the store."""

    stage: str
    """The stage that makes it: a key of `tokenuq_ml.stages.versions.REVISIONS`."""
    path: AssetPath
    """The parts of its key."""
    fields: dict
    """The part of the configuration that the stage may read; decides the code version."""
    description: str
    kinds: frozenset[str]
    outputs: dict[str, str]
    """Output name (a table, or `adapter`, `plots`, ...) -> folder."""
    inputs: tuple[Input, ...] = ()
    table: str | None = None
    """The main table, whose columns the UI shows."""
    study: str | None = None
    ablation: str | None = None
    checks: tuple[StageCheck, ...] = ()
    observed_files: tuple[ObservedFiles, ...] = ()
    """Inputs that no stage makes: `files/<dataset>`, `curation/<name>`."""
    files: dict[str, str] = field(default_factory=dict)
    """Input name -> path of a user's file that is observed. Not part of the fields, so that it may be moved."""
    needs_model: bool = False
    """The stage loads a model, so it takes a slot of the pool `accelerator`."""
    follows_inputs: bool = False
    """The stage is so cheap that it may be rebuilt automatically when its inputs have changed."""

    @property
    def key(self) -> dg.AssetKey:
        """Return Dagster's key."""
        return dg.AssetKey(self.path)

    @property
    def name(self) -> str:
        """Return the key as people write it, which is also the name of the manifest."""
        return "/".join(self.path)

    @property
    def reads(self) -> tuple[AssetPath, ...]:
        """Return the assets that make the inputs: all that the stage reads of the store."""
        return tuple(dict.fromkeys(item.asset for item in self.inputs))

    @property
    def optional_reads(self) -> frozenset[AssetPath]:
        """Return those of `reads` that may be missing: the stage reads what was made."""
        return frozenset(item.asset for item in self.inputs if item.optional)

    @property
    def deps(self) -> tuple[AssetPath, ...]:
        """Return the assets of `reads` from which an edge is drawn; the others arrive through one of these."""
        return drawn(self.stage, self.inputs)

    @property
    def observed(self) -> tuple[AssetPath, ...]:
        """Return the keys of the observed files."""
        return tuple(tuple(files.key.path) for files in self.observed_files)

    @property
    def code_version(self) -> str:
        """Return `<revision>-<hash of the fields>`."""
        return code_version(self.stage, self.fields)

    @property
    def group(self) -> str:
        """Return the group in which the UI draws the asset: its study, or `models` or `datasets`.

        Each ablation is a group inside that of its study, closed at first: nodes show only the last part of their key,
        so that without it all students would be called `student`.
        """
        if self.study is None:
            return self.path[0]
        return f"{self.study}/{self.ablation}" if self.ablation else self.study

    @property
    def tables(self) -> dict[str, str]:
        """Return output name -> table, for outputs that are tables."""
        names = {output: table_of(output) for output in self.outputs}
        return {output: table for output, table in names.items() if table}


def seed_of(fields: dict) -> int | None:
    """Return the seed that decides an asset: its own, or that of its ablation, uncertainty or evaluation."""
    own = (fields, fields.get("ablation"), fields.get("uncertainty"), fields.get("evaluation"))
    return next((part["seed"] for part in own if part and part.get("seed") is not None), None)


def table_of(output: str) -> str | None:
    """Return the table that an output holds, if any: `evaluations_base` holds `evaluations`."""
    return next((name for name in (output, re.sub("_(base|teacher)$", "", output)) if name in TABLES), None)
