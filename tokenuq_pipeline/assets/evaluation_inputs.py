"""What the evaluation of any model reads and writes beside the model, as its study says.

Knows the specs' names of datasets and judges, and which table each evaluation fills; makes no asset.
"""

from dataclasses import dataclass

from tokenuq_ml.config import EvaluationSpec
from tokenuq_pipeline.runtime.store_paths import table_path


@dataclass(frozen=True)
class Sources:
    """Inputs of the stage, and the assets that they are."""

    inputs: dict[str, str]
    deps: tuple[tuple[str, ...], ...]


def evaluation_tables(evaluation: EvaluationSpec) -> tuple[str, ...]:
    """The tables of one model."""
    answered = {
        "generations": evaluation.ifeval,
        "gsm8k_answers": evaluation.gsm8k,
        "alpaca_eval_verdicts": evaluation.alpaca_eval,
    }
    asked = (table for table, spec in answered.items() if spec is not None)
    return ("evaluations", "evaluation_examples", "evaluation_tokens", *asked)


def evaluation_sources(evaluation: EvaluationSpec) -> Sources:
    """The datasets that are asked, and the model that judges."""
    datasets = dict.fromkeys(evaluation.datasets.values())
    inputs = {f"examples/{name}": table_path("examples", dataset=name) for name in datasets}
    deps = tuple(("datasets", name) for name in datasets)
    if evaluation.judge_model is not None:
        inputs["judge"] = f"models/{evaluation.judge_model}"
        deps += (("models", evaluation.judge_model),)
    return Sources(inputs, deps)
