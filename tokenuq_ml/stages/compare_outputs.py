"""AlpacaEval of a model under evaluation: its outputs against the reference's, compared by a judge."""

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config import AlpacaEvalSpec
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


def compare_outputs(context: StageContext, candidate: Candidate, spec: AlpacaEvalSpec) -> EvaluationPart:
    """Return the win rates; without a judge, or if the judge fails, only a note that says why there are none."""
    try:
        judged = _judged(context, candidate, spec)
    except JudgeUnavailable as error:
        empty = pl.DataFrame(schema=VERDICT_SCHEMA | {"n_tokens": pl.Int32})
        note = _left_out(context, candidate, f"no win rate: {error}")
        return EvaluationPart({VERDICTS: empty}, notes={"alpaca_eval": note})
    if judged is None:
        return EvaluationPart()
    notes: dict[str, int | str] = {"alpaca_eval_unjudged": judged["preferred"].null_count()}
    examples = [alpaca_eval_examples(judged, spec.dataset, spec.split)]
    try:
        examples.append(length_controlled_examples(judged, spec.dataset, spec.split))
    except LeftOut as error:
        notes[LENGTH_CONTROLLED] = _left_out(context, candidate, str(error))
    return EvaluationPart({VERDICTS: judged}, tuple(examples), notes)


def _judged(context: StageContext, candidate: Candidate, spec: AlpacaEvalSpec) -> pl.DataFrame | None:
    """Return the table of verdicts; None on a rank other than 0, which only answers.

    Raises:
        JudgeUnavailable: there is no judge, or it fails.
    """
    asked = references(held_out_rows(context, spec.dataset))
    # The judge comes first, so that no answer is generated without one.
    found: list[tuple[Judge, AnswerCache]] = []
    missing = process_group.on_main(lambda: _look_for_judge(context, spec, found))
    if missing is not None:
        raise JudgeUnavailable(missing)
    encoder, examples = PromptEncoder(context, candidate.tokenizer), held_out(context, spec.dataset)
    ids = [encoder.ids(example) for example in examples]
    texts, lengths = answer_prompts(context, candidate, "AlpacaEval", ids, spec)
    if not found:
        return None
    judge, cache = found[0]
    progress = Progress(context.reporter, f"{candidate.name} AlpacaEval's judge", 2 * len(asked), "pairs")
    return verdicts(asked, texts, judge, cache, progress.add).with_columns(n_tokens=lengths)


def _look_for_judge(context: StageContext, spec: AlpacaEvalSpec, found: list[tuple[Judge, AnswerCache]]) -> str | None:
    """Add the judge and its cache to `found`; return why there is none. Rank 0 alone asks it."""
    try:
        found.append(_judge(context, spec))
    except JudgeUnavailable as error:
        return str(error)
    return None


def _judge(context: StageContext, spec: AlpacaEvalSpec) -> tuple[Judge, AnswerCache]:
    """Return the judge, and the cache of its verdicts."""
    if spec.judge is None:
        raise JudgeUnavailable("the study names no judge; give one as evaluation.alpaca_eval.judge")
    decided_by, completions = {"judge": spec.judge.fields(), "code": context.asset.code_version}, None
    if spec.judge.local_model is not None:
        folder = context.input("judge")
        model, numerics = load_model(folder, context.asset.fields["precision"])
        completions = local_completions(model, load_tokenizer(folder), numerics)
        decided_by |= {"model": model_digest(folder), "numerics": numerics.fields()}
    return Judge(spec.judge, completions), AnswerCache(answers_dir(context.request), **decided_by)


def _left_out(context: StageContext, candidate: Candidate, why: str) -> str:
    """Warn that metrics are left out, and return the note for the metadata."""
    context.reporter.warning(f"{candidate.name}: {why}")
    return f"left out: {why}"
