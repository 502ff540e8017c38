"""Evaluation of one model: every metric of the study, and its tables. Shared by base, teacher and students."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config import EvaluationSpec, Gsm8kSpec, IfEvalSpec
from tokenuq_ml.config.evaluation import IfBenchSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.examples import Example, Turn
from tokenuq_ml.evaluation import ifbench, ifeval
from tokenuq_ml.evaluation.gsm8k import Gsm8k, gsm8k_examples
from tokenuq_ml.evaluation.held_out import DIVERGENCES, held_out_examples
from tokenuq_ml.evaluation.judge import check_evaluator
from tokenuq_ml.evaluation.metrics import metric_rows, with_identity
from tokenuq_ml.evaluation.validation import VALIDATION, validation_losses
from tokenuq_ml.models.adapters import adapter_digest
from tokenuq_ml.progress import Progress
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.scoring.token_losses import ScoredRows, scored_batches
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.stages import batch_actors
from tokenuq_ml.stages.answer_prompts import PromptEncoder, answer_prompts, answers_dir, held_out, held_out_rows
from tokenuq_ml.stages.batch_work import ExampleBatches, Job
from tokenuq_ml.stages.candidate import HELD_OUT, Candidate, EvaluationPart
from tokenuq_ml.stages.compare_models import PAIRWISE, compare_models
from tokenuq_ml.stages.compare_outputs import ALPACA_EVAL, NO_JUDGE, compare_outputs
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.kept_folders import kept_folder
from tokenuq_ml.stages.measures import LossMeasure
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.stages.run_lm_eval import lm_eval_tasks, run_lm_eval
from tokenuq_ml.stages.vllm_answers import require_engine
from tokenuq_ml.tables.kept_parts import Keeper, KeptFrames, KeptParts
from tokenuq_ml.tables.parquet import content_of, read_table, write_table
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_ml.tensor_digest import joined_digest

TRUTH = "token_truth"
"""The input with the true distributions of a synthetic language's tokens; other studies do not have it."""
_SHOWN = 20
"""Examples that a note names."""


def evaluate_and_store(
    context: StageContext, candidate: Candidate, examples: list[TokenizedExample], suffix: str = ""
) -> tuple[str, dict[str, float | int | str]] | None:
    """Evaluate the model and write its tables.

    Fills the outputs `evaluations`, `evaluation_examples`, `evaluation_tokens`, and one per generated evaluation.

    Args:
        context: of the evaluation. With the input `token_losses`, changes from the teacher are metrics too.
        candidate: the model.
        examples: tokenised examples; those of the splits HELD_OUT are evaluated on.
        suffix: ends the names of the outputs.

    Returns:
        The content digest, and the figures: each metric as `<dataset>_<metric>`, and notes on what was left out. None
        on a rank other than 0, which computes its share of losses and answers.
    """
    spec = EvaluationSpec(**context.asset.fields["evaluation"])
    if spec.by_vllm:
        require_engine(context)
    _require_packages(spec)
    parts = [_held_out(context, candidate, spec, examples)]
    if spec.ifeval is not None:
        parts.append(_ifeval(context, candidate, spec.ifeval))
    if spec.gsm8k is not None:
        parts.append(_gsm8k(context, candidate, spec.gsm8k))
    if spec.alpaca_eval is not None:
        parts.append(compare_outputs(context, candidate, spec.alpaca_eval))
    if spec.ifbench is not None:
        parts.append(_ifbench(context, candidate, spec.ifbench))
    if spec.pairwise is not None:
        parts.append(compare_models(context, candidate, spec.pairwise))
    if spec.lm_eval is not None:
        parts.append(run_lm_eval(context, candidate, spec.lm_eval))
    if not process_group.is_main():
        return None
    # The digest follows the order of these tables.
    tables = {name: frame for part in parts for name, frame in part.tables.items()}
    tables["evaluation_examples"] = pl.concat([frame for part in parts for frame in part.examples])
    directions = {key: better for part in parts for key, better in part.directions.items()}
    metrics = metric_rows(tables["evaluation_examples"], spec, directions)
    tables["evaluations"] = with_identity(metrics, candidate.family, candidate.seed)
    digests = [
        write_table(frame, table, context.output(f"{table}{suffix}"), **context.asset.stamp)
        for table, frame in tables.items()
    ]
    figures = {f"{row['dataset']}_{row['metric']}": row["value"] for row in metrics.iter_rows(named=True)}
    for part in parts:
        figures |= part.notes
    return joined_digest(*digests), figures


def _require_packages(spec: EvaluationSpec) -> None:
    """Refuse what an evaluation lacks on this machine, before hours of generation and not after them."""
    if spec.ifeval is not None:
        ifeval.load_checkers()
    if spec.ifbench is not None:
        ifbench.load_prompts(spec.ifbench.limit)
    for what, judged in ((ALPACA_EVAL, spec.alpaca_eval), (PAIRWISE, spec.pairwise)):
        if judged is not None and judged.judge is not None:
            check_evaluator(judged.judge, what.key)
    if spec.lm_eval is not None:
        lm_eval_tasks(spec.lm_eval)


def forget_answers(request: StageRequest, figures: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Delete the cached answers and verdicts: a forced rerun of the complete asset generates them again.

    Unless a judge has failed, as a note among its `figures` says: a rerun asks it again, and pays for no verdict twice.
    """
    notes = [value for name, value in figures.items() if name.endswith((ALPACA_EVAL.key, PAIRWISE.key))]
    if all(NO_JUDGE in str(note) for note in notes):
        shutil.rmtree(answers_dir(request), ignore_errors=True)


def _held_out(
    context: StageContext, candidate: Candidate, spec: EvaluationSpec, examples: list[TokenizedExample]
) -> EvaluationPart:
    """Return loss, accuracy and calibration on held-out responses."""
    is_compared = bool(context.asset.fields.get("validation"))
    splits = (*HELD_OUT, VALIDATION) if is_compared else HELD_OUT
    tokens = held_out_tokens(context, candidate, [example for example in examples if example.split in splits])
    if not process_group.is_main():
        return EvaluationPart()
    columns = [*TOKEN_KEY, "loss", "entropy"]
    teacher = None
    if "token_losses" in context.request.inputs:
        stored = pl.scan_parquet(Path(context.input("token_losses"), "part-*.parquet"))
        stored = stored.filter(pl.col("split").cast(pl.String).is_in(HELD_OUT))
        teacher = stored.select(columns).collect()
    if TRUTH in context.request.inputs:
        slots = read_table(context.input(TRUTH)).select(pl.col("example_id").cast(pl.String), "position", "slot")
        tokens = tokens.join(slots, on=TOKEN_KEY, how="left", validate="1:1", maintain_order="left")
        columns += DIVERGENCES
    rows = held_out_examples(tokens, spec.calibration_bins, teacher)
    held_out = tokens.filter(pl.col("split").cast(pl.String).is_in(HELD_OUT))
    tables = {"evaluation_tokens": held_out.select(columns)}
    if is_compared:
        tables["validation_losses"] = validation_losses(tokens)
    return EvaluationPart(tables, (rows,))


def held_out_tokens(context: StageContext, candidate: Candidate, examples: list[TokenizedExample]) -> pl.DataFrame:
    """Return loss, entropy and confidence of each token; on a rank other than 0, those that this run measures."""
    plan, found = BatchPlan.of(candidate.model, context.numerics), []
    total = sum(len(example.input_ids) for example in examples)
    progress = Progress(context.reporter, f"{candidate.name} loss", total, "tokens")
    kept: list[KeptParts] = []
    if process_group.is_main() and candidate.stored is not None:
        kept.append(KeptFrames(_kept_folder(context, candidate, examples, plan), found.append))
    with Keeper(kept, context.reporter.info, f"{candidate.name} loss", "batches") as keeper:
        first = keeper.resume()
        done = {example_id for frames in found for example_id in frames["tokens"]["example_id"].unique()}
        progress.skip(sum(len(example.input_ids) for example in examples if example.example_id in done))
        for batch in _scored(context, candidate, examples, plan, first, progress):
            # The probability of the likeliest token is the model's confidence. Every example is held out, so that each
            # token has one alternative, in order.
            frames = {"tokens": batch.rows.with_columns(confidence=batch.alternatives["probability"])}
            found.append(frames)
            keeper.put(frames)
    # Rank 0 alone has what an earlier run kept, which may be all.
    return pl.concat(frames["tokens"] for frames in found) if found else pl.DataFrame()


def _kept_folder(
    context: StageContext, candidate: Candidate, examples: list[TokenizedExample], plan: BatchPlan
) -> Path:
    return kept_folder(
        context,
        plan,
        splits=sorted({example.split for example in examples}),
        dataset=content_of(context.input("tokenized_dataset")),
        adapter=None if candidate.adapter is None else adapter_digest(candidate.adapter),
        **({TRUTH: content_of(context.input(TRUTH))} if TRUTH in context.request.inputs else {}),
    )


def _scored(
    context: StageContext,
    candidate: Candidate,
    examples: list[TokenizedExample],
    plan: BatchPlan,
    first: int,
    progress: Progress,
) -> Iterator[ScoredRows]:
    """Yield the rows of each batch from number `first`, scored here or by the processes of a cluster."""
    numerics, actors, folder = context.numerics, batch_actors.current(), context.request.inputs.get(TRUTH)
    if actors is None or candidate.stored is None:
        truth = None if folder is None else TokenTruth.read(folder, {example.example_id for example in examples})
        yield from scored_batches(
            candidate.model, examples, numerics, progress.add, alternatives=1, first=first, truth=truth
        )
        return
    measure = LossMeasure(candidate.stored, alternatives=1, truth=folder)
    job = Job(ExampleBatches(examples, plan, first), measure, group=plan.workers)
    yield from actors.stream(job, numerics, progress.add)


def _ifeval(context: StageContext, candidate: Candidate, spec: IfEvalSpec) -> EvaluationPart:
    """Return the accuracies of IF-Eval."""
    prompts = held_out_rows(context, spec.dataset)
    encoder = PromptEncoder(context, candidate.tokenizer)
    ids = [encoder.ids(example) for example in held_out(context, spec.dataset)]
    texts, lengths = answer_prompts(context, candidate, "IF-Eval", ids, spec)
    if not process_group.is_main():
        return EvaluationPart()
    generations = ifeval.check(prompts, texts).with_columns(n_tokens=lengths)
    return EvaluationPart({"generations": generations}, (ifeval.ifeval_examples(generations, spec.dataset),))


def _ifbench(context: StageContext, candidate: Candidate, spec: IfBenchSpec) -> EvaluationPart:
    """Return the accuracies of IFBench."""
    prompts = ifbench.load_prompts(spec.limit)
    encoder = PromptEncoder(context, candidate.tokenizer)
    texts, lengths = answer_prompts(
        context, candidate, "IFBench", [encoder.ids(prompt.example) for prompt in prompts.asked], spec
    )
    if not process_group.is_main():
        return EvaluationPart()
    answers = ifbench.check(prompts.asked, texts).with_columns(n_tokens=lengths)
    notes: dict[str, int | str] = {}
    if prompts.left_out:
        notes = {"ifbench_left_out": len(prompts.left_out), "ifbench_left_out_prompts": prompts.why_left_out}
        context.reporter.warning(f"{candidate.name}: IFBench: {prompts.why_left_out}")
    return EvaluationPart({"ifbench_answers": answers}, (ifeval.ifeval_examples(answers, ifbench.DATASET),), notes)


def _gsm8k(context: StageContext, candidate: Candidate, spec: Gsm8kSpec) -> EvaluationPart:
    """Return the exact matches of GSM8K."""
    shots = read_table(context.input(f"examples/{spec.fewshot_dataset or spec.dataset}"))
    shots = shots.filter(pl.col("split") == "train")
    task = Gsm8k(held_out_rows(context, spec.dataset), shots, num_fewshot=spec.num_fewshot, chat=spec.chat)
    ids = _gsm8k_prompts(context, candidate, spec, task)
    texts, lengths = answer_prompts(context, candidate, "GSM8K", ids, spec, task.stop)
    if not process_group.is_main():
        return EvaluationPart()
    answers = task.score(texts).with_columns(n_tokens=lengths)
    notes: dict[str, int | str] = {}
    if task.unscorable:
        shown = ", ".join(task.unscorable[:_SHOWN]) + (", ..." if len(task.unscorable) > _SHOWN else "")
        notes = {"gsm8k_unscorable": len(task.unscorable), "gsm8k_unscorable_examples": shown}
        context.reporter.warning(
            f"{candidate.name}: GSM8K: {len(task.unscorable)} questions are left out, because no filter of lm-eval "
            f"extracts their answers, and {len(texts)} are asked: {shown}"
        )
    return EvaluationPart({"gsm8k_answers": answers}, (gsm8k_examples(answers, spec.dataset, spec.split),), notes)


def _gsm8k_prompts(context: StageContext, candidate: Candidate, spec: Gsm8kSpec, task: Gsm8k) -> list[list[int]]:
    """Return the ids of lm-eval's prompts; in a chat, with each row's system turn before the few-shot examples."""
    by_id = {example.id: example for example in held_out(context, spec.dataset)}
    asked = [by_id[document["id"]] for document in task.documents]
    if spec.chat:
        encoder = PromptEncoder(context, candidate.tokenizer)
        return [
            encoder.ids(replace(example, messages=[*_system(example), *turns], turn_weights=None))
            for example, turns in zip(asked, task.prompts(), strict=True)
        ]
    if unused := sum(bool(_system(example) or example.template) for example in asked):
        context.reporter.warning(
            f"{candidate.name}: GSM8K: `chat: false` asks in plain text, without the system turns, tools and "
            f"`chat_template_kwargs` of {unused} of {len(asked)} rows"
        )
    return [candidate.tokenizer(prompt)["input_ids"] for prompt in task.prompts()]


def _system(example: Example) -> list[Turn]:
    return [turn for turn in example.messages[:1] if turn["role"] in ("system", "developer")]
