"""What a child process is asked and what it answers: requests, results and check outcomes as JSON.

Does not know where files are stored or how a child is started.
"""

import json
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from tokenuq_ml.config import spec_hash
from tokenuq_ml.progress import Reporter


class AssetRequest(BaseModel):
    """One asset that a child is to make."""

    model_config = ConfigDict(extra="forbid")
    fields: dict
    code_version: str
    outputs: dict[str, str]
    """Output name (a table, or `adapter`, `weights`, ...) -> empty folder to fill."""

    @property
    def spec_hash(self) -> str:
        return spec_hash(self.fields)

    @property
    def stamp(self) -> dict[str, str]:
        """What every file of the asset says it was made from; the keywords of `write_table`."""
        return {"spec_hash": self.spec_hash, "code_version": self.code_version}


class StageRequest(BaseModel):
    """What a child process reads: the assets to make, the files to make them from."""

    model_config = ConfigDict(extra="forbid")
    entrypoint: str
    study: str | None = None
    ablation: str | None = None
    assets: dict[str, AssetRequest]
    """Stage name -> request. A child skips the stages that are not asked for."""
    inputs: dict[str, str]
    """Input name -> folder or file of an asset that is there already."""
    work_dir: str
    """Private to this stage and fields; kept between runs, so that training resumes."""

    @classmethod
    def read(cls, path: str | Path) -> "StageRequest":
        return cls.model_validate_json(Path(path).read_text())

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.model_dump(mode="json"), indent=1))


class CheckOutcome(BaseModel):
    """Whether a check passed, in words, with its figures."""

    model_config = ConfigDict(extra="forbid")
    passed: bool
    description: str
    figures: dict[str, float | int | str | None] = {}


class AssetResult(BaseModel):
    """What a child reports of one asset, once its outputs are whole."""

    model_config = ConfigDict(extra="forbid")
    stage: str
    data_version: str
    """Hash of the logical content: rows and tensors, never bytes of files, times or paths."""
    metrics: dict[str, float | int | str | bool | None] = {}
    """Key figures, shown as metadata. Float, int, str, bool."""
    plots: dict[str, str] = {}
    """Title -> a PNG inside one of the outputs, as `<output>/<file>`."""
    checks: dict[str, CheckOutcome] = {}
    """Checks that need the model, and so were made where it is; by the name of the asset check."""
    packages: dict[str, str] = {}
    """Versions of what it was computed with; filled in by the process that reports."""


class StageReporter(Reporter, Protocol):
    """A reporter that also takes the result of an asset."""

    def done(self, result: AssetResult) -> None: ...
