"""Messages between the pipeline and a child process: requests, results and check outcomes, as JSON."""

import json
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from tokenuq_ml.config import spec_hash
from tokenuq_ml.progress import Reporter


class AssetRequest(BaseModel):
    """One asset that a child process makes."""

    model_config = ConfigDict(extra="forbid")
    fields: dict
    code_version: str
    outputs: dict[str, str]
    """Output name (a table, or `adapter`, `weights`, ...) -> empty folder to fill."""

    @property
    def spec_hash(self) -> str:
        """The hash of the fields."""
        return spec_hash(self.fields)

    @property
    def stamp(self) -> dict[str, str]:
        """What each table of the asset records of its origin; keywords of `write_table`."""
        return {"spec_hash": self.spec_hash, "code_version": self.code_version}


class StageRequest(BaseModel):
    """What a child process reads: the assets to make, and the files to make them from."""

    model_config = ConfigDict(extra="forbid")
    entrypoint: str
    study: str | None = None
    ablation: str | None = None
    assets: dict[str, AssetRequest]
    """Stage name -> request. The child process makes these assets and no others."""
    inputs: dict[str, str]
    """Input name -> folder or file of a complete asset."""
    work_dir: str
    """Folder for checkpoints and caches, private to this stage and its fields. Outlives a run, so that work resumes."""

    @classmethod
    def read(cls, path: str | Path) -> "StageRequest":
        """Read a request from a JSON file."""
        return cls.model_validate_json(Path(path).read_text())

    def write(self, path: str | Path) -> None:
        """Write the request as JSON."""
        Path(path).write_text(json.dumps(self.model_dump(mode="json"), indent=1))


class CheckOutcome(BaseModel):
    """The result of an asset check: whether it passed, a description, and its figures."""

    model_config = ConfigDict(extra="forbid")
    passed: bool
    description: str
    figures: dict[str, float | int | str | None] = {}


class AssetResult(BaseModel):
    """What a child process reports for one asset after its outputs are complete."""

    model_config = ConfigDict(extra="forbid")
    stage: str
    data_version: str
    """Hash of the logical content: rows and tensors, not file bytes, times or paths."""
    metrics: dict[str, float | int | str | bool | None] = {}
    """Key figures, shown as metadata."""
    plots: dict[str, str] = {}
    """Title -> PNG inside an output, as `<output>/<file>`."""
    checks: dict[str, CheckOutcome] = {}
    """Name of an asset check -> its outcome, for checks that need the model in memory."""
    packages: dict[str, str] = {}
    """Package -> version that computed the asset; filled in by the reporter."""


class StageReporter(Reporter, Protocol):
    """A reporter that also receives the results of assets."""

    def done(self, result: AssetResult) -> None:
        """Report a complete asset."""
