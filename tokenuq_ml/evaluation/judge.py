"""Who compares two outputs for AlpacaEval: an OpenAI-compatible endpoint, or a model that is run here.

Prompt and parser are the alpaca_eval package's, by its own annotator; only where completions come from is ours to
say. Knows pairs of texts; neither whose outputs they are nor what is made of the verdicts (`alpaca_eval.py`).
"""

import contextlib
import importlib.util
import io
import logging
import os
import types
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from tokenuq_ml.config import JudgeSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.patches import importable_alpaca_eval

NO_KEY = "none"
"""What an endpoint without keys is sent: the client insists on one."""
REACH_S = 10.0
"""Seconds that an endpoint has to say that it is there."""
Completions = Callable[..., dict]


class Pair(NamedTuple):
    """An instruction and two outputs, in the order in which the judge reads them."""

    instruction: str
    output_1: str
    output_2: str


class JudgeUnavailable(Exception):
    """There is no verdict to be had; the message says why."""


class Judge:
    """Compares pairs.

    Args:
        spec: which evaluator of the package, and which endpoint.
        completions: in place of an endpoint, what `alpaca_eval.decoders` calls `fn_completions`
            (`local_completions`).

    Raises:
        InputError: the package is missing, or it has no such evaluator.
        JudgeUnavailable: the endpoint cannot be reached, or the environment variable that should hold its key does not.
    """

    def __init__(self, spec: JudgeSpec, completions: Completions | None = None):
        package = load_package()
        settings = _evaluator(spec.annotator)
        asked = settings.pop("completions_kwargs", {})
        settings.pop("fn_completions", None)
        if completions is None:
            key = _key(spec)
            _require_reachable(spec.base_url, key)
            # A path that is no file: a configuration of clients found on the machine must not decide who judges.
            asked |= {"model_name": spec.model, "requires_chatml": True, "client_config_path": os.devnull}
            asked |= {"openai_api_base": spec.base_url, "openai_api_keys": [key]}
        self._annotator = package.SinglePairwiseAnnotator(
            **settings,
            fn_completions=completions or "openai_completions",
            completions_kwargs={} if completions else asked,
            # Both orders are read, each as it is given: nothing is left to chance.
            is_randomize_output_order=False,
            is_shuffle=False,
        )

    def compare(self, pairs: Sequence[Pair]) -> list[float | None]:
        """Of each pair how far the second output is preferred, 0 to 1; None where the judge's answer says nothing.

        Raises:
            JudgeUnavailable: the endpoint cannot be reached or refuses.
        """
        import openai
        import pandas as pd

        frame = pd.DataFrame([pair._asdict() for pair in pairs]).assign(number=range(len(pairs)))
        root = logging.getLogger()
        level = root.level
        # Else each request is a line of the log and a progress bar, and each failure a traceback before it is raised.
        root.setLevel(logging.CRITICAL)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                rows = self._annotator(frame)
        except openai.OpenAIError as error:
            raise JudgeUnavailable(f"the judge gave no answer: {type(error).__name__}: {_line(error)}") from error
        finally:
            root.setLevel(level)
        told: list[float | None] = [None] * len(pairs)
        for number, preference in zip(rows["number"], rows["preference"].astype(float), strict=True):
            # alpaca_eval: 1 for the first output, 2 for the second, 0 or 1.5 for neither, and what lies between.
            told[number] = 0.5 if preference == 0 else float(preference) - 1
        return told


def local_completions(model, tokenizer, numerics) -> Completions:
    """A model run here as alpaca_eval's `fn_completions`, for evaluators whose answer is one of the tokens m and M.

    Instead of a sampled token its log-probabilities: the parser reads nothing else, and they are the same every time.
    """
    import torch

    from tokenuq_ml.data.tokenization import prompt_ids
    from tokenuq_ml.kernels.scores import token_scores
    from tokenuq_ml.models.forward import head_of, hidden_states

    letters = {letter: tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in ("m", "M")}
    if len(set(letters.values())) < 2:
        raise InputError("evaluation.alpaca_eval.judge.local_model: its tokenizer does not tell m from M; name another")

    @torch.no_grad()
    def complete(prompts: Sequence[str], **_) -> dict:
        chatml = load_package().prompt_to_chatml
        made = []
        for prompt in prompts:
            ids = prompt_ids(tokenizer, _taken(tokenizer, chatml(prompt)))
            inputs = {"input_ids": torch.tensor([ids], device=model.device)}
            last_1D = hidden_states(model, inputs, numerics)[0, -1:]
            told = []
            for letter, token in letters.items():
                loss_1 = token_scores(last_1D, head_of(model), torch.tensor([token], device=model.device)).loss_N
                told.append({"token": letter, "logprob": -loss_1.item()})
            made.append({"text": max(told, key=lambda one: one["logprob"])["token"]})
            made[-1]["logprobs"] = {"content": [{"top_logprobs": told}]}
        return {"completions": [one["text"] for one in made], "completions_all": made}

    return complete


def _taken(tokenizer, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages, with a system turn put before the user's words where the chat template knows no such turn."""
    from tokenuq_ml.data.tokenization import prompt_ids

    try:
        prompt_ids(tokenizer, messages)
    except InputError:
        system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
        first, *rest = [m for m in messages if m["role"] != "system"]
        return [{**first, "content": f"{system}\n\n{first['content']}"}, *rest]
    return messages


def _key(spec: JudgeSpec) -> str:
    key = NO_KEY if spec.api_key_env is None else os.environ.get(spec.api_key_env)
    if not key:
        raise JudgeUnavailable(f"the environment variable {spec.api_key_env} holds no key for {spec.base_url}")
    return key


def _require_reachable(base_url: str, key: str) -> None:
    """Asks for the list of models: whoever answers is there, be it with an error, unless the key is wrong."""
    import openai

    try:
        openai.OpenAI(base_url=base_url, api_key=key, timeout=REACH_S, max_retries=1).models.list()
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise JudgeUnavailable(f"{base_url} refuses the key: {_line(error)}") from error
    except openai.APIStatusError:
        return
    except openai.OpenAIError as error:
        raise JudgeUnavailable(f"{base_url} cannot be reached: {_line(error)}") from error


def _evaluator(name: str) -> dict:
    folder = Path(importlib.util.find_spec("alpaca_eval").submodule_search_locations[0], "evaluators_configs")
    path = folder / name / "configs.yaml"
    if not path.is_file():
        raise InputError(
            f"evaluation.alpaca_eval.judge.annotator: alpaca_eval has no evaluator {name!r}; it has "
            f"{', '.join(sorted(p.parent.name for p in folder.glob('*/configs.yaml')))}"
        )
    (settings,) = yaml.safe_load(path.read_text(encoding="utf-8")).values()
    return settings


@cache
def load_package() -> types.SimpleNamespace:
    """The parts of alpaca_eval that are used here.

    Raises:
        InputError: it, or a package that it needs, is missing.
    """
    try:
        with importable_alpaca_eval():
            from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator
            from alpaca_eval.utils import prompt_to_chatml
    except ModuleNotFoundError as error:
        raise InputError(
            f"evaluation.alpaca_eval needs the package {error.name}, which is not installed: "
            "pip install 'tokenuq[alpacaeval]'"
        ) from error
    return types.SimpleNamespace(SinglePairwiseAnnotator=SinglePairwiseAnnotator, prompt_to_chatml=prompt_to_chatml)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
