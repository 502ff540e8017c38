"""A model under evaluation against another model of its study: a judge compares their outputs."""

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.config.evaluation import PairwiseSpec
from tokenuq_ml.evaluation.alpaca_eval import VERDICT_SCHEMA
from tokenuq_ml.evaluation.judge import JudgeUnavailable
from tokenuq_ml.evaluation.pairwise import asked_prompts, pairwise_examples, tied_examples, with_references
from tokenuq_ml.stages.answer_prompts import held_out_rows
from tokenuq_ml.stages.candidate import Candidate, EvaluationPart
from tokenuq_ml.stages.compare_outputs import Compared, answers_of, judged_outputs, left_out
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.tables.parquet import read_table

PAIRWISE = Compared("pairwise", "pairwise comparison", "pairwise_judge")
ANSWERS, VERDICTS = "pairwise_answers", "pairwise_verdicts"


def compare_models(context: StageContext, candidate: Candidate, spec: PairwiseSpec) -> EvaluationPart:
    """Return the win rate of a model; of the one that others are compared with, its answers.

    Base model and teacher are judged by none: they only answer, if students are compared with them.
    """
    asked = asked_prompts(held_out_rows(context, spec.dataset))
    if candidate.seed is None and candidate.family in REFERENCE_ROWS:
        return _answers(context, candidate, spec, asked) if spec.versus == candidate.family else EvaluationPart()
    versus = context.asset.fields["versus"]
    if versus is None:
        return _answers(context, candidate, spec, asked)
    return _verdicts(context, candidate, spec, asked, versus)


def _answers(context: StageContext, candidate: Candidate, spec: PairwiseSpec, asked: pl.DataFrame) -> EvaluationPart:
    texts, lengths = answers_of(context, candidate, spec, PAIRWISE.name)
    if not process_group.is_main():
        return EvaluationPart()
    table = asked.with_columns(response=pl.Series(texts, dtype=pl.String), n_tokens=lengths)
    return EvaluationPart({ANSWERS: table}, (tied_examples(asked, spec.dataset, spec.split, spec.versus),))


def _verdicts(
    context: StageContext, candidate: Candidate, spec: PairwiseSpec, asked: pl.DataFrame, versus: str
) -> EvaluationPart:
    asked = with_references(asked, read_table(context.input("versus")), versus)
    name = pl.lit(versus, pl.String).alias("versus")
    try:
        judged = judged_outputs(context, candidate, spec, asked, PAIRWISE)
    except JudgeUnavailable as error:
        empty = pl.DataFrame(schema=VERDICT_SCHEMA | {"n_tokens": pl.Int32}).with_columns(name)
        note = left_out(context, candidate, f"no win rate against {versus}: {error}")
        return EvaluationPart({VERDICTS: empty}, notes={PAIRWISE.key: note})
    if judged is None:
        return EvaluationPart()
    unjudged = judged["preferred"].null_count()
    if unjudged:
        context.reporter.warning(
            f"{candidate.name}: the judge's answers have no verdict on {unjudged} of {len(judged)} pairs with "
            f"{versus}, which are left out"
        )
    examples = pairwise_examples(judged, spec.dataset, spec.split, spec.versus)
    return EvaluationPart({VERDICTS: judged.with_columns(name)}, (examples,), {"pairwise_unjudged": unjudged})
