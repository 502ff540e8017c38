"""Run the stage `tokenize_dataset` on conversations, with a tiny tokenizer and any chat template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from tests.support.reporter import RecordingReporter
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.data.examples import Example, Turn
from tokenuq_ml.data.tokenization import ConversationTokenizer, ConversationTokens
from tokenuq_ml.stages import tokenize_dataset
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES


class Tokenized(NamedTuple):
    """What the stage made and said."""

    table: pl.DataFrame
    rejected: pl.DataFrame
    result: AssetResult
    lines: list[str]


def turns(*texts: str, system: str | None = None) -> list[Turn]:
    """Return a conversation of the user and the assistant in turn."""
    roles = ("user", "assistant")
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": roles[n % 2], "content": text} for n, text in enumerate(texts))]


def examples_of(conversations: Sequence[list[Turn]], **fields: Any) -> list[Example]:
    """Return one example per conversation: most in train, one of each six in validation and in test."""
    splits = ("train", "train", "validation", "train", "test", "train")
    return [Example(f"d/{n:06d}", splits[n % 6], messages, **fields) for n, messages in enumerate(conversations)]


def tokenize(
    folder: Path, template: str, examples: Sequence[Example], model_config: dict | None = None, **keys: Any
) -> Tokenized:
    """Run the stage; `model_config` adds fields of the model's `config.json`, and `keys` are those of a study."""
    tiny_tokenizer(folder / "model", chat_template=template)
    (folder / "model" / "config.json").write_text(json.dumps({"vocab_size": 400, **(model_config or {})}))
    rows = pa.Table.from_pylist([example.row for example in examples], schema=TABLES["examples"].schema)
    write_table(rows, "examples", folder / "examples", spec_hash="x", code_version="1")
    outputs = {name: str(folder / name) for name in ("tokenized_dataset", "rejected_examples")}
    fields = {"model": "m", "dataset": "d", "ood": [], "max_length": 2048, **keys}
    request = StageRequest(
        entrypoint="tokenize_dataset",
        study="s",
        assets={"tokenized_dataset": AssetRequest(fields=fields, code_version="1-x", outputs=outputs)},
        inputs={"model": str(folder / "model"), "examples/d": str(folder / "examples")},
        work_dir=str(folder / "work"),
    )
    recorder = RecordingReporter()
    tokenize_dataset.run(request, recorder)
    (result,) = recorder.results
    return Tokenized(*(read_table(path) for path in outputs.values()), result, recorder.lines)


def tokens_of(
    chat_template: str, messages: list[Turn], *, special: Sequence[str] = (), **fields: Any
) -> tuple[PreTrainedTokenizerFast, ConversationTokens]:
    """Return a tiny tokenizer with the template and the special tokens, and the tokens of one example."""
    tokenizer = tiny_tokenizer(chat_template=chat_template)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    (tokens,) = ConversationTokenizer(tokenizer).tokenize([Example("d/0", "train", messages, **fields)])
    return tokenizer, tokens


def trained_texts(tokenizer: Any, ids: Sequence[int], mask: Sequence[bool]) -> list[str]:
    """Return the text of each run of response tokens."""
    runs: list[list[int]] = []
    before = False
    for token, trained in zip(ids, mask, strict=True):
        if trained and not before:
            runs.append([])
        if trained:
            runs[-1].append(token)
        before = trained
    return [tokenizer.decode(run) for run in runs]
