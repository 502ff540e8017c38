"""GSM8K through lm-eval's own task: its prompts, few-shot examples, filters and exact match, offline.

Cobbe et al. 2021, arXiv 2110.14168. The documents are rows of the table `examples`; nothing is downloaded.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import yaml

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import example_rows
from tokenuq_ml.evaluation.silence import silenced

FEWSHOT_SEED = 1234
"""lm-eval's default. The same documents in the same order give the same few-shot examples as its command line."""
ROLES = ("user", "assistant")
_PLAIN_NUMBER = re.compile(r"-?[0-9][0-9,]*(\.[0-9]+)?")
"""Answers that every filter of lm-eval extracts; others are tried."""
FILTERS = {"strict-match": "strict", "flexible-extract": "flexible"}

ANSWER_SCHEMA = {
    "example_id": pl.String,
    "prompt": pl.String,
    "target": pl.String,
    "response": pl.String,
    "strict_answer": pl.String,
    "strict_match": pl.Boolean,
    "flexible_answer": pl.String,
    "flexible_match": pl.Boolean,
}
"""The columns of `gsm8k_answers` without `n_tokens`, which the caller adds."""


class Gsm8k:
    """The task over some examples.

    Questions whose answer no filter of lm-eval extracts from any response (`3/4`, `20%`, `5 apples`) are left out,
    since every response would count as wrong. `unscorable` lists their ids.

    Args:
        examples: rows of the `examples` table to answer. Each has a question, and an answer that ends in
            `#### number`.
        shots: rows of the `examples` table that few-shot examples are drawn from.
        num_fewshot: examples before each question.
        chat: whether examples are turns of a conversation (lm-eval's `--apply_chat_template --fewshot_as_multiturn`);
            if not, a prompt is one text.

    Raises:
        InputError: a package is missing, a row has no question or no such answer, there are too few examples, or
            lm-eval extracts none of the answers.
    """

    def __init__(self, examples: pl.DataFrame, shots: pl.DataFrame, *, num_fewshot: int, chat: bool):
        self._task_class, self._config = _load_task()
        self.chat = chat
        self.documents = [_document(row) for row in examples.iter_rows(named=True)]
        if not self.documents:
            raise InputError("evaluation.gsm8k: its dataset has no row of split test or ood; add one to its `sizes`")
        if len(shots) < num_fewshot:
            raise InputError(
                f"evaluation.gsm8k: {num_fewshot} few-shot examples are drawn from rows of split train, which has only "
                f"{len(shots)}; name a `fewshot_dataset` with more, or set `num_fewshot: 0`"
            )
        unscorable = self._unscorable(self.documents)
        self.unscorable = [document["id"] for document in unscorable]
        self.documents = [document for document in self.documents if document not in unscorable]
        if not self.documents:
            raise InputError(
                f"evaluation.gsm8k: no filter of lm-eval extracts the answer of any question, such as "
                f"{_final(unscorable[0])!r} of {self.unscorable[0]}; name a dataset whose answers end in `#### number`"
            )
        pool = [_document(row) for row in shots.iter_rows(named=True)] if num_fewshot else self.documents
        self._task = self._build_task(self.documents, pool, num_fewshot)

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return tuple(self._config["generation_kwargs"]["until"])

    def prompts(self) -> list[list[dict[str, str]]] | list[str]:
        """Return the prompt of each example, in order: a conversation that ends with the question, or a text."""
        contexts = [instance.arguments[0] for instance in self._task.instances]
        return [json.loads(context) for context in contexts] if self.chat else contexts

    def score(self, responses: Sequence[str]) -> pl.DataFrame:
        """Return the answers that lm-eval's filters extract, and whether they are right; columns ANSWER_SCHEMA.

        Raises:
            ValueError: the number of responses is not that of the examples.
        """
        if len(responses) != len(self.documents):
            raise ValueError(f"{len(responses)} responses for {len(self.documents)} examples")
        scored = _score(self._task, responses)
        rows = [
            {"example_id": document["id"], "prompt": document["question"], "target": document["answer"]}
            | {"response": response, **filtered}
            for document, response, filtered in zip(self.documents, responses, scored, strict=True)
        ]
        return pl.DataFrame(rows, schema=ANSWER_SCHEMA)

    def _unscorable(self, documents: list[dict]) -> list[dict]:
        """Return the documents for which a response that states exactly their answer counts as wrong."""
        suspects = [document for document in documents if not _PLAIN_NUMBER.fullmatch(_final(document))]
        if not suspects:
            return []
        task = self._build_task(suspects, suspects, 0)
        # As written, and as lm-eval compares it: without commas and dollars.
        finals = [_final(document) for document in suspects]
        tries = [finals, [re.sub(r"[,$]", "", final) for final in finals]]
        right = [
            [any(row[f"{short}_match"] for short in FILTERS.values()) for row in _score(task, responses)]
            for responses in ([f"#### {final}" for final in one] for one in tries)
        ]
        return [document for document, *found in zip(suspects, *right, strict=True) if not any(found)]

    def _build_task(self, documents: list[dict], pool: list[dict], num_fewshot: int):
        import datasets

        by_split = {
            split: datasets.Dataset.from_list([{key: row[key] for key in ("question", "answer")} for row in rows])
            for split, rows in {"train": pool, "test": documents}.items()
        }
        config = {**self._config, "num_fewshot": num_fewshot, "custom_dataset": lambda **_: by_split}
        with silenced("lm_eval"):
            task = self._task_class(config=config)
            task.set_fewshot_seed(FEWSHOT_SEED)
            # Keep the conversation instead of rendering it; the tokenizer applies the chat template.
            task.build_all_requests(
                apply_chat_template=self.chat,
                fewshot_as_multiturn=self.chat,
                chat_template=lambda turns, add_generation_prompt=True: json.dumps(turns),
            )
        return task


def _score(task, responses: Sequence[str]) -> list[dict[str, str | bool]]:
    """Return what lm-eval's filters extract from each response, and whether it equals the document's answer."""
    for instance, response in zip(task.instances, responses, strict=True):
        instance.resps = [response]
    task.apply_filters()
    rows = []
    for instance in task.instances:
        row: dict[str, str | bool] = {}
        for name, short in FILTERS.items():
            answer = instance.filtered_resps[name]
            right = task.process_results(instance.doc, [answer])["exact_match"]
            row |= {f"{short}_answer": str(answer), f"{short}_match": bool(right)}
        rows.append(row)
    return rows


def _final(document: dict[str, str]) -> str:
    return document["answer"].rpartition("####")[2].strip()


def gsm8k_examples(answers: pl.DataFrame, dataset: str, split: str) -> pl.DataFrame:
    """Return each example's part of `exact_match_strict` and `exact_match_flexible`; columns EXAMPLE_SCHEMA."""
    ids, one = answers["example_id"], [1] * len(answers)
    return pl.concat(
        example_rows(dataset, split, f"exact_match_{short}", ids, answers[f"{short}_match"].cast(pl.Int32), one)
        for short in FILTERS.values()
    )


def _document(row: dict) -> dict[str, str]:
    """Return question and answer under the names of lm-eval's task."""
    texts = {role: next((m["content"] for m in row["messages"] if m["role"] == role), None) for role in ROLES}
    if None in texts.values():
        raise InputError(f"GSM8K example {row['example_id']}: needs a question and an answer; remove it from the data")
    if sum(m["role"] in ROLES for m in row["messages"]) > len(ROLES):
        raise InputError(
            f"GSM8K example {row['example_id']}: has several questions or answers, and lm-eval asks one; name a "
            "dataset of single questions in evaluation.gsm8k.dataset"
        )
    if "####" not in texts["assistant"]:
        raise InputError(
            f"GSM8K example {row['example_id']}: its answer must end in `#### number`, which responses are compared "
            "with; name a dataset of that form in evaluation.gsm8k.dataset"
        )
    return {"id": row["example_id"], "question": texts["user"], "answer": texts["assistant"]}


@cache
def _load_task():
    """Return lm-eval's task class and its configuration gsm8k.yaml."""
    try:
        from lm_eval.api.task import ConfigurableTask
    except ModuleNotFoundError as error:
        raise InputError(
            f"evaluation.gsm8k needs the package {error.name}, which is not installed: "
            "pip install 'tokenuq[quickstart]'"
        ) from error
    folder = Path(find_spec("lm_eval").submodule_search_locations[0])
    return ConfigurableTask, yaml.safe_load((folder / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8"))
