"""The stages `load_dataset` and `tokenize_dataset`: their tables, metrics, and errors on bad input."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from tests.support.paths import ROOT
from tests.support.reporter import RecordingReporter
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data import tokenizer_files
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import load_dataset, tokenize_dataset
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES

GSM = {
    "name": "gsm",
    "format": "reasoning_gym",
    "task": "gsm_symbolic",
    "sizes": {"train": 20, "validation": 3, "test": 8},
}


def request(stage: str, fields: dict, folder: Path, inputs: dict | None = None) -> StageRequest:
    outputs = {
        "datasets": ("examples", "rejected_rows"),
        "tokenized_dataset": ("tokenized_dataset", "rejected_examples"),
    }[stage]
    for output in outputs:
        (folder / output).mkdir(parents=True)
    asset = AssetRequest(
        fields=fields, code_version="1-x", outputs={output: str(folder / output) for output in outputs}
    )
    return StageRequest(
        entrypoint=stage,
        study="toy",
        assets={stage: asset},
        work_dir=str(folder / "work"),
        inputs={name: str(path) for name, path in (inputs or {}).items()},
    )


def load(spec: dict, folder: Path):
    recorder = RecordingReporter()
    load_dataset.run(request("datasets", DatasetSpec(**spec).fields(), folder), recorder)
    (result,) = recorder.results
    return read_table(folder / "examples"), result


# load_dataset


def test_load_dataset_writes_the_table_and_reports_its_counts(tmp_path):
    table, result = load(GSM, tmp_path / "a")
    assert table.columns == list(TABLES["examples"].columns) and table["example_id"].is_sorted()
    assert dict(Counter(table["split"])) == GSM["sizes"]
    assert result.stage == "datasets"
    assert {key: result.metrics[f"rows_{key}"] for key in GSM["sizes"]} == GSM["sizes"]
    templates = {
        split: [json.loads(row["source"])["template"] for row in table.iter_rows(named=True) if row["split"] == split]
        for split in ("train", "test")
    }
    shared = set(templates["train"]) & set(templates["test"])
    assert shared and shared != set(templates["test"]), "the sample cannot tell shared from all or none"
    assert result.metrics["test_templates"] == len(set(templates["test"]))
    assert result.metrics["test_templates_shared_with_train"] == len(shared)
    assert result.metrics["test_examples_sharing_train_template"] == sum(t in shared for t in templates["test"])
    assert load(GSM, tmp_path / "b")[1] == result
    assert load({**GSM, "seed": 1}, tmp_path / "c")[1].data_version != result.data_version


def test_load_dataset_counts_duplicates_and_omits_unknown_templates(tmp_path):
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": "A"}] for q in ("x", "y", " X", "z")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in turns))
    spec = {"name": "chats", "format": "messages", "path": str(tmp_path / "a.jsonl"), "sizes": {"train": 2, "test": 1}}
    table, result = load(spec, tmp_path / "out")
    assert result.metrics == {
        "rows_train": 2,
        "rows_test": 1,
        "rows_read": 4,
        "rows_broken": 0,
        "duplicate_questions_dropped": 1,
        "duplicate_conversations": 0,
        "questions_in_two_splits": 0,
        "rows_left_out": 1,
        "left_out_repeated_question": 1,
        "columns_read": "messages (4)",
        "left_out": "a.jsonl: line 3: repeated question: the same question as a.jsonl: line 1",
    }
    assert table["messages"].to_list() == [turns[0], turns[1], turns[3]]


def test_load_dataset_writes_the_rows_that_it_left_out(tmp_path):
    rows = [{"instruction": f"Do {i}", "output": "" if i % 3 == 1 else "Done"} for i in range(9)]
    (tmp_path / "a.json").write_text(json.dumps(rows)[:-1])
    spec = {
        "name": "a",
        "format": "alpaca",
        "path": str(tmp_path / "a.json"),
        "sizes": {"train": 6},
        "max_broken_share": 0.5,
        "on_truncated": "keep",
    }
    table, result = load(spec, tmp_path / "out")
    assert len(table) == 6 and result.metrics["rows_broken"] == 3
    assert "9 before it are complete" in result.metrics["truncated"]
    left_out = read_table(tmp_path / "out" / "rejected_rows")
    assert left_out.columns == list(TABLES["rejected_rows"].columns)
    assert left_out.select("row", "line", "reason").rows() == [(row, 1, "empty text") for row in (2, 5, 8)]
    _, none = load({**GSM, "sizes": {"train": 2}}, tmp_path / "none")
    assert read_table(tmp_path / "none" / "rejected_rows").is_empty() and "left_out" not in none.metrics


def test_load_dataset_writes_nothing_on_bad_input(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    recorder = RecordingReporter()
    spec = DatasetSpec(name="c", format="messages", path=str(tmp_path / "a.jsonl"), sizes={"train": 1})
    with pytest.raises(InputError, match=r"a\.jsonl: line 1"):
        load_dataset.run(request("datasets", spec.fields(), tmp_path / "out"), recorder)
    assert not recorder.results and not list((tmp_path / "out" / "examples").iterdir())


# tokenize_dataset


def examples_table(folder: Path, dataset: str, rows: list[tuple[str, str, str | None]]) -> Path:
    """Rows of split, question and answer; an answer of None is a prompt alone."""
    write_table(
        pl.DataFrame(
            [
                {
                    "example_id": f"{dataset}/{number:06d}",
                    "split": split,
                    "source": "{}",
                    "messages": [{"role": "user", "content": question}]
                    + ([] if answer is None else [{"role": "assistant", "content": answer}]),
                }
                for number, (split, question, answer) in enumerate(rows)
            ]
        ),
        "examples",
        folder,
        spec_hash="x",
        code_version="1",
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_model(folder)
    return folder


def write_model(folder: Path, vocabulary: int = 400, **tokenizer) -> None:
    """As much of a model as its tokens depend on."""
    tiny_tokenizer(folder, **tokenizer)
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocabulary}))


MAIN = [
    ("train", "How many apples?", "12 apples."),
    ("validation", "How many days?", "6 days."),
    ("train", "The price?", "3 dollars and the rest of the apples."),
    ("test", "What of the farmer?", "She sells."),
]


def tokenize(tmp_path, tokenizer_dir, main=MAIN, other=(("validation", "Why?", "So."),), max_length=256, **keys):
    inputs = {
        "model": tokenizer_dir,
        "examples/main": examples_table(tmp_path / "main", "main", list(main)),
        "examples/other": examples_table(tmp_path / "other", "other", list(other)),
    }
    fields = {"model": "tiny", "dataset": "main", "ood": ["other"], "max_length": max_length, **keys}
    recorder = RecordingReporter()
    tokenize_dataset.run(request("tokenized_dataset", fields, tmp_path / "out", inputs), recorder)
    (result,) = recorder.results
    return read_table(tmp_path / "out" / "tokenized_dataset"), result


def test_tokenize_dataset_writes_every_example_in_tokens(tmp_path, tokenizer_dir):
    table, result = tokenize(tmp_path, tokenizer_dir)
    assert table.columns == list(TABLES["tokenized_dataset"].columns)
    assert table.select("example_id", "dataset", "split").rows() == [
        *((f"main/{n:06d}", "main", split) for n, (split, _, _) in enumerate(MAIN)),
        ("other/000000", "other", "ood"),
    ]
    tokenizer = tiny_tokenizer()
    for row, (_, question, answer) in zip(table.iter_rows(named=True), MAIN, strict=False):
        expected = tokenize_example(
            tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], 256
        )
        assert (row["input_ids"], row["response_mask"]) == expected[:2]
    lengths, responses = table["input_ids"].list.len(), [sum(mask) for mask in table["response_mask"].to_list()]
    metrics = result.metrics
    assert [metrics[f"examples_{s}"] for s in ("train", "validation", "test", "ood")] == [2, 1, 1, 1]
    assert metrics["response_tokens_train"] == responses[0] + responses[2]
    assert metrics["response_tokens_ood"] == responses[4]
    assert (metrics["longest"], metrics["mean_length"]) == (lengths.max(), lengths.mean())
    assert metrics["response_share"] == sum(responses) / lengths.sum()
    assert (metrics["truncated"], metrics["dropped"]) == (0, 0)
    assert result.data_version == tokenize(tmp_path / "again", tokenizer_dir)[1].data_version


def test_tokenize_dataset_cuts_long_examples_and_drops_those_without_response(tmp_path, tokenizer_dir):
    whole, _ = tokenize(tmp_path / "whole", tokenizer_dir)
    limit = whole["input_ids"].list.len().to_list()[2] - 1
    long_question = ("train", "apples " * limit, "12")
    table, result = tokenize(
        tmp_path,
        tokenizer_dir,
        [*MAIN, long_question, ("train", "No answer", None)],
        max_length=limit,
        max_truncated_share=0.5,
    )
    assert "main/000004" not in table["example_id"] and "main/000005" not in table["example_id"]
    assert (result.metrics["truncated"], result.metrics["dropped"]) == (2, 2)
    assert result.metrics["longest"] == limit
    assert (
        table.filter(pl.col("example_id") == "main/000002")["input_ids"][0].to_list()
        == (whole["input_ids"][2].to_list()[:limit])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 4}, r"dataset main: split 'train' has no response token within 4 tokens; raise `max_length`"),
        ({"main": [*MAIN[:3], ("test", "apples " * 200, "12")]}, r"dataset main: split 'test' has no response token"),
        ({"other": [("ood", "apples " * 200, "12")]}, r"dataset other: no response token within 128 tokens; raise"),
        ({"other": [("ood", "Why?", None)]}, r"dataset other: .*name a dataset with answers"),
        ({"main": [*MAIN, ("train", "x", None)], "other": [("ood", "x", None)]}, r"dataset other"),
    ],
)
def test_tokenize_dataset_names_a_split_without_response_tokens(tmp_path, tokenizer_dir, change, message):
    with pytest.raises(InputError, match=message):
        tokenize(tmp_path, tokenizer_dir, **{"max_length": 128, **change})
    assert not list((tmp_path / "out" / "tokenized_dataset").iterdir())


def test_tokenize_dataset_errors_name_the_model(tmp_path):
    write_model(tmp_path / "tokenizer", chat_template=None)
    with pytest.raises(InputError, match=r"model tiny: the model has no chat template"):
        tokenize(tmp_path, tmp_path / "tokenizer")


def test_tokenize_dataset_refuses_a_token_that_the_model_has_no_embedding_for(tmp_path):
    """As gemma-3-1b's tokenizer has one for images; most models have more embeddings than tokens instead."""
    write_model(tmp_path / "enough")
    table, _ = tokenize(tmp_path / "a", tmp_path / "enough")
    highest = int(table["input_ids"].list.max().max())
    write_model(tmp_path / "exact", vocabulary=highest + 1)
    assert tokenize(tmp_path / "b", tmp_path / "exact")[0].equals(table)
    write_model(tmp_path / "short", vocabulary=highest)
    with pytest.raises(InputError, match=rf"model tiny, example main/\d+: the token '.*' has the id {highest}, and"):
        tokenize(tmp_path / "c", tmp_path / "short")


def test_the_tokenizer_loaded_without_torch_is_that_of_models(tokenizer_dir):
    from tokenuq_ml.models.load import load_tokenizer

    ours, theirs = tokenizer_files.load_tokenizer(tokenizer_dir), load_tokenizer(tokenizer_dir)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert (ours.chat_template, ours.all_special_ids) == (theirs.chat_template, theirs.all_special_ids)


@pytest.mark.slow
def test_data_stages_run_without_torch(tmp_path, tokenizer_dir):
    """Loading torch is most of a child's start, and these two compute nothing with it."""
    program = """
import importlib
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
t = importlib.import_module(sys.argv[4])
t.tokenize(Path(sys.argv[1]), Path(sys.argv[2]))
t.load(t.GSM, Path(sys.argv[1]) / "loaded")
assert "torch" not in sys.modules, "torch was imported"
"""
    arguments = [str(tmp_path), str(tokenizer_dir), str(ROOT), __name__]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
