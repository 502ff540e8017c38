"""How the models of a study are evaluated: the key `evaluation` of a study.

The package `evaluation` computes the metrics.
"""

from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tokenuq_ml.config.base import Spec
from tokenuq_ml.redaction import holds_secret


class GenerationSpec(Spec):
    """Greedy generation of answers to a dataset's prompts."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"engine"})

    dataset: str = Field(description="an entry of datasets.yaml; prompts are its rows of the splits test and ood")
    max_new_tokens: Annotated[int, Field(gt=0)] = 256
    batch_size: Annotated[int, Field(gt=0)] = 16
    engine: Literal["model", "vllm"] = Field(
        default="model",
        description="model: passes of the loaded model; vllm: vLLM on the CUDA device, compared with it when it starts",
    )


class IfEvalSpec(GenerationSpec):
    """Instruction following, checked by lm-eval."""


class Gsm8kSpec(GenerationSpec):
    """GSM8K as in lm-eval's task: its prompts, few-shot examples, filters and exact match."""

    num_fewshot: Annotated[int, Field(ge=0)] = 5
    fewshot_dataset: str | None = Field(
        default=None, description="dataset whose train rows are the few-shot examples; default: `dataset`"
    )
    chat: bool = Field(
        default=True, description="true: few-shot examples as turns in the model's chat template; false: one plain text"
    )
    split: Literal["test", "ood"] = Field(
        default="ood", description="split that the results are reported for; test: in distribution"
    )


class JudgeSpec(Spec):
    """The judge that compares two outputs: an OpenAI-compatible endpoint, or a model of `models.yaml`."""

    base_url: str | None = Field(default=None, description="e.g. https://api.openai.com/v1")
    model: str | None = Field(default=None, description="the model's name at the endpoint")
    api_key_env: str | None = Field(default=None, description="environment variable that holds the API key")
    annotator: str = Field(
        default="weighted_alpaca_eval_gpt4_turbo",
        description="the evaluator of alpaca_eval whose prompt and parser are used",
    )
    local_model: str | None = Field(
        default=None, description="an entry of models.yaml, run on this machine instead of an endpoint"
    )

    @model_validator(mode="after")
    def _check_one_judge(self) -> Self:
        if (self.base_url is None) == (self.local_model is None):
            raise ValueError("give either 'base_url' and 'model' of an endpoint, or 'local_model'")
        if self.base_url is not None and self.model is None:
            raise ValueError("'base_url' needs 'model', the judge's name at the endpoint")
        if self.base_url is not None:
            _check_endpoint(self.base_url)
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            raise ValueError("'api_key_env' must be the name of an environment variable, not the key itself")
        if self.local_model is not None and (self.model is not None or self.api_key_env is not None):
            raise ValueError("'model' and 'api_key_env' belong to an endpoint; remove them, or 'local_model'")
        return self


def _check_endpoint(url: str) -> None:
    """Check that a judge's address can be stored and shown.

    Raises:
        ValueError: it is no address, or holds a credential.
    """
    if holds_secret(url):
        raise ValueError("'base_url' holds a password or key: name the key's environment variable in 'api_key_env'")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("'base_url' must be an address such as https://api.openai.com/v1")


class AlpacaEvalSpec(GenerationSpec):
    """AlpacaEval: a judge compares the model's outputs with the dataset's."""

    judge: JudgeSpec | None = Field(default=None, description="without a judge nothing is generated or reported")
    max_new_tokens: Annotated[int, Field(gt=0)] = 512
    split: Literal["test", "ood"] = Field(
        default="ood", description="split that the results are reported for; test: in distribution"
    )


class EvaluationSpec(Spec):
    """Evaluations of every model of a study, in addition to its loss on held-out tokens."""

    bootstrap: Annotated[int, Field(gt=0, description="bootstrap resamples per interval")] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: int = 0
    calibration_bins: Annotated[int, Field(gt=1, description="bins of equal width")] = 15
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
    def by_vllm(self) -> tuple[str, ...]:
        """Keys of this spec whose answers vLLM generates."""
        specs = {"ifeval": self.ifeval, "gsm8k": self.gsm8k, "alpaca_eval": self.alpaca_eval}
        return tuple(key for key, spec in specs.items() if spec is not None and spec.engine == "vllm")

    @property
    def prompted(self) -> tuple[str, ...]:
        """Datasets whose rows are asked in the model's chat template, each once."""
        specs = (self.ifeval, self.gsm8k if self.gsm8k and self.gsm8k.chat else None, self.alpaca_eval)
        return tuple(dict.fromkeys(spec.dataset for spec in specs if spec is not None))

    @property
    def judge_model(self) -> str | None:
        """The entry of `models.yaml` that is the judge; None if no local model is."""
        judge = self.alpaca_eval.judge if self.alpaca_eval else None
        return judge.local_model if judge else None

    def interval_fields(self) -> dict[str, Any]:
        """Return the fields that decide an interval, as plain JSON values that make an `EvaluationSpec`."""
        return self.model_dump(mode="json", include={"bootstrap", "confidence", "seed"})
