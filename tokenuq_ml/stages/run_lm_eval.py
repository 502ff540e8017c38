"""lm-eval's tasks of a model under evaluation: one at a time, so that a run after a failure resumes at the next one."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config.lm_eval import LmEvalSpec, TaskData, data_digest
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.answer_cache import AnswerCache
from tokenuq_ml.evaluation.lm_eval_groups import group_metrics
from tokenuq_ml.evaluation.lm_eval_index import Resolved, resolve_all
from tokenuq_ml.evaluation.lm_eval_metrics import SampleParts
from tokenuq_ml.evaluation.lm_eval_run import Loaded, TaskRunner, load, package_version
from tokenuq_ml.evaluation.metrics import LM_EVAL, example_rows
from tokenuq_ml.models.adapters import adapter_digest
from tokenuq_ml.progress import Progress
from tokenuq_ml.stages.answer_prompts import answers_dir
from tokenuq_ml.stages.candidate import Candidate, EvaluationPart
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.train_adapter import model_digest

SAMPLES = "lm_eval_samples"
SAMPLE_SCHEMA = {
    "example_id": pl.String,
    "task": pl.String,
    "filter": pl.String,
    "prompt": pl.String,
    "target": pl.String,
    "response": pl.String,
    "filtered": pl.String,
}
"""The columns of `lm_eval_samples`."""


def lm_eval_tasks(spec: LmEvalSpec) -> list[Resolved]:
    """Return the tasks that a study names; called before anything is computed.

    Raises:
        InputError: lm-eval is missing, or a task does not exist or cannot be measured here.
    """
    return resolve_all(spec.tasks)


def run_lm_eval(context: StageContext, candidate: Candidate, spec: LmEvalSpec) -> EvaluationPart:
    """Return the metrics of the study's lm-eval tasks; an empty part on a rank other than 0."""
    measured = _Measured(context, candidate, spec)
    with contextlib.closing(measured):
        for found in lm_eval_tasks(spec):
            measured.add(found)
    return measured.part if process_group.is_main() else EvaluationPart()


@dataclass
class _Measured:
    """The tasks that are measured so far, those of an earlier run included."""

    context: StageContext
    candidate: Candidate
    spec: LmEvalSpec

    def __post_init__(self) -> None:
        decided_by = {
            "lm_eval": package_version(),
            "spec": self.context.asset.fields["evaluation"]["lm_eval"],
            "model": model_digest(self.context.input("model")),
            "adapter": None if self.candidate.adapter is None else adapter_digest(self.candidate.adapter),
            "numerics": self.context.numerics.fields(),
            "code": self.context.asset.code_version,
        }
        self._cache = AnswerCache(answers_dir(self.context.request), **decided_by)
        self._runner: TaskRunner | None = None
        self._results: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, list[SampleParts]] = {}
        self._left_out: dict[str, str] = {}
        self._task = ""

    def add(self, found: Resolved) -> None:
        """Measure the tasks that a name stands for; each rank measures its share."""
        names = [task.name for task in found.tasks]
        left = [name for name in names if name not in self._cache]
        # Rank 0 alone reads what an earlier run has kept.
        left = process_group.on_main(lambda: left)
        if left or found.kind == "group":
            data = self._data(found.name)
            loaded = load(found, data, self.spec, answers_dir(self.context.request) / "lm_eval_data")
            measure = partial(self._measure, loaded)
            for name, result in process_group.merged(process_group.own_results(measure, left, in_step=False)):
                self._cache.put({name: result})
        if not process_group.is_main():
            return
        results = {name: self._cache[name] for name in names}
        self._results |= results
        for name, result in results.items():
            self._left_out |= {f"{name} {metric}": why for metric, why in result["left_out"].items()}
        if found.kind == "group":
            groups, left_out = group_metrics(loaded.groups, results)
            self._groups |= groups
            self._left_out |= left_out

    def close(self) -> None:
        """Close the files of answered requests."""
        if self._runner is not None:
            self._runner.close()

    def _measure(self, loaded: Loaded, name: str) -> tuple[str, dict[str, Any]]:
        if self._runner is None:
            path = self._cache.path.with_suffix("")
            requests = path.with_name(f"{path.name}-rank{process_group.rank()}")
            requests.parent.mkdir(parents=True, exist_ok=True)
            self._runner = TaskRunner(self.candidate.model, self.candidate.tokenizer, self.spec, requests, self._count)
        self._task = name
        return name, self._runner.measure(name, loaded.tasks[name])

    def _count(self, requests: int) -> Callable[[int], None]:
        what = f"{self.candidate.name} lm-eval {self._task}"
        return Progress(self.context.reporter, what, requests, "requests").add

    def _data(self, name: str) -> TaskData | None:
        """Return the local data of a name of `tasks`.

        Raises:
            InputError: a file is missing, or has changed since the configuration was read.
        """
        given = self.spec.data.get(name)
        if given is None:
            return None
        if isinstance(given, str):
            return self._path(f"lm_eval/{name}", given)
        return {split: self._path(f"lm_eval/{name}/{split}", digest) for split, digest in given.items()}

    def _path(self, key: str, digest: str) -> str:
        path, where = str(self.context.input(key)), f"evaluation.{key.replace('/', '.data.', 1).replace('/', '.')}"
        if not Path(path).exists():
            raise InputError(f"{where}: {path}: no such file or folder; correct the path")
        if data_digest(path) != digest:
            raise InputError(f"{where}: {path} has changed since the configuration was read; start the run again")
        return path

    @property
    def part(self) -> EvaluationPart:
        """Tables, metrics and notes of all tasks."""
        of_tasks = {name: [SampleParts(**one) for one in result["metrics"]] for name, result in self._results.items()}
        rows, directions = [], {}
        for name, metrics in (of_tasks | self._groups).items():
            dataset = f"{LM_EVAL}{name}"
            for one in metrics:
                ids = pl.Series(one.example_ids, dtype=pl.String)
                rows.append(example_rows(dataset, self.spec.split, one.name, ids, one.numerators, one.denominators))
                directions[dataset, one.name] = one.higher_is_better
        samples = [sample for result in self._results.values() for sample in result["samples"]]
        table = pl.DataFrame(samples, schema=SAMPLE_SCHEMA)
        return EvaluationPart({SAMPLES: table}, tuple(rows), self._notes(), directions)

    def _notes(self) -> dict[str, int | str]:
        tasks = ", ".join(
            f"{name} {one['version']} ({one['shots']}-shot, {one['size']} of {one['total']} samples)"
            for name, one in self._results.items()
        )
        notes: dict[str, int | str] = {"lm_eval": f"lm_eval {package_version()}: {tasks}"}
        if self._left_out:
            notes["lm_eval_left_out"] = "; ".join(f"{metric}: {why}" for metric, why in self._left_out.items())
            self.context.reporter.warning(
                f"{self.candidate.name}: lm-eval: metrics are left out: {notes['lm_eval_left_out']}"
            )
        return notes
