"""What the evaluation of any model reads in addition to the model, and the tables that it fills."""

from tokenuq_ml.config import REFERENCE_ROWS, EvaluationSpec, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.config.pairwise import compared_with
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.store_layout import table_path

JUDGES = {"alpaca_eval": "judge", "pairwise": "pairwise_judge"}
"""Key of an evaluation -> the name of the input with its judge's model."""


def evaluation_tables(evaluation: EvaluationSpec, is_compared_with: bool, is_judged: bool) -> tuple[str, ...]:
    """Return the tables of one evaluated model.

    Args:
        evaluation: of the study.
        is_compared_with: whether the outputs of other models are compared with this one's (`pairwise`).
        is_judged: whether this one's outputs are compared with those of another model.
    """
    optional = {
        "generations": evaluation.ifeval,
        "ifbench_answers": evaluation.ifbench,
        "gsm8k_answers": evaluation.gsm8k,
        "alpaca_eval_verdicts": evaluation.alpaca_eval,
        "lm_eval_samples": evaluation.lm_eval,
    }
    configured = (table for table, spec in optional.items() if spec is not None)
    pairwise = {"pairwise_answers": is_compared_with, "pairwise_verdicts": is_judged}
    compared = (table for table, is_made in pairwise.items() if is_made)
    return ("evaluations", "evaluation_examples", "evaluation_tokens", *configured, *compared)


def is_judged(config: Config, study: StudySpec, ablation: str) -> bool:
    """Return whether a judge compares an ablation's outputs with those of another model of the study."""
    return study.evaluation.pairwise is not None and versus_of(config, study, ablation) is not None


def versus_of(config: Config, study: StudySpec, ablation: str) -> str | None:
    """Return the model that an ablation's outputs are compared with; None for one that others are compared with."""
    assert study.evaluation.pairwise is not None
    ablations = {name: config.ablations[name] for name in study.ablations}
    return compared_with(study.evaluation.pairwise.versus, ablations)[ablation]


def versus_input(study: StudySpec, row: str) -> Input:
    """Return the answers of the model with which outputs are compared."""
    stage = ("reference_evaluation",) if row in REFERENCE_ROWS else (row, "evaluation")
    place = table_path("pairwise_answers", study=study.name, ablation=row)
    return Input("versus", place, (study.name, *stage))


def evaluation_files(evaluation: EvaluationSpec) -> dict[str, str]:
    """Return input -> the user's own file or folder. The digests of their content are fields of the asset."""
    return {} if evaluation.lm_eval is None else evaluation.lm_eval.paths


def evaluation_inputs(evaluation: EvaluationSpec) -> tuple[Input, ...]:
    """Return the datasets that hold the prompts, and the models of judges that are local."""
    datasets = inputs.examples(*dict.fromkeys(evaluation.datasets.values()))
    return (*datasets, *(inputs.model(name, JUDGES[key]) for key, name in evaluation.judge_models.items()))
