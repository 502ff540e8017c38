"""Tasks of lm-eval by its own evaluator, on a model that is loaded already."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.config.lm_eval import LmEvalSpec, TaskData
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.lm_eval_data import overrides
from tokenuq_ml.evaluation.lm_eval_index import Resolved
from tokenuq_ml.evaluation.lm_eval_metrics import sample_parts
from tokenuq_ml.evaluation.silence import silenced
from tokenuq_ml.hub_errors import first_line
from tokenuq_ml.seeding import seeded_generators
from tokenuq_ml.system_errors import is_system_error

Count = Callable[[int], Callable[[int], None]]
"""From a number of requests to the function that counts those that are answered."""


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data, as lm-eval loads them."""

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]


def package_version() -> str:
    """Return the version of the installed lm-eval."""
    return version("lm_eval")


def load(found: Resolved, data: TaskData | None, spec: LmEvalSpec, cache_dir: Path) -> Loaded:
    """Return the tasks that a name stands for, set up as `simple_evaluate` sets them up.

    Args:
        found: the name.
        data: local data in the place of the dataset; None: lm-eval loads it from the hub or its cache.
        spec: number of few-shot examples.
        cache_dir: where local data are converted to Arrow files.

    Raises:
        InputError: the data cannot be read, or a package is missing.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory

    keys = None
    if data is not None:
        keys = overrides(found, data, spec.num_fewshot)
        keys["dataset_kwargs"] = {**(keys["dataset_kwargs"] or {}), "cache_dir": str(cache_dir)}
    try:
        with silenced("lm_eval"):
            manager = TaskManager(include_path=found.folders, include_defaults=False)
            index = manager.task_index
            # The manager itself takes overrides of single tasks only.
            built = TaskFactory().build(index[found.name], overrides=keys, registry=index)
            loaded = manager.load(built if isinstance(built, list) else [built])
    except Exception as error:
        if is_system_error(error):
            raise
        raise InputError(_why_not_loaded(found, data, error)) from error
    for task in loaded["tasks"].values():
        # As in simple_evaluate: a task's own number 0 stays.
        if spec.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=spec.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return Loaded(loaded["tasks"], loaded["groups"])


def _why_not_loaded(found: Resolved, data: TaskData | None, error: Exception) -> str:
    source, line = found.tasks[0].config.get("dataset_path"), f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, ModuleNotFoundError):
        return f"evaluation.lm_eval.tasks: {found.name} needs the package {error.name}, which is not installed"
    if data is not None:
        return (
            f"evaluation.lm_eval.data.{found.name}: lm-eval cannot read it ({line}); give it the columns of the "
            f"dataset {source}"
        )
    return (
        f"evaluation.lm_eval.tasks: the dataset {source} of {found.name} cannot be loaded ({line}); check the network, "
        f"or name local data in evaluation.lm_eval.data.{found.name}"
    )


class TaskRunner:
    """Measures tasks on one model.

    Args:
        model: a causal language model, with or without adapter.
        tokenizer: of the model; it is not changed.
        spec: limit, batches, and whether prompts are rendered by the chat template.
        cache: path of the requests that are answered, without its ending, so that a task that was interrupted resumes.
        count: receives the number of requests that are to be answered.

    Raises:
        InputError: `chat` is set, and the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: LmEvalSpec,
        cache: Path,
        count: Count,
    ):
        if spec.chat and not tokenizer.chat_template:
            raise InputError(
                "evaluation.lm_eval.chat: the model has no chat template; set `chat: false`, or give the model a "
                "`chat_template` in models.yaml"
            )
        from lm_eval.api.model import CachingLM

        # The adapter's layers are in the base model.
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        self._model, self._spec = model, spec
        self._modes = {module: module.training for module in model.modules()}
        with silenced("lm_eval"):
            # lm-eval sets the padding of its tokenizer, and puts the model into evaluation mode.
            lm = _counted_model()(
                count, pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=spec.batch_size
            )
            self._lm = CachingLM(lm, f"{cache}.db")

    def measure(self, name: str, task: Any) -> dict[str, Any]:
        """Return the results of a task as plain JSON values.

        Keys: `version` of the task, `shots`, `total` (samples of its split), `size` (those that were measured),
        `metrics` (fields of `SampleParts`), `left_out` (metric -> reason), `values` (lm-eval's own aggregates) and
        `samples` (rows of `lm_eval_samples`).

        Raises:
            InputError: a sample cannot be read as one of the task.
        """
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
        from lm_eval.evaluator import evaluate

        self._model.eval()
        try:
            with silenced("lm_eval"), seeded_generators(DEFAULT_RANDOM_SEED, DEFAULT_OTHER_SEED):
                results = evaluate(
                    lm=self._lm,
                    task_dict={"tasks": {name: task}, "groups": {}},
                    limit=self._spec.limit,
                    bootstrap_iters=0,
                    apply_chat_template=self._spec.chat,
                    fewshot_as_multiturn=self._spec.chat,
                )
        except (LookupError, ValueError, TypeError, AttributeError, AssertionError, TemplateError) as error:
            raise InputError(
                f"evaluation.lm_eval.tasks: lm-eval fails on {name}: {type(error).__name__}: {first_line(error)}; "
                "correct its data, or remove it"
            ) from error
        finally:
            for module, training in self._modes.items():
                module.training = training
        return _plain(name, task, results)

    def close(self) -> None:
        """Close the file of the requests that are answered."""
        self._lm.dbdict.close()


def _counted_model() -> type:
    """Return lm-eval's model class, which counts answered requests."""
    from lm_eval.models.huggingface import HFLM

    class CountedModel(HFLM):
        """lm-eval's model, which counts answered requests and shows no progress bars."""

        def __init__(self, count: Count, **settings: Any):
            super().__init__(**settings)
            self._count, self._answered = count, lambda number: None

        def set_cache_hook(self, cache_hook: Any) -> None:
            """Count what lm-eval adds to its cache: every request, as soon as it is answered."""
            add = cache_hook.add_partial

            def counting(*answer: Any) -> None:
                add(*answer)
                self._answered(1)

            cache_hook.add_partial = counting
            super().set_cache_hook(cache_hook)

        def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list:
            self._answered = self._count(len(requests))
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = True) -> list:
            self._answered = self._count(len(requests))
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: list, disable_tqdm: bool = True) -> list:
            self._answered = self._count(len(requests))
            return super().generate_until(requests, disable_tqdm=True)

    return CountedModel


def _plain(name: str, task: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    samples = results["samples"][name]
    values: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault((metric, sample["filter"]), {})[_example_id(name, sample)] = sample[metric]
    metrics, left_out = sample_parts(values, task.aggregation(), task.higher_is_better())
    found = results["results"][name]
    return {
        "version": str(task.VERSION),
        "shots": task.get_config("num_fewshot"),
        "total": results["n-samples"][name]["original"],
        "size": found["sample_len"],
        "metrics": [asdict(metric) for metric in metrics],
        "left_out": left_out,
        "values": {key: float(value) for key, value in found.items() if _is_aggregate(key, value)},
        "samples": [_sample(name, sample) for sample in samples],
    }


def _is_aggregate(key: str, value: Any) -> bool:
    return "," in key and "_stderr," not in key and isinstance(value, Real)


def _example_id(name: str, sample: Mapping[str, Any]) -> str:
    """Return the task, the number and a hash of a sample: other data under the same number is another example."""
    return f"{name}/{sample['doc_id']:06d}/{sample['doc_hash'][:8]}"


def _sample(name: str, sample: Mapping[str, Any]) -> dict[str, str]:
    arguments = sample["arguments"]
    return {
        "example_id": _example_id(name, sample),
        "task": name,
        "filter": sample["filter"],
        "prompt": str(arguments[0][0]) if arguments else "",
        "target": _text(sample["target"]),
        "response": _text([answers[0] for answers in sample["resps"]]),
        "filtered": _text(sample["filtered_resps"]),
    }


def _text(value: Any) -> str:
    """Return a text as it is, the only text of a list too, and anything else as JSON."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
