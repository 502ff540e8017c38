"""Files that users have: each row once, or a sentence that names the file and the remedy.

Each test rebuilds the input of one public report, and compares with what another reader gives.
"""

import csv
import gzip
import io
import json
import random

import polars as pl
import pyarrow as pa
import pytest

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import LoadedExamples, first_conversations, load_examples, why_unavailable
from tokenuq_ml.errors import InputError


def spec(path, **keys) -> DatasetSpec:
    return DatasetSpec(**{"name": "d", "format": "prompt_completion", "path": str(path), "sizes": "all", **keys})


def pairs(loaded: LoadedExamples) -> list[tuple[str, str]]:
    return [tuple(turn["content"] for turn in example.messages) for example in loaded.examples]


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"Q{i}", "completion": f'A{i}, "é"\n{i}'} for i in range(start, start + count)]


def values(rows) -> list[tuple[str, str]]:
    return [(row["prompt"], row["completion"]) for row in rows]


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def csv_text(rows, delimiter=",", newline="\r\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator=newline)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def zstd(text: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(text.encode())
    return sink.getvalue().to_pybytes()


def test_a_saved_dataset_is_read_without_the_caches_of_map(tmp_path):
    """save_to_disk_folder: variants of test rows were in train."""
    import datasets

    folder = tmp_path / "saved"
    datasets.Dataset.from_list([{"prompt": f"Q{i}", "completion": f"A{i}"} for i in range(600)]).save_to_disk(folder)
    datasets.load_from_disk(folder).map(lambda row: {"prompt": "Please: " + row["prompt"]})
    assert list(folder.glob("cache-*.arrow"))
    loaded = load_examples(spec(folder, sizes={"train": 400, "validation": 100, "test": 100}))
    assert sorted(pairs(loaded)) == sorted(values(datasets.load_from_disk(folder)))
    assert loaded.metrics["rows_read"] == 600 and loaded.metrics["rows_broken"] == 0
    assert "map()" in loaded.metrics["files_not_read"] and "state.json" not in loaded.metrics["files_not_read"]


def test_every_part_of_a_folder_is_read(tmp_path):
    """folder_with_gz_part: 10 of 30 rows were read, and nothing was said."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "part0.jsonl").write_text(jsonl(rows(10)))
    (tmp_path / "part1.jsonl.gz").write_bytes(gzip.compress(jsonl(rows(10, 10)).encode()))
    (tmp_path / "part2.tsv").write_text(csv_text(rows(10, 20), "\t"))
    (tmp_path / "sub" / "part3.jsonl").write_text(jsonl(rows(10, 30)))
    (tmp_path / "part4.txt").write_text("Q\tA\n")
    loaded = load_examples(spec(tmp_path))
    assert pairs(loaded) == values(rows(40))
    assert loaded.metrics["files_not_read"] == "part4.txt (is no kind of data file)"
    files = ["part0.jsonl", "part1.jsonl.gz", "part2.tsv", "sub/part3.jsonl"]
    assert [example.source["file"] for example in loaded.examples] == [file for file in files for _ in range(10)]


FILES = {
    "gzip": ("a.jsonl.gz", gzip.compress(jsonl(rows(9)).encode())),
    "gzip without the ending": ("a.jsonl", gzip.compress(jsonl(rows(9)).encode())),
    "gzip of a list": ("a.json.gz", gzip.compress(json.dumps(rows(9)).encode())),
    "gzip of CSV": ("a.csv.gz", gzip.compress(csv_text(rows(9)).encode())),
    "zstandard": ("a.jsonl.zst", zstd(jsonl(rows(9)))),
    "UTF-16 CSV": ("a.csv", csv_text(rows(9)).encode("utf-16")),
    "UTF-16 JSON lines": ("a.jsonl", jsonl(rows(9)).encode("utf-16")),
    "UTF-16 list, big-endian": ("a.json", ("\ufeff" + json.dumps(rows(9))).encode("utf-16-be")),
    "UTF-8 with a mark": ("a.jsonl", jsonl(rows(9)).encode("utf-8-sig")),
    "CSV with a mark": ("a.csv", csv_text(rows(9)).encode("utf-8-sig")),
    "line ends of Windows": ("a.jsonl", jsonl(rows(9)).replace("\n", "\r\n").encode()),
    "TSV": ("a.tsv", csv_text(rows(9), "\t", "\n").encode()),
}


@pytest.mark.parametrize("kind", FILES)
def test_compressed_and_encoded_files_are_read(tmp_path, kind):
    name, content = FILES[kind]
    (tmp_path / name).write_bytes(content)
    loaded = load_examples(spec(tmp_path / name))
    assert pairs(loaded) == values(rows(9)) and loaded.metrics["rows_read"] == 9
    assert why_unavailable(spec(tmp_path / name)) is None
    few = first_conversations(spec(tmp_path / name, sizes={"train": 9}), "train", 2)
    assert [turns[0]["content"] for turns in few] == ["Q0", "Q1"]


def test_an_arrow_stream_and_a_saved_file_are_read(tmp_path):
    import datasets

    table = pa.Table.from_pylist(rows(9))
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert pairs(load_examples(spec(tmp_path / "a.arrow"))) == values(
        datasets.Dataset.from_file(str(tmp_path / "a.arrow"))
    )


TURNS = [
    [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": f"A{i}"}] * (1 + i % 2) for i in range(6)
]


@pytest.mark.parametrize("kind", ["struct of lists", "list of structs", "JSON text", "JSON text in CSV", "JSON column"])
@pytest.mark.parametrize("way", ["file", "saved"])
def test_turns_are_read_however_a_table_holds_them(tmp_path, kind, way):
    import datasets

    as_lists = [{key: [turn[key] for turn in turns] for key in ("role", "content")} for turns in TURNS]
    messages = {"struct of lists": as_lists, "list of structs": TURNS}.get(kind, [json.dumps(turns) for turns in TURNS])
    features = datasets.Features({"messages": datasets.Json()}) if kind == "JSON column" else None
    data = datasets.Dataset.from_dict({"messages": messages}, features=features)
    path = tmp_path / ("saved" if way == "saved" else "a.csv" if "CSV" in kind else "a.parquet")
    if way == "saved":
        data.save_to_disk(path)
    elif "CSV" in kind:
        pl.DataFrame({"messages": messages}).write_csv(path)
    else:
        data.to_parquet(path)
    loaded = load_examples(spec(path, format="messages"))
    assert [example.messages for example in loaded.examples] == TURNS


@pytest.mark.parametrize("kind", ["struct of lists", "list of structs", "JSON text in CSV"])
def test_prompts_of_turns_are_read_however_a_table_holds_them(tmp_path, kind):
    given = [{"prompt": turns[:-1], "completion": turns[-1:]} for turns in TURNS]
    as_lists = [
        {name: {key: [turn[key] for turn in turns] for key in ("role", "content")} for name, turns in row.items()}
        for row in given
    ]
    if kind == "JSON text in CSV":
        path = tmp_path / "a.csv"
        pl.DataFrame([{name: json.dumps(turns) for name, turns in row.items()} for row in given]).write_csv(path)
    else:
        path = tmp_path / "a.parquet"
        pl.DataFrame(given if kind == "list of structs" else as_lists).write_parquet(path)
    loaded = load_examples(spec(path))
    assert [example.messages for example in loaded.examples] == TURNS
    weights = [None if len(turns) == 2 else [0.0] * (len(turns) - 1) + [1.0] for turns in TURNS]
    assert [example.turn_weights for example in loaded.examples] == weights


@pytest.mark.parametrize("text", ['[{"name": "price"}]', "[{not JSON", "[1, 2]", '[{"role": "user"}]'])
def test_text_that_looks_like_json_stays_text(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(jsonl([{"prompt": text, "completion": text}]))
    assert pairs(load_examples(spec(tmp_path / "a.jsonl"))) == [(text, text)]


def test_rows_under_a_key_are_read_if_field_names_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.1", "data": rows(9)}))
    with pytest.raises(InputError, match=r"a\.json: is one JSON object .*set `field: data` of d in datasets\.yaml"):
        load_examples(spec(path))
    assert pairs(load_examples(spec(path, field="data"))) == values(json.loads(path.read_text())["data"])
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps({"data": rows(5, 9)}, indent=1).encode()))
    assert pairs(load_examples(spec(tmp_path, field="data"))) == values(rows(14))


def test_a_quotation_that_is_not_closed_fails_with_its_line(tmp_path):
    given = [{"prompt": f"Q{i}", "completion": f"A{i}"} for i in range(500)]
    text = (
        csv_text(given, newline="\n").replace("Q40,A40", 'Q40,"A40').replace("Q300,A300", 'Q300,"A300, with a comma"')
    )
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(
        InputError, match=r"a\.csv: line 42: the quotation that opens at '\"A40' is not closed before line 302"
    ):
        load_examples(spec(tmp_path / "a.csv", on_truncated="keep"))
    (tmp_path / "a.csv").write_text(text.replace('Q40,"A40', "Q40,A40"))
    assert len(load_examples(spec(tmp_path / "a.csv")).examples) == 500


def test_a_file_in_an_encoding_without_a_mark_says_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_bytes("prompt,completion\nWho?,René\n".encode("cp1252"))
    with pytest.raises(
        InputError, match=r"line 2 \(row 1\): 'completion': is not valid Unicode .*save the file as UTF-8"
    ):
        load_examples(spec(tmp_path / "a.csv"))


def test_a_list_as_pandas_writes_it_into_csv_is_refused(tmp_path):
    pl.DataFrame({"messages": [str(turns) for turns in TURNS]}).write_csv(tmp_path / "a.csv")
    with pytest.raises(
        InputError, match=r"a\.csv: 6 of 6 rows are broken .*line 2 \(row 1\): 'messages' is text that is not JSON"
    ):
        load_examples(spec(tmp_path / "a.csv", format="messages"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.json", "a.tsv"])
def test_random_damage_of_packed_and_encoded_files_never_ends_in_a_traceback(tmp_path, name):
    text = csv_text(rows(9), "\t") if "tsv" in name else csv_text(rows(9)) if "csv" in name else jsonl(rows(9))
    content = {"gz": gzip.compress, "zst": lambda raw: zstd(raw.decode())}.get(name.split(".")[-1], lambda raw: raw)(
        text.encode() if name.endswith(("gz", "zst")) else text.encode("utf-16")
    )
    draw, noticed = random.Random(name), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            noticed += load_examples(spec(tmp_path / name, max_broken_share=1.0)).metrics["rows_broken"]
        except InputError as error:
            assert "\n" not in str(error)
            noticed += 1
    assert noticed > 0
