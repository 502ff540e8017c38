"""Finished studies for a comparison: families with known losses in and out of distribution, and the report's table."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from tests.support import tiny_tables
from tests.support.reporter import RecordingReporter
from tokenuq_ml.config import AblationSpec, EvaluationSpec, StudySpec
from tokenuq_ml.config.comparison import KINDS
from tokenuq_ml.evaluation.metrics import example_rows, metric_rows, with_identity
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.family_table import family_rows
from tokenuq_ml.stages import compare_studies
from tokenuq_ml.stages.request import AssetRequest, StageRequest

INTERVALS = EvaluationSpec(bootstrap=200)
TOKENS = 10

Means = dict[str, tuple[float, float]]
"""Family -> its mean per token in distribution and out of distribution."""


def ablations_of(families: Means, seeds: int = 2) -> dict[str, AblationSpec]:
    """Some seeds of each family."""
    names = [(family, seed) for family in families for seed in range(seeds)]
    specs = [
        AblationSpec(name=family + (f"_s{seed}" if seed else ""), select="all", seed=seed) for family, seed in names
    ]
    return {one.name: one for one in specs}


def examples_of(
    inside: float, outside: float, noise: float, draw: int, metrics=("loss",), examples: int = 40
) -> pl.DataFrame:
    """What each example adds: the mean, a part of its own that all models share, and `noise`."""
    own, other = np.random.default_rng(7), np.random.default_rng(draw)
    frames = []
    for dataset, split, mean in (("toy", "test", inside), ("far", "ood", outside)):
        ids = pl.Series([f"{dataset}/{number:03d}" for number in range(examples)])
        per_token = mean + own.normal(0, 0.3, examples) + noise * other.normal(size=examples)
        frames += [
            example_rows(dataset, split, metric, ids, per_token * TOKENS, np.full(examples, TOKENS))
            for metric in metrics
        ]
    return pl.concat(frames)


def write_study(
    folder: Path, name: str, families: Means, noise: float = 0.01, seeds: int = 2, metrics=("loss",)
) -> tuple[StudySpec, dict[str, AblationSpec], dict[str, str]]:
    """Write a study's evaluations, and the table of families that its report would have; return its inputs."""
    ablations = ablations_of(families, seeds)
    examples = {
        one.name: examples_of(*families[one.family], noise, draw, metrics)
        for draw, one in enumerate(ablations.values())
    }
    values = {
        model: with_identity(metric_rows(frame, INTERVALS), ablations[model].family, ablations[model].seed)
        for model, frame in examples.items()
    }
    report = folder / "ablation_report"
    report.mkdir(parents=True)
    rows = family_rows(table_rows(values), examples, ablations, INTERVALS)
    (report / "family_table.json").write_text(json.dumps(rows))
    paths = tiny_tables.publish(folder, {f"evaluation_examples/{model}": frame for model, frame in examples.items()})
    study = StudySpec(name=name, model="tiny", dataset="toy", ood=("far",), ablations=tuple(ablations))
    inputs = {f"{name}/{key}": path for key, path in paths.items()} | {f"{name}/ablation_report": str(report)}
    return study, ablations, inputs


def run_comparison(folder: Path, studies, kind: str, **options):
    """Run the stage on what `write_study` returned; return its result, the folder of the page, and its lines."""
    spec = KINDS[kind](name="page", kind=kind, studies=[study.name for study, _, _ in studies], **options)
    fields = {
        "comparison": {**spec.fields(), "bootstrap": INTERVALS.bootstrap},
        "studies": {study.name: study.fields() for study, _, _ in studies},
        "ablations": {
            study.name: {name: own[name].fields() for name in spec.ablations_read(study, own)}
            for study, own, _ in studies
        },
    }
    out = folder / "page"
    out.mkdir(parents=True)
    request = StageRequest(
        entrypoint="compare_studies",
        assets={"comparisons": AssetRequest(fields=fields, code_version="1-x", outputs={"comparison": str(out)})},
        inputs={name: path for _, _, inputs in studies for name, path in inputs.items()},
        work_dir=str(folder / "work"),
    )
    reporter = RecordingReporter()
    compare_studies.run(request, reporter)
    (result,) = reporter.results
    return result, out, reporter.lines
