"""Child process of what is measured of the teacher: token losses, its hidden states, the reference evaluation, BALD.

One process for up to four assets; each is reported as soon as it is complete. One model is in memory at a time, in the
precision that the asset asks for; BALD's is float32.
"""

from pathlib import Path

import polars as pl
from peft import PeftModel

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import StoredExamples, TokenizedExample, read_examples
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.models.numerics import Numerics, resolve_numerics
from tokenuq_ml.progress import Progress
from tokenuq_ml.reports import measure_plots
from tokenuq_ml.reports.evaluation_plot import TITLE, metric_intervals
from tokenuq_ml.scoring.bald_reference import float64_uncertainty, reference_rows, reference_sample
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.adapted_model import AdaptedModel
from tokenuq_ml.stages.evaluate_model import Candidate, evaluate_and_store, forget_answers
from tokenuq_ml.stages.losses_and_states import TEACHER, losses_and_states, stored_shards
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.bald_noise import noise_floor
from tokenuq_ml.tables.parquet import TableWriter, read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest

LOSSES, STATES = "token_losses", "teacher_hidden"


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Make whichever of the four assets are asked for."""
    assets, inputs = request.assets, request.inputs
    teacher = AdaptedModel(inputs["model"], inputs["adapter"], TEACHER, loaded=None)
    tokenizer = load_tokenizer(inputs["model"])
    for stages in _passes(request):
        precision = assets[stages[0]].fields["precision"]
        losses_and_states(request, set(stages), *teacher.at(precision), tokenizer, reporter)
    if "reference_evaluation" in assets:
        precision = assets["reference_evaluation"].fields["precision"]
        examples = read_examples(inputs["tokenized_dataset"], ["test", "ood"])
        _reference_evaluation(request, *teacher.at(precision), tokenizer, examples, reporter)
    if "token_uncertainty" in assets:
        _token_uncertainty(request, *teacher.for_bald(), reporter)


def _passes(request: StageRequest) -> list[list[str]]:
    """Return which of the two assets are made in one pass: those of the same precision on this machine."""
    by_dtype: dict = {}
    for stage in (LOSSES, STATES):
        if stage in request.assets:
            dtype = resolve_numerics(request.assets[stage].fields["precision"]).dtype
            by_dtype.setdefault(dtype, []).append(stage)
    return list(by_dtype.values())


def _token_uncertainty(request: StageRequest, model: PeftModel, numerics: Numerics, reporter: StageReporter) -> None:
    asset, dataset = request.assets["token_uncertainty"], request.inputs["tokenized_dataset"]
    spec, name = UncertaintySpec(**asset.fields["uncertainty"]), f"{request.study}/token_uncertainty"
    tokens = sum(len(example.input_ids) for example in StoredExamples(dataset))
    progress = Progress(reporter, name, tokens * spec.samples, "tokens")
    sample = reference_sample(StoredExamples(dataset))
    sampled, stored = [example.example_id for example in sample], []
    with TableWriter("token_uncertainty", asset.outputs["token_uncertainty"], **asset.stamp) as table:
        for shard in stored_shards(dataset, numerics):
            rows = token_uncertainty(model, shard, spec, numerics, progress.add)
            table.append(rows)
            stored.append(rows.filter(pl.col("example_id").is_in(sampled)))
    again = Progress(
        reporter, f"{name} in float64", spec.samples * sum(len(example.input_ids) for example in sample), "tokens"
    )
    reference = reference_rows(pl.concat(stored), float64_uncertainty(model, sample, spec, again.add))
    reference_digest = write_table(reference, "bald_reference", asset.outputs["bald_reference"], **asset.stamp)
    measure_plots.uncertainty_spread(
        pl.scan_parquet(table.path), Path(asset.outputs["plots"], "uncertainty_spread.png")
    )
    columns = pl.scan_parquet(table.path).select(
        mean_bald=pl.col("bald").mean(),
        max_bald=pl.col("bald").max(),
        mean_bald_std_error=pl.col("bald_std_error").mean(),
        mean_expected_entropy=pl.col("expected_entropy").mean(),
    )
    means, floor = columns.collect(engine="streaming").to_dicts()[0], noise_floor(reference)
    reporter.done(
        AssetResult(
            stage="token_uncertainty",
            data_version=joined_digest(table.digest, reference_digest),
            metrics={
                "samples": spec.samples,
                "dropout": spec.dropout,
                "attention_dropout": spec.attention_dropout,
                "mask": spec.mask,
                **means,
                "bald_noise_floor": floor,
                "bald_noise_share": floor / means["mean_bald"] if means["mean_bald"] else None,
                "bald_noise_tokens": len(reference),
                **numerics.fields(),
            },
            plots={"Uncertainty of the response tokens": "plots/uncertainty_spread.png"},
        )
    )


def _reference_evaluation(
    request: StageRequest,
    model: PeftModel,
    numerics: Numerics,
    tokenizer,
    examples: list[TokenizedExample],
    reporter: StageReporter,
) -> None:
    asset = request.assets["reference_evaluation"]
    digests, metrics = [], {}
    for family, adapter in (("base", None), ("teacher", TEACHER)):
        with use_adapter(model, adapter):
            candidate = Candidate(
                model,
                tokenizer,
                numerics,
                None if adapter is None else request.inputs["adapter"],
                family=family,
                seed=None,
                name=f"{request.study}/reference_evaluation: {family}",
            )
            digest, figures = evaluate_and_store(candidate, examples, asset, request, reporter, suffix=f"_{family}")
        digests.append(digest)
        metrics |= {f"{family}_{key}": value for key, value in figures.items()}
    metric_intervals(
        {family: read_table(asset.outputs[f"evaluations_{family}"]) for family in ("base", "teacher")},
        Path(asset.outputs["plots"], "metrics.png"),
    )
    reporter.done(
        AssetResult(
            stage="reference_evaluation",
            data_version=joined_digest(*digests),
            metrics={**metrics, **numerics.fields()},
            plots={TITLE: "plots/metrics.png"},
        )
    )
    forget_answers(request)


if __name__ == "__main__":
    runner.main(run)
