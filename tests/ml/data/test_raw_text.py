"""Raw text as tokens: no template, everything trained but the first token, long texts in pieces."""

import json

import pyarrow as pa
import pytest

from tests.support.reporter import RecordingReporter
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.raw_text import divide
from tokenuq_ml.data.tokenization import ConversationTokenizer, ConversationTokens
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import tokenize_dataset
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES


def text_example(text: str, id: str = "corpus/000001", split: str = "train") -> Example:
    return Example(id, split, [{"role": "text", "content": text}])


def tokens_of(count: int, **more) -> ConversationTokens:
    return ConversationTokens(list(range(count)), [False] + [True] * (count - 1), **more)


@pytest.mark.parametrize("max_length", [2, 3, 4, 7, 10, 11])
def test_every_token_of_a_long_text_is_trained_once(max_length):
    example, tokens = text_example("x"), tokens_of(10, weights=[0.5] * 10)
    pieces = list(divide(example, tokens, max_length))
    assert all(len(piece.input_ids) == len(piece.response_mask) <= max_length for _, piece in pieces)
    trained = [
        id
        for _, piece in pieces
        for id, is_trained in zip(piece.input_ids, piece.response_mask, strict=True)
        if is_trained
    ]
    assert trained == list(range(1, 10))
    assert all(piece.input_ids[0] + 1 == piece.input_ids[1] for _, piece in pieces), "its first token is predicted"
    assert all(len(piece.weights) == len(piece.input_ids) for _, piece in pieces)
    ids = [one.id for one, _ in pieces]
    assert ids[0] == example.id and ids == sorted(set(ids)) and all(id.startswith(example.id) for id in ids)


def test_conversations_are_never_divided():
    example = Example("a/1", "train", [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
    assert list(divide(example, tokens_of(10), 4)) == [(example, tokens_of(10))]


def test_text_is_encoded_as_it_is_with_the_end_of_the_sequence():
    tokenizer = tiny_tokenizer()
    (tokens,) = ConversationTokenizer(tokenizer).tokenize([text_example("Why not?")])
    plain = tokenizer("Why not?")["input_ids"]
    expected = plain if plain[-1] == tokenizer.eos_token_id else [*plain, tokenizer.eos_token_id]
    assert tokens.input_ids == expected and not tokens.faults
    assert tokens.response_mask == [False] + [True] * (len(expected) - 1)


def tokenize(tmp_path, examples: list[Example], max_length: int):
    model, table, out = (tmp_path / name for name in ("model", "examples", "out"))
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"vocab_size": len(tokenizer)}))
    table.mkdir(parents=True)
    rows = pa.Table.from_pylist([example.row for example in examples], schema=TABLES["examples"].schema)
    write_table(rows, "examples", table, spec_hash="s", code_version="1-s")
    outputs = {name: str(out / name) for name in ("tokenized_dataset", "rejected_examples")}
    for name in outputs:
        (out / name).mkdir(parents=True)
    fields = {"model": "m", "dataset": "corpus", "ood": [], "max_length": max_length}
    asset = AssetRequest(fields=fields, code_version="1-x", outputs=outputs)
    request = StageRequest(
        entrypoint="tokenize_dataset",
        study="s",
        assets={"tokenized_dataset": asset},
        inputs={"model": str(model), "examples/corpus": str(table)},
        work_dir=str(tmp_path / "work"),
    )
    recorder = RecordingReporter()
    tokenize_dataset.run(request, recorder)
    return read_table(outputs["tokenized_dataset"]), recorder.results[0].metrics


def test_the_stage_writes_long_texts_in_pieces(tmp_path):
    splits = ("train", "train", "validation", "test")
    texts = ["why not " * 30, "why", "not", "why not"]
    examples = [text_example(t, f"corpus/{i:06d}", s) for i, (t, s) in enumerate(zip(texts, splits, strict=True))]
    table, metrics = tokenize(tmp_path, examples, 16)
    full, _ = tokenize(tmp_path / "full", examples, 4096)
    assert metrics["divided_texts_corpus"] == 1 and metrics["truncated"] == metrics["dropped"] == 0
    pieces = table.filter(table["example_id"].str.starts_with("corpus/000000"))
    whole = full.filter(full["example_id"] == "corpus/000000")["input_ids"].to_list()[0]
    joined = [id for number, ids in enumerate(pieces["input_ids"].to_list()) for id in ids[number > 0 :]]
    assert joined == whole and len(pieces) > 3 and set(pieces["split"]) == {"train"}
    assert table["response_mask"].list.sum().sum() == full["response_mask"].list.sum().sum()


def test_a_split_without_rows_is_named(tmp_path):
    examples = [text_example("why", "corpus/000000"), text_example("not", "corpus/000001", "test")]
    with pytest.raises(InputError, match=r"corpus: has no rows of split 'validation', which the study needs; ask for"):
        tokenize(tmp_path, examples, 16)
