"""Child process of what is measured of the teacher: token losses, its hidden states, BALD, the reference evaluation.

One process and one loaded model for up to four assets; each is reported as soon as it is whole.
"""

from pathlib import Path

import polars as pl
import torch
from peft import PeftModel

from tokenuq_ml.batching import TokenizedExample, length_batches, read_examples
from tokenuq_ml.categories import categorise, special_ids, token_texts
from tokenuq_ml.entrypoints import runner
from tokenuq_ml.entrypoints.evaluation_stage import evaluate_and_store
from tokenuq_ml.kernels import divergence
from tokenuq_ml.mc_dropout import token_uncertainty
from tokenuq_ml.models import (
    Numerics,
    adapter_digest,
    attach_adapter,
    head_of,
    load_model,
    load_tokenizer,
    use_adapter,
)
from tokenuq_ml.reporting import Progress
from tokenuq_ml.specs import UncertaintySpec
from tokenuq_ml.stages import AssetRequest, AssetResult, Reporter, StageRequest
from tokenuq_ml.tables import content_of, write_table
from tokenuq_ml.teacher import CachedTeacher, OnlineTeacher, write_teacher_hidden
from tokenuq_ml.tensors import joined_digest, tensors_digest
from tokenuq_ml.token_losses import MAX_TOKENS, score_batch

TEACHER = "teacher"
ONLINE_CHECK_EXAMPLES = 8
ONLINE_CHECK_BOUND = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Nats of KL(online || cached) a token at most. In float32 only the stored state is rounded; a bfloat16 forward
pass also differs from itself where its batch has another shape, by some 0.02 nats at the worst token."""


def run(request: StageRequest, reporter: Reporter) -> None:
    """Makes whichever of its four assets are asked for."""
    assets, study = request.assets, request.study
    first = next(iter(assets.values()))
    base, numerics = load_model(request.inputs["model"], first.fields["precision"])
    tokenizer = load_tokenizer(request.inputs["model"])
    model = attach_adapter(base, request.inputs["adapter"], TEACHER)
    examples = read_examples(request.inputs["tokenized_dataset"])
    if "token_losses" in assets or "teacher_hidden" in assets:
        _losses_and_states(request, model, tokenizer, examples, numerics, reporter)
    if "token_uncertainty" in assets:
        asset = assets["token_uncertainty"]
        spec = UncertaintySpec(**asset.fields["uncertainty"])
        tokens = sum(len(example.input_ids) for example in examples)
        progress = Progress(reporter, f"{study}/token_uncertainty", tokens * spec.samples, "tokens")
        frame = token_uncertainty(model, examples, spec, numerics, progress.add)
        digest = write_table(
            frame,
            "token_uncertainty",
            asset.outputs["token_uncertainty"],
            **asset.stamp,
        )
        reporter.done(
            AssetResult(
                stage="token_uncertainty",
                data_version=digest,
                metrics={
                    "samples": spec.samples,
                    "dropout": spec.dropout,
                    "mask": spec.mask,
                    "mean_bald": frame["bald"].mean(),
                    "max_bald": frame["bald"].max(),
                    "mean_expected_entropy": frame["expected_entropy"].mean(),
                    **numerics.fields(),
                },
            )
        )
    if "reference_evaluation" in assets:
        _reference_evaluation(request, model, tokenizer, examples, numerics, reporter)


def _losses_and_states(
    request: StageRequest,
    model: PeftModel,
    tokenizer,
    examples: list[TokenizedExample],
    numerics: Numerics,
    reporter: Reporter,
) -> None:
    """Both assets of the one pass over the data: teacher and base model, batch by batch."""
    progress = Progress(
        reporter, f"{request.study}/token_losses", 2 * sum(len(example.input_ids) for example in examples), "tokens"
    )
    frames, states = [], {}
    for batch in length_batches(examples, MAX_TOKENS):
        teacher = score_batch(model, batch, numerics)
        with use_adapter(model, None):
            base = score_batch(model, batch, numerics).rows
        frames.append(teacher.rows.with_columns(base_loss=base["loss"], base_entropy=base["entropy"]))
        lengths = [len(example.positions) for example in batch.examples]
        for example, hidden_ND in zip(batch.examples, teacher.hidden_ND.split(lengths), strict=True):
            if example.split == "train" and "teacher_hidden" in request.assets:
                states[example.example_id] = hidden_ND.to("cpu", torch.bfloat16)
        progress.add(2 * sum(len(example.input_ids) for example in batch.examples))
    tokens = with_categories(pl.concat(frames), tokenizer)
    if "token_losses" in request.assets:
        asset = request.assets["token_losses"]
        digest = write_table(
            tokens,
            "token_losses",
            asset.outputs["token_losses"],
            **asset.stamp,
        )
        reporter.done(
            AssetResult(
                stage="token_losses",
                data_version=digest,
                metrics={
                    **{
                        f"mean_loss_{split}": mean
                        for split, mean in tokens.group_by("split").agg(pl.col("loss").mean()).sort("split").iter_rows()
                    },
                    "mean_loss": tokens["loss"].mean(),
                    "mean_base_loss": tokens["base_loss"].mean(),
                    "mean_entropy": tokens["entropy"].mean(),
                    "token_accuracy": (tokens["rank"] == 0).mean(),
                    **numerics.fields(),
                },
            )
        )
    if "teacher_hidden" in request.assets:
        _store_states(request, model, examples, states, numerics, reporter)


def with_categories(tokens: pl.DataFrame, tokenizer) -> pl.DataFrame:
    """Adds each token's text and category; categories see an example's tokens in order."""
    tokens = tokens.sort("example_id", "position")
    texts = token_texts(tokenizer, tokens["token_id"].to_list())
    special = special_ids(tokenizer)
    tokens = tokens.with_columns(token=pl.Series(texts), special=pl.col("token_id").is_in(special))
    categories: list[str] = []
    for (_,), group in tokens.group_by("example_id", maintain_order=True):
        categories += categorise(group["token"].to_list(), group["special"].to_list())
    return tokens.drop("special").with_columns(category=pl.Series(categories))


def _store_states(
    request: StageRequest,
    model: PeftModel,
    examples: list[TokenizedExample],
    states: dict,
    numerics: Numerics,
    reporter: Reporter,
) -> None:
    asset: AssetRequest = request.assets["teacher_hidden"]
    folder = Path(asset.outputs["teacher_hidden"])
    dataset, teacher = content_of(request.inputs["tokenized_dataset"]), adapter_digest(request.inputs["adapter"])
    write_teacher_hidden(folder, states, dataset_digest=dataset, teacher_digest=teacher)
    cached = CachedTeacher(folder, numerics.device, dataset_digest=dataset, teacher_digest=teacher)
    online = OnlineTeacher(TEACHER, numerics)
    sample = [example for example in examples if example.split == "train"][:ONLINE_CHECK_EXAMPLES]
    errors = [
        divergence(online.states(model, batch), cached.states(model, batch), head_of(model)).max().item()
        for batch in (b.to(numerics.device) for b in length_batches(sample, MAX_TOKENS))
    ]
    tokens = sum(len(state) for state in states.values())
    path = folder / "hidden.safetensors"
    reporter.done(
        AssetResult(
            stage="teacher_hidden",
            data_version=joined_digest(tensors_digest(path), dataset),
            metrics={
                "tokens": tokens,
                "hidden_size": next(iter(states.values())).shape[1],
                "stored_precision": "bfloat16",
                "megabytes": path.stat().st_size / 1e6,
                "online_check_examples": len(sample),
                "online_check_max_error": max(errors),
                "online_check_bound": ONLINE_CHECK_BOUND.get(numerics.dtype, 0.1),
                **numerics.fields(),
            },
        )
    )


def _reference_evaluation(
    request: StageRequest,
    model: PeftModel,
    tokenizer,
    examples: list[TokenizedExample],
    numerics: Numerics,
    reporter: Reporter,
) -> None:
    asset = request.assets["reference_evaluation"]
    digests, metrics = [], {}
    for family, adapter in (("base", None), ("teacher", TEACHER)):
        with use_adapter(model, adapter):
            digest, figures = evaluate_and_store(
                model,
                tokenizer,
                examples,
                asset,
                request.inputs,
                numerics,
                reporter,
                family=family,
                seed=None,
                suffix=f"_{family}",
                name=f"{request.study}/reference_evaluation: {family}",
            )
        digests.append(digest)
        metrics |= {f"{family}_{key}": value for key, value in figures.items()}
    reporter.done(
        AssetResult(
            stage="reference_evaluation", data_version=joined_digest(*digests), metrics={**metrics, **numerics.fields()}
        )
    )


if __name__ == "__main__":
    runner.main(run)
