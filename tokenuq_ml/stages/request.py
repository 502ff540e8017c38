"""Messages between the pipeline and a child process: requests, results and check outcomes, as JSON."""

import json
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenuq_ml.config import spec_hash
from tokenuq_ml.config.resources import Processes, Sharding, StageResources
from tokenuq_ml.json_files import damaged, read_json
from tokenuq_ml.models.base_settings import BaseSettings
from tokenuq_ml.progress import Reporter
from tokenuq_ml.tracking.request import TrackingRequest

PARALLEL_STAGES = frozenset({"train_teacher", "train_student", "score_teacher", "measure_change"})
"""Entry points that run in several processes; the others are one process, whatever the study says."""

_REMEDY = "`tokenuq run` writes a new one; `tokenuq verify --forget` deletes what a run left behind"


def first_error(error: ValidationError) -> str:
    """Return where a file differs from its model first, and how: `files.0.bytes: Field required`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    return f"{where}: {first['msg']}"


class AssetRequest(BaseModel):
    """One asset that a child process makes."""

    model_config = ConfigDict(extra="forbid")
    fields: dict
    code_version: str
    outputs: dict[str, str]
    """Output name (a table, or `adapter`, `weights`, ...) -> empty folder to fill."""
    places: dict[str, str] = {}
    """Output name -> the folder of the store that it becomes."""

    @property
    def spec_hash(self) -> str:
        """The hash of the fields."""
        return spec_hash(self.fields)

    @property
    def stamp(self) -> dict[str, str]:
        """What each table of the asset records of its origin; keywords of `write_table`."""
        return {"spec_hash": self.spec_hash, "code_version": self.code_version}


class RecordedFile(BaseModel):
    """One file of an input, as the manifest of its asset records it."""

    model_config = ConfigDict(extra="forbid")
    bytes: int
    sha256: str | None
    """None: the stage does not read the file, so only its size is compared."""


class RecordedOrigin(BaseModel):
    """What the manifest of an input's asset says of its making, for a stage that describes it."""

    model_config = ConfigDict(extra="forbid")
    data_version: str
    code_version: str
    metrics: dict[str, float | int | str | bool | None] = {}
    provenance: dict[str, Any] = {}


class RecordedInput(BaseModel):
    """The files of an input, as the manifest of its asset records them."""

    model_config = ConfigDict(extra="forbid")
    asset: str
    files: dict[str, RecordedFile]
    """Path relative to the input -> the file. The input has these files and no others."""
    is_partial: bool = False
    """The folder need not hold what the stage does not read."""
    origin: RecordedOrigin | None = None
    """None: the stage does not describe it."""


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
    recorded: dict[str, RecordedInput] = {}
    """Input name -> what its folder must hold; `verify_inputs` compares it before the stage reads anything."""
    work_dir: str
    """Folder for checkpoints and caches, private to this stage and its fields. Outlives a run, so that work resumes."""
    processes: Processes = 1
    """As the study says. No part of any version: it decides where the work is done."""
    sharding: Sharding = "none"
    """As the study says. No part of any version."""
    resources: StageResources = StageResources()
    """As the study says. No part of any version."""
    tracking: TrackingRequest | None = None
    """The trackers that the study names. No part of any version."""

    @property
    def base_settings(self) -> BaseSettings:
        """How the study's base model is loaded, which all assets of a request have in their fields alike."""
        return BaseSettings.of(next(iter(self.assets.values())).fields)

    @classmethod
    def read(cls, path: str | Path) -> "StageRequest":
        """Read a request from a JSON file.

        Raises:
            InputError: there is no such file, or it is not a request; the message says what is wrong.
        """
        try:
            return cls.model_validate(read_json(path, _REMEDY))
        except FileNotFoundError:
            raise damaged(path, "is missing", _REMEDY) from None
        except ValidationError as error:
            raise damaged(path, first_error(error), _REMEDY) from None

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
