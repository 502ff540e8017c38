"""The length-controlled win rate of AlpacaEval, from the alpaca_eval package and its authors' files on the hub.

Dubois et al. 2024, arXiv 2404.04475: a regression of the preferences on the difference in length and the difficulty of
the instruction predicts the preferences at equal lengths.
"""

import contextlib
import json
import logging
import warnings

import polars as pl

from tokenuq_ml.evaluation.judge import load_package
from tokenuq_ml.evaluation.metrics import example_rows
from tokenuq_ml.evaluation.silence import silenced

LENGTH_CONTROLLED = "length_controlled_win_rate"
REPOSITORY, INSTRUCTIONS = "tatsu-lab/alpaca_eval", "alpaca_eval.json"


class LeftOut(Exception):
    """There is no length-controlled win rate; the message says why."""


def length_controlled_examples(judged: pl.DataFrame, dataset: str, split: str) -> pl.DataFrame:
    """Return each instruction's predicted preference at equal lengths; columns EXAMPLE_SCHEMA.

    An interval of these preferences does not cover the uncertainty of the regression. Only the instructions of
    AlpacaEval itself have a known difficulty; they are identified by their text.

    Args:
        judged: the frame that `alpaca_eval.verdicts` returns.
        dataset: the dataset of the rows.
        split: their split.

    Raises:
        LeftOut: the files cannot be downloaded, or an instruction is not one of AlpacaEval's.
    """
    load_package()
    judged = judged.filter(pl.col("preferred").is_not_null())
    try:
        with _quiet():
            predicted = _predict(judged)
    except LeftOut:
        raise
    except Exception as error:
        # The package, the regression and the hub can fail in many ways; the win rate must not be lost with them.
        reason = " ".join(str(error).split(". ")[0].split())[:200]
        raise LeftOut(f"no length-controlled win rate: {type(error).__name__}: {reason}") from error
    return example_rows(dataset, split, LENGTH_CONTROLLED, judged["example_id"], predicted, [1] * len(judged))


def _predict(judged: pl.DataFrame) -> list[float]:
    import pandas as pd
    from alpaca_eval.metrics import get_length_controlled_winrate
    from huggingface_hub import hf_hub_download

    with open(hf_hub_download(REPOSITORY, INSTRUCTIONS, repo_type="dataset"), encoding="utf-8") as file:
        index = {row["instruction"].strip(): number for number, row in enumerate(json.load(file))}
    numbers = [index.get(prompt.strip()) for prompt in judged["prompt"]]
    if None in numbers:
        raise LeftOut(
            f"no length-controlled win rate: the instruction of {judged['example_id'][numbers.index(None)]} is none of "
            f"the {len(index)} whose difficulty is known"
        )
    frame = pd.DataFrame(
        {
            "index": numbers,
            "output_1": judged["reference"].to_list(),
            "output_2": judged["response"].to_list(),
            "preference": [1 + preferred for preferred in judged["preferred"]],
            "annotator": "judge",
            "generator_1": "reference",
            "generator_2": "model",
        }
    )
    get_length_controlled_winrate(frame, save_weights_dir=None)
    return frame["glm_preference"].astype(float).tolist()


@contextlib.contextmanager
def _quiet():
    """Without the package's log lines and the warnings of the libraries below it."""
    with silenced(None, logging.CRITICAL), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
