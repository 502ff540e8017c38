"""A judge, which compares two outputs: an OpenAI-compatible endpoint or a local model.

Prompt and parser come from the alpaca_eval package, through its own annotator. Only the source of the completions is
decided here.
"""

import importlib.util
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
from tokenuq_ml.evaluation.silence import silenced
from tokenuq_ml.patches import importable_alpaca_eval
from tokenuq_ml.redaction import hide, redacted

NO_KEY = "none"
"""The key for endpoints without keys; the client requires one."""
REACH_TIMEOUT_S = 10.0
"""Seconds that an endpoint has to answer the first request."""
Completions = Callable[..., dict]


class Pair(NamedTuple):
    """An instruction and two outputs, in the order in which the judge reads them."""

    instruction: str
    output_1: str
    output_2: str


class JudgeUnavailable(Exception):
    """There is no judge, or it cannot be asked; the message says why."""


class Judge:
    """Compares pairs of outputs.

    Args:
        spec: the evaluator of the package, and the endpoint.
        completions: used instead of an endpoint; what `alpaca_eval.decoders` calls `fn_completions`, for example
            `local_completions`.
        where: key of the study's `evaluation` that names the judge.

    Raises:
        InputError: the package is missing, or has no such evaluator.
        JudgeUnavailable: the endpoint cannot be reached, or the environment variable of its key is empty.
    """

    def __init__(self, spec: JudgeSpec, completions: Completions | None = None, where: str = "alpaca_eval"):
        package = load_package(where)
        settings = _evaluator(spec.annotator, where)
        asked = settings.pop("completions_kwargs", {})
        settings.pop("fn_completions", None)
        if completions is None:
            key = _key(spec)
            _require_reachable(spec.base_url, key)
            # An empty path, so that a client configuration on this machine cannot choose another judge.
            asked |= {"model_name": spec.model, "requires_chatml": True, "client_config_path": os.devnull}
            asked |= {"openai_api_base": spec.base_url, "openai_api_keys": [key]}
        self._annotator = package.SinglePairwiseAnnotator(
            **settings,
            fn_completions=completions or "openai_completions",
            completions_kwargs={} if completions else asked,
            # The caller asks for both orders, so that the order must not be random.
            is_randomize_output_order=False,
            is_shuffle=False,
        )

    def compare(self, pairs: Sequence[Pair]) -> list[float | None]:
        """Return the preference for the second output of each pair, 0 to 1; None if the answer is no verdict.

        Raises:
            JudgeUnavailable: the endpoint cannot be reached or refuses.
        """
        import openai
        import pandas as pd

        frame = pd.DataFrame([pair._asdict() for pair in pairs]).assign(number=range(len(pairs)))
        try:
            # Otherwise each request logs a line and a progress bar, and each failure a traceback before it is raised.
            with silenced(None, logging.CRITICAL):
                rows = self._annotator(frame)
        except openai.OpenAIError as error:
            raise JudgeUnavailable(f"the judge gave no answer: {type(error).__name__}: {_line(error)}") from error
        preferences: list[float | None] = [None] * len(pairs)
        for number, preference in zip(rows["number"], rows["preference"].astype(float), strict=True):
            # alpaca_eval gives 1 for the first output, 2 for the second, 0 or 1.5 for a tie, and values in between.
            preferences[number] = 0.5 if preference == 0 else float(preference) - 1
        return preferences


def local_completions(model, tokenizer, numerics, where: str = "alpaca_eval") -> Completions:
    """Return a local model as alpaca_eval's `fn_completions`, for evaluators whose answer is the token m or M.

    It gives the log-probabilities of both instead of a sampled token: the parser reads only these, and they are
    deterministic.
    """
    import torch

    from tokenuq_ml.data.tokenization import prompt_ids
    from tokenuq_ml.kernels.scores import token_scores
    from tokenuq_ml.models.forward import head_of, hidden_states

    letters = {letter: tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in ("m", "M")}
    if len(set(letters.values())) < 2:
        raise InputError(
            f"evaluation.{where}.judge.local_model: its tokenizer does not distinguish m from M; name another"
        )

    @torch.no_grad()
    def complete(prompts: Sequence[str], **_) -> dict:
        chatml = load_package().prompt_to_chatml
        answers = []
        for prompt in prompts:
            ids = prompt_ids(tokenizer, _supported_turns(tokenizer, chatml(prompt)))
            inputs = {"input_ids": torch.tensor([ids], device=model.device)}
            last_1D = hidden_states(model, inputs, numerics)[0, -1:]
            logprobs = []
            for letter, token in letters.items():
                loss_1 = token_scores(last_1D, head_of(model), torch.tensor([token], device=model.device)).loss_N
                logprobs.append({"token": letter, "logprob": -loss_1.item()})
            answers.append({"text": max(logprobs, key=lambda one: one["logprob"])["token"]})
            answers[-1]["logprobs"] = {"content": [{"top_logprobs": logprobs}]}
        return {"completions": [one["text"] for one in answers], "completions_all": answers}

    return complete


def _supported_turns(tokenizer, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages; a system turn that the chat template does not support is put before the user's text."""
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
    hide(spec.api_key_env and key)
    return key


def _require_reachable(base_url: str, key: str) -> None:
    """Ask for the list of models. Any answer will do, even an error, unless the key is refused."""
    import openai

    try:
        openai.OpenAI(base_url=base_url, api_key=key, timeout=REACH_TIMEOUT_S, max_retries=1).models.list()
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise JudgeUnavailable(f"{base_url} refuses the key: {_line(error)}") from error
    except openai.APIStatusError:
        return
    except openai.OpenAIError as error:
        raise JudgeUnavailable(f"{base_url} cannot be reached: {_line(error)}") from error


def _evaluator(name: str, where: str) -> dict:
    folder = Path(importlib.util.find_spec("alpaca_eval").submodule_search_locations[0], "evaluators_configs")
    path = folder / name / "configs.yaml"
    if not path.is_file():
        raise InputError(
            f"evaluation.{where}.judge.annotator: alpaca_eval has no evaluator {name!r}; it has "
            f"{', '.join(sorted(p.parent.name for p in folder.glob('*/configs.yaml')))}"
        )
    (settings,) = yaml.safe_load(path.read_text(encoding="utf-8")).values()
    return settings


def check_evaluator(spec: JudgeSpec, where: str) -> None:
    """Check that the package has the judge's evaluator, without asking the judge.

    Args:
        spec: the judge.
        where: key of the study's `evaluation` that names it.

    Raises:
        InputError: the package is missing, or has no such evaluator.
    """
    load_package(where)
    _evaluator(spec.annotator, where)


@cache
def load_package(where: str = "alpaca_eval") -> types.SimpleNamespace:
    """Return the parts of alpaca_eval that are used here; `where` is the key of `evaluation` that needs them.

    Raises:
        InputError: the package, or one that it needs, is missing.
    """
    try:
        with importable_alpaca_eval():
            from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator
            from alpaca_eval.utils import prompt_to_chatml
    except ModuleNotFoundError as error:
        raise InputError(
            f"evaluation.{where} needs the package {error.name}, which is not installed: "
            "pip install 'tokenuq[alpacaeval]'"
        ) from error
    return types.SimpleNamespace(SinglePairwiseAnnotator=SinglePairwiseAnnotator, prompt_to_chatml=prompt_to_chatml)


def _line(error: BaseException) -> str:
    # Endpoints repeat the key, or a part of it, in what they answer.
    return redacted(" ".join(str(error).split()))[:200]
