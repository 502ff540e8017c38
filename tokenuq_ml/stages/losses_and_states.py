"""Token losses and the teacher's cached states: both come from one pass of the teacher over the data.

Where training and tables have different precisions, each has a pass of its own. Part of the child process that scores
the teacher (`measure.py`).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import polars as pl
import torch
from peft import PeftModel

from tokenuq_ml.config import DistillSpec
from tokenuq_ml.data.batching import StoredExamples, TokenizedExample, length_batches, shards
from tokenuq_ml.data.token_categories import categorise, special_ids, token_texts
from tokenuq_ml.kernels.training_loss import Weights, training_loss
from tokenuq_ml.models.adapters import adapter_digest, use_adapter
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Progress
from tokenuq_ml.reports import measure_plots
from tokenuq_ml.scoring.batch_threads import batch_tokens
from tokenuq_ml.scoring.memory import release_free_memory
from tokenuq_ml.scoring.token_losses import score_examples, scored_batches
from tokenuq_ml.stages.request import AssetRequest, AssetResult, CheckOutcome, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import ROW_GROUP_ROWS, TableWriter, content_of
from tokenuq_ml.tensor_digest import joined_digest, tensors_digest
from tokenuq_ml.training.teacher import HIDDEN_FILE, CachedTeacher, OnlineTeacher, TeacherCache, cache_bytes, go_online

TEACHER = "teacher"
ALTERNATIVES = 5
"""Likeliest tokens that are kept of each held-out token."""
SHARD_BATCHES = 32
"""Response tokens of a shard, in batches: what it adds to peak memory against the padding of its last batches."""
ONLINE_CHECK, ONLINE_CHECK_EXAMPLES = "cached_teacher_matches_online", 8
ONLINE_CHECK_BOUND = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Nats of KL(cached || online): of the worst token from hidden states, of the mean of a batch from mean embeddings. In
float32 only the stored state is rounded; a bfloat16 forward pass differs from itself in batches of another shape."""


def stored_shards(dataset: str | Path, numerics: Numerics) -> Iterator[list[TokenizedExample]]:
    """Yield the examples of a `tokenized_dataset` partition shard by shard; after each, free memory is given back."""
    for shard in shards(StoredExamples(dataset), min(ROW_GROUP_ROWS, SHARD_BATCHES * batch_tokens(numerics))):
        yield shard
        release_free_memory()


def losses_and_states(
    request: StageRequest, stages: set[str], model: PeftModel, numerics: Numerics, tokenizer, reporter: StageReporter
) -> None:
    """Make those of the two assets that `stages` names, in one pass of the teacher and one of the base model."""
    wanted = {stage: asset for stage, asset in request.assets.items() if stage in stages}
    cache, table, alternatives = None, None, None
    dataset = request.inputs["tokenized_dataset"]
    if "teacher_hidden" in wanted and not _fits_budget(request, model, numerics, reporter):
        wanted = {stage: asset for stage, asset in wanted.items() if stage != "teacher_hidden"}
    if not wanted:
        return
    passes = 2 if "token_losses" in wanted else 1
    tokens = sum(len(example.input_ids) for example in StoredExamples(dataset))
    progress = Progress(reporter, f"{request.study}/{next(iter(wanted))}", passes * tokens, "tokens")
    with ExitStack() as files:
        if "token_losses" in wanted:
            asset = wanted["token_losses"]
            table, alternatives = (
                files.enter_context(TableWriter(name, asset.outputs[name], **asset.stamp))
                for name in ("token_losses", "token_alternatives")
            )
        if "teacher_hidden" in wanted:
            cache = files.enter_context(_new_cache(request, model))
        # All splits for the cache alone too: in bfloat16, other batches would give other states of the same teacher.
        for shard in stored_shards(dataset, numerics):
            teacher, choices = [], []
            count = 0 if table is None else ALTERNATIVES
            for scored in scored_batches(model, shard, numerics, progress.add, alternatives=count):
                teacher.append(scored.rows)
                choices.append(scored.alternatives)
                lengths = [len(example.positions) for example in scored.batch.examples]
                for example, hidden_ND in zip(scored.batch.examples, scored.hidden_ND.split(lengths), strict=True):
                    if cache is not None and example.split == "train":
                        cache.put(example.example_id, hidden_ND)
            if table is not None:
                with use_adapter(model, None):
                    base = score_examples(model, shard, numerics, progress.add)
                # The same batches in the same order.
                rows = pl.concat(teacher).with_columns(base_loss=base["loss"], base_entropy=base["entropy"])
                table.append(with_categories(rows, tokenizer))
                likeliest = pl.concat(choices)
                texts = token_texts(tokenizer, likeliest["token_id"].to_list())
                alternatives.append(likeliest.with_columns(token=pl.Series(texts, dtype=pl.String)))
    if table is not None:
        _report_losses(wanted["token_losses"], table, alternatives, numerics, reporter)
    if cache is not None:
        _report_cache(request, model, cache.tokens, numerics, reporter)


def _report_losses(
    asset: AssetRequest, table: TableWriter, alternatives: TableWriter, numerics: Numerics, reporter: StageReporter
) -> None:
    tokens = pl.scan_parquet(table.path)
    means = tokens.select(
        mean_loss=pl.col("loss").mean(),
        mean_base_loss=pl.col("base_loss").mean(),
        mean_entropy=pl.col("entropy").mean(),
        token_accuracy=(pl.col("rank") == 0).mean(),
    )
    measure_plots.losses_by_category(tokens, Path(asset.outputs["plots"], "losses_by_category.png"))
    by_split = tokens.group_by(pl.col("split").cast(pl.String)).agg(pl.col("loss").mean()).sort("split")
    reporter.done(
        AssetResult(
            stage="token_losses",
            data_version=joined_digest(table.digest, alternatives.digest),
            metrics={
                **{f"mean_loss_{split}": mean for split, mean in by_split.collect(engine="streaming").iter_rows()},
                **means.collect(engine="streaming").to_dicts()[0],
                **numerics.fields(),
            },
            plots={"Loss by token category": "plots/losses_by_category.png"},
        )
    )


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


def _digests(request: StageRequest) -> dict[str, str]:
    """Which data and which teacher the cache belongs to."""
    return {
        "dataset_digest": content_of(request.inputs["tokenized_dataset"]),
        "teacher_digest": adapter_digest(request.inputs["adapter"]),
    }


def _fits_budget(request: StageRequest, model: PeftModel, numerics: Numerics, reporter: StageReporter) -> bool:
    """Whether the cache may be written; where not, its asset is made and reported without one."""
    asset, head = request.assets["teacher_hidden"], head_of(model)
    train = StoredExamples(request.inputs["tokenized_dataset"], ["train"])
    tokens = sum(len(example.positions) for example in train)
    needed, budget = cache_bytes(tokens, head), int(asset.fields["teacher_cache_gigabytes"] * 1e9)
    if needed <= budget:
        return True
    why = go_online(asset.outputs["teacher_hidden"], needed, budget)
    stored = f"nothing: {why}; students run the teacher online"
    reporter.info(f"{request.study}/teacher_hidden: {stored}")
    reporter.done(
        AssetResult(
            stage="teacher_hidden",
            # Of what students then read: neither size alters it.
            data_version=joined_digest("online", *_digests(request).values()),
            metrics={
                "tokens": tokens,
                "hidden_size": head.weight_VD.shape[1],
                "cached": False,
                "stored": stored,
                **numerics.fields(),
            },
            checks={ONLINE_CHECK: CheckOutcome(passed=True, description=stored)},
        )
    )
    return False


def _new_cache(request: StageRequest, model: PeftModel) -> TeacherCache:
    folder = request.assets["teacher_hidden"].outputs["teacher_hidden"]
    train = StoredExamples(request.inputs["tokenized_dataset"], ["train"])
    return TeacherCache(folder, train, head_of(model), **_digests(request))


def _report_cache(
    request: StageRequest, model: PeftModel, tokens: int, numerics: Numerics, reporter: StageReporter
) -> None:
    folder = Path(request.assets["teacher_hidden"].outputs["teacher_hidden"])
    # Both forms in which a student may get it: hidden states, and what forward KL reads off mean embeddings.
    caches = [
        CachedTeacher(folder, numerics.device, **_digests(request), distillation=distillation)
        for distillation in (None, DistillSpec())
    ]
    online, head = OnlineTeacher(TEACHER, numerics), head_of(model)
    train = StoredExamples(request.inputs["tokenized_dataset"], ["train"])
    sample = list(islice(train, ONLINE_CHECK_EXAMPLES))
    errors = []
    for batch in (b.to(numerics.device) for b in length_batches(sample, batch_tokens(numerics))):
        hidden_ND, label_N = online.states(model, batch).hidden_ND, batch.label_N
        every = Weights(torch.zeros_like(label_N, dtype=torch.float32), torch.ones_like(label_N, dtype=torch.float32))
        for cached in caches:
            out = training_loss(hidden_ND, head, label_N, every, cached.states(model, batch))
            # A token's divergence from mean embeddings carries the rounding of its logits; their mean does not.
            means = cached.form == "mean_embeddings"
            errors.append(out.divergence_N.mean().abs().item() if means else out.divergence_N.max().item())
    path = folder / HIDDEN_FILE
    reporter.done(
        AssetResult(
            stage="teacher_hidden",
            data_version=joined_digest(tensors_digest(path), _digests(request)["dataset_digest"]),
            metrics={
                "tokens": tokens,
                "hidden_size": head_of(model).weight_VD.shape[1],
                "cached": True,
                "stored": "hidden_states" if head_of(model).softcap else "hidden_states, mean_embeddings",
                "megabytes": path.stat().st_size / 1e6,
                **numerics.fields(),
            },
            checks={ONLINE_CHECK: _agreement(max(errors), len(sample), numerics)},
        )
    )


def _agreement(error: float, examples: int, numerics: Numerics) -> CheckOutcome:
    bound = ONLINE_CHECK_BOUND.get(numerics.dtype, 0.1)
    return CheckOutcome(
        passed=error <= bound,
        description=f"at most {error:.3g} nats apart on {examples} examples, where {bound:.3g} are allowed",
        figures={"error": error, "bound": bound, "examples": examples},
    )
