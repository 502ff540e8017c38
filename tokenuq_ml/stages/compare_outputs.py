"""A model under evaluation before a judge: its outputs against others, of AlpacaEval's reference for example."""

from dataclasses import dataclass

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config import AlpacaEvalSpec, JudgeSpec
from tokenuq_ml.config.evaluation import PairwiseSpec
from tokenuq_ml.evaluation.alpaca_eval import VERDICT_SCHEMA, alpaca_eval_examples, references, verdicts
from tokenuq_ml.evaluation.answer_cache import AnswerCache
from tokenuq_ml.evaluation.judge import Judge, JudgeUnavailable, local_completions
from tokenuq_ml.evaluation.length_control import LENGTH_CONTROLLED, LeftOut, length_controlled_examples
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.progress import Progress
from tokenuq_ml.stages.answer_prompts import PromptEncoder, answer_prompts, answers_dir, held_out, held_out_rows
from tokenuq_ml.stages.candidate import Candidate, EvaluationPart
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.train_adapter import model_digest

VERDICTS = "alpaca_eval_verdicts"
NO_JUDGE = "the study names no judge"
"""Why there are no metrics, if asking again would not help."""


def compare_outputs(context: StageContext, candidate: Candidate, spec: AlpacaEvalSpec) -> EvaluationPart:
    """Return the win rates; without a judge, or if the judge fails, only a note that says why there are none."""
    try:
        asked = references(held_out_rows(context, spec.dataset))
        judged = judged_outputs(context, candidate, spec, asked, ALPACA_EVAL)
    except JudgeUnavailable as error:
        empty = pl.DataFrame(schema=VERDICT_SCHEMA | {"n_tokens": pl.Int32})
        note = left_out(context, candidate, f"no win rate: {error}")
        return EvaluationPart({VERDICTS: empty}, notes={"alpaca_eval": note})
    if judged is None:
        return EvaluationPart()
    notes: dict[str, int | str] = {"alpaca_eval_unjudged": judged["preferred"].null_count()}
    examples = [alpaca_eval_examples(judged, spec.dataset, spec.split)]
    try:
        examples.append(length_controlled_examples(judged, spec.dataset, spec.split))
    except LeftOut as error:
        notes[LENGTH_CONTROLLED] = left_out(context, candidate, str(error))
    return EvaluationPart({VERDICTS: judged}, tuple(examples), notes)


@dataclass(frozen=True)
class Compared:
    """A comparison of outputs by a judge."""

    key: str
    """In the study's `evaluation`."""
    name: str
    """In progress lines."""
    judge_input: str
    """The input with the model of a local judge."""


ALPACA_EVAL = Compared("alpaca_eval", "AlpacaEval", "judge")


def judged_outputs(
    context: StageContext,
    candidate: Candidate,
    spec: AlpacaEvalSpec | PairwiseSpec,
    asked: pl.DataFrame,
    what: Compared,
) -> pl.DataFrame | None:
    """Return the verdicts on the model's outputs; None on a rank other than 0, which only answers.

    Args:
        context: of the evaluation.
        candidate: the model.
        spec: the prompts' dataset, lengths and the judge.
        asked: `example_id`, `prompt` and `reference` of the dataset's held-out rows, in their order.
        what: which comparison this is.

    Returns:
        Columns VERDICT_SCHEMA and `n_tokens`.

    Raises:
        JudgeUnavailable: there is no judge, or it fails.
    """
    # The judge comes first, so that no answer is generated without one.
    found: list[tuple[Judge, AnswerCache]] = []
    missing = process_group.on_main(lambda: _look_for_judge(context, spec, what, found))
    if missing is not None:
        raise JudgeUnavailable(missing)
    texts, lengths = answers_of(context, candidate, spec, what.name)
    if not found:
        return None
    judge, cache = found[0]
    progress = Progress(context.reporter, f"{candidate.name} {what.name}'s judge", 2 * len(asked), "pairs")
    return verdicts(asked, texts, judge, cache, progress.add).with_columns(n_tokens=lengths)


def answers_of(
    context: StageContext, candidate: Candidate, spec: AlpacaEvalSpec | PairwiseSpec, name: str
) -> tuple[list[str], pl.Series]:
    """Return the model's answers to the held-out rows of a dataset, and their numbers of tokens."""
    encoder, examples = PromptEncoder(context, candidate.tokenizer), held_out(context, spec.dataset)
    return answer_prompts(context, candidate, name, [encoder.ids(example) for example in examples], spec)


def _look_for_judge(
    context: StageContext,
    spec: AlpacaEvalSpec | PairwiseSpec,
    what: Compared,
    found: list[tuple[Judge, AnswerCache]],
) -> str | None:
    """Add the judge and its cache to `found`; return why there is none. Rank 0 alone asks it."""
    try:
        found.append(_judge(context, spec.judge, what))
    except JudgeUnavailable as error:
        return str(error)
    return None


def _judge(context: StageContext, spec: JudgeSpec | None, what: Compared) -> tuple[Judge, AnswerCache]:
    """Return the judge, and the cache of its verdicts."""
    if spec is None:
        raise JudgeUnavailable(f"{NO_JUDGE}; give one as evaluation.{what.key}.judge")
    decided_by, completions = {"judge": spec.fields(), "code": context.asset.code_version}, None
    if spec.local_model is not None:
        folder = context.input(what.judge_input)
        model, numerics = load_model(folder, context.asset.fields["precision"])
        completions = local_completions(model, load_tokenizer(folder), numerics, what.key)
        decided_by |= {"model": model_digest(folder), "numerics": numerics.fields()}
    return Judge(spec, completions, what.key), AnswerCache(answers_dir(context.request), **decided_by)


def left_out(context: StageContext, candidate: Candidate, why: str) -> str:
    """Warn that metrics are left out, and return the note for the metadata."""
    context.reporter.warning(f"{candidate.name}: {why}")
    return f"left out: {why}"
