"""What the evaluation of any model reads in addition to the model, and the tables that it fills."""

from tokenuq_ml.config import EvaluationSpec
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.inputs import Input


def evaluation_tables(evaluation: EvaluationSpec) -> tuple[str, ...]:
    """Return the tables of one evaluated model."""
    optional = {
        "generations": evaluation.ifeval,
        "gsm8k_answers": evaluation.gsm8k,
        "alpaca_eval_verdicts": evaluation.alpaca_eval,
    }
    configured = (table for table, spec in optional.items() if spec is not None)
    return ("evaluations", "evaluation_examples", "evaluation_tokens", *configured)


def evaluation_inputs(evaluation: EvaluationSpec) -> tuple[Input, ...]:
    """Return the datasets that hold the prompts, and the judge's model if a local model judges."""
    datasets = inputs.examples(*dict.fromkeys(evaluation.datasets.values()))
    if evaluation.judge_model is None:
        return datasets
    return (*datasets, inputs.model(evaluation.judge_model, "judge"))
