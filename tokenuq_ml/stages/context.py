"""What a stage that runs a model passes to its functions: request, reporter and numerics of one asset."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml import process_group
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Progress
from tokenuq_ml.stages import batch_actors
from tokenuq_ml.stages.request import AssetRequest, AssetResult, CheckOutcome, StageReporter, StageRequest


@dataclass(frozen=True)
class StageContext:
    """One asset of a request, with the reporter that receives its result and the numerics that compute it."""

    stage: str
    """A key of `request.assets`."""
    request: StageRequest
    reporter: StageReporter
    numerics: Numerics

    @property
    def asset(self) -> AssetRequest:
        """The request of the asset."""
        return self.request.assets[self.stage]

    @property
    def name(self) -> str:
        """The asset's name in progress lines, for example `study/ablation/student`."""
        return "/".join(part for part in (self.request.study, self.request.ablation, self.stage) if part)

    def input(self, name: str) -> Path:
        """Return the folder or file of an input."""
        return Path(self.request.inputs[name])

    def output(self, name: str) -> Path:
        """Return the folder of an output."""
        return Path(self.asset.outputs[name])

    def progress(self, total: int, unit: str = "tokens", what: str = "") -> Progress:
        """Return a progress line for `total` units of work; `what` follows the asset's name."""
        return Progress(self.reporter, f"{self.name} {what}".rstrip(), total, unit)

    def done(
        self,
        data_version: str,
        metrics: Mapping[str, float | int | str | bool | None],
        plots: Mapping[str, str] | None = None,
        checks: Mapping[str, CheckOutcome] | None = None,
    ) -> None:
        """Report the asset as complete; device, precision, threads and processes are added to its metrics."""
        actors = batch_actors.current()
        count = process_group.world_size() if actors is None else actors.size
        processes = {"processes": count} if actors is not None or count > 1 else {}
        self.reporter.done(
            AssetResult(
                stage=self.stage,
                data_version=data_version,
                metrics={**metrics, **self.numerics.fields(), **processes},
                plots=dict(plots or {}),
                checks=dict(checks or {}),
            )
        )
