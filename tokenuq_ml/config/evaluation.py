"""What every model of a study is measured by: the entry `evaluation` of a study.

Does not know how a metric is computed (`evaluation/`), nor which files it is computed from.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tokenuq_ml.config.base import Spec


class GenerationSpec(Spec):
    """Greedy answers to a dataset's prompts."""

    dataset: str = Field(description="an entry of datasets.yaml; its rows of split test and ood are asked")
    max_new_tokens: Annotated[int, Field(gt=0)] = 256
    batch_size: Annotated[int, Field(gt=0)] = 16


class IfEvalSpec(GenerationSpec):
    """Instruction following, by lm-eval's own checkers."""


class Gsm8kSpec(GenerationSpec):
    """GSM8K, by lm-eval's own task: its prompts, few-shot examples, filters and exact match."""

    num_fewshot: Annotated[int, Field(ge=0)] = 5
    fewshot_dataset: str | None = Field(None, description="whose train rows are the examples; default: dataset")
    chat: bool = Field(
        True, description="examples as turns of a conversation, in the model's chat template; else one plain text"
    )
    split: Literal["test", "ood"] = Field("ood", description="what the results count as; test: in distribution")


class JudgeSpec(Spec):
    """Who compares two outputs: an OpenAI-compatible endpoint, or a model of `models.yaml`."""

    base_url: str | None = Field(None, description="e.g. https://api.openai.com/v1")
    model: str | None = Field(None, description="the endpoint's name of the model")
    api_key_env: str | None = Field(None, description="environment variable that holds the key")
    annotator: str = Field(
        "weighted_alpaca_eval_gpt4_turbo", description="alpaca_eval's evaluator whose prompt and parser are used"
    )
    local_model: str | None = Field(None, description="an entry of models.yaml, run here in place of an endpoint")

    @model_validator(mode="after")
    def _one(self):
        if (self.base_url is None) == (self.local_model is None):
            raise ValueError("name either 'base_url' and 'model' of an endpoint, or 'local_model'")
        if self.base_url is not None and self.model is None:
            raise ValueError("'base_url' needs 'model', the endpoint's name of the judge")
        if self.local_model is not None and (self.model is not None or self.api_key_env is not None):
            raise ValueError("'model' and 'api_key_env' are of an endpoint; 'local_model' has none")
        return self


class AlpacaEvalSpec(GenerationSpec):
    """AlpacaEval: the model's outputs against the dataset's, compared by a judge."""

    judge: JudgeSpec | None = Field(None, description="without one nothing is generated, and there is no such row")
    max_new_tokens: Annotated[int, Field(gt=0)] = 512
    split: Literal["test", "ood"] = Field("ood", description="what the results count as; test: in distribution")


class EvaluationSpec(Spec):
    """What every model of a study is measured by, beside its losses on held-out tokens."""

    bootstrap: Annotated[int, Field(gt=0, description="resamples for the intervals")] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: int = 0
    calibration_bins: Annotated[int, Field(gt=1, description="equal bins of confidence")] = 15
    ifeval: IfEvalSpec | None = None
    gsm8k: Gsm8kSpec | None = None
    alpaca_eval: AlpacaEvalSpec | None = None

    @property
    def datasets(self) -> dict[str, str]:
        """Key of this spec -> the dataset that it names."""
        named = {
            f"{name}.dataset": spec.dataset
            for name, spec in (("ifeval", self.ifeval), ("gsm8k", self.gsm8k), ("alpaca_eval", self.alpaca_eval))
            if spec is not None
        }
        if self.gsm8k is not None and self.gsm8k.fewshot_dataset is not None:
            named["gsm8k.fewshot_dataset"] = self.gsm8k.fewshot_dataset
        return named

    @property
    def judge_model(self) -> str | None:
        """The entry of `models.yaml` that judges, if any does."""
        judge = self.alpaca_eval.judge if self.alpaca_eval else None
        return judge.local_model if judge else None

    def interval_fields(self) -> dict:
        """The fields that decide an interval, as plain JSON values; an `EvaluationSpec` by themselves."""
        return self.model_dump(mode="json", include={"bootstrap", "confidence", "seed"})
