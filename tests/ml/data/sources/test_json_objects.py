"""Rows under a key of one JSON object, and objects that are no rows."""

import json
import tracemalloc

import pytest

from tests.support.tiny_datasets import GOOD, chat, messages_spec
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.sources import json_window
from tokenuq_ml.data.sources.json_objects import single_object
from tokenuq_ml.data.sources.json_records import json_list
from tokenuq_ml.data.sources.records import TruncatedFile
from tokenuq_ml.errors import InputError

ROWS = [{"instruction": f"Do {i} \u2028 {{[", "output": 'Done, "x" ]}'} for i in range(30)]
META = {"version": "1.0", "about": {"data": [{"no": "rows"}], "x": "]}"}, "numbers": [1, [2]], "none": None}


def alpaca(path, **more) -> DatasetSpec:
    return DatasetSpec(**{"name": "a", "format": "alpaca", "path": str(path), "sizes": {"train": 30}, **more})


@pytest.fixture(params=[1, 7, 2**20])
def chunk(request, monkeypatch):
    monkeypatch.setattr(json_window, "CHUNK", request.param)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_rows_under_a_key_are_those_of_json_loads(tmp_path, chunk, indent, place):
    before, after = {"first": ({}, META), "middle": (META, {"more": [{"a": 1}]}), "last": (META, {})}[place]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**before, "data": ROWS, **after}, indent=indent))
    records = list(json_list(path, "data"))
    assert [record.value for record in records] == ROWS == json.loads(path.read_text())["data"]
    lines = path.read_text().splitlines()
    assert all("{" in lines[record.line - 1] for record in records)


def test_a_broken_row_under_a_key_costs_one_row(tmp_path):
    text = json.dumps({"data": ROWS, "end": 1}, indent=1).replace('"Do 7', '"Do 7"')
    (tmp_path / "a.json").write_text(text)
    loaded = load_examples(alpaca(tmp_path / "a.json", field="data", max_broken_share=0.1, sizes={"train": 29}))
    assert loaded.metrics["rows_broken"] == 1 and loaded.metrics["rows_read"] == 30


def test_an_object_cut_at_any_byte_is_reported_as_truncated(tmp_path):
    content = json.dumps({"version": [1, {"x": 2}], "data": ROWS[:3], "end": {"a": 1}}).encode()
    starts = [content.index(b'{"instruction": "Do %d' % i) for i in range(3)]
    ends = [len(content[:start]) + len(json.dumps(ROWS[i])) for i, start in enumerate(starts)]
    for cut in range(1, len(content)):
        (tmp_path / "a.json").write_bytes(content[:cut])
        values = []
        with pytest.raises(TruncatedFile) as caught:
            for record in json_list(tmp_path / "a.json", "data"):
                values.append(record.value)
        assert caught.value.complete == len(values) == sum(end <= cut for end in ends), cut


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(ROWS), r"`field: data` names a key of one JSON object, which the file is not; remove it"),
        ('{"rows": [{}], "n": 1}', r"has no key 'data', which `field:` names; its keys are rows, n"),
        ('{"data": {"a": [1]}}', r"the key 'data', which `field:` names, does not hold a list of rows"),
        ('{"data": [{}]}\n{"data": [{}]}', r"line 2: text follows the end of the object; `field:` needs a single one"),
    ],
)
def test_a_field_that_does_not_hold_the_rows_is_named(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=said):
        list(json_list(tmp_path / "a.json", "data"))


def test_field_needs_json(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\na,b\n")
    with pytest.raises(InputError, match=r"a\.csv: `field: data` names a key of a JSON object, which the file is not"):
        load_examples(alpaca(tmp_path / "a.csv", field="data"))
    with pytest.raises(ValueError, match="'field' names a key of a JSON file"):
        DatasetSpec(name="a", format="alpaca", id="o/d", sizes={"train": 1}, field="data")
    assert "field" not in alpaca("a.json").fields() and alpaca("a.json", field="data").fields()["field"] == "data"


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            {**META, "data": ROWS},
            r"\(keys: version, about, numbers, none, data\).*if its key 'data' holds the rows, set "
            r"`field: data` of a in datasets\.yaml",
        ),
        (
            {"instruction": ["a", "b"], "output": ["c", "d"]},
            r"and no list of rows; write one object per line, or one li",
        ),
        ({"data": {"rows": ROWS}}, r"\(keys: data\), and no list of rows; write one object per line"),
        ({"train": ROWS, "test": ROWS}, r"holds the rows as `field:` of a in datasets.yaml: train, test"),
    ],
)
def test_one_object_that_holds_lists_of_objects_names_field(tmp_path, indent, value, said):
    (tmp_path / "a.json").write_text(json.dumps(value, indent=indent))
    with pytest.raises(InputError, match=said):
        load_examples(alpaca(tmp_path / "a.json"))


def test_objects_over_several_lines_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"instruction": {"0": "a"}, "output": {"0": "b"}}, indent=1))
    with pytest.raises(
        InputError, match=r"is one JSON object \(keys: instruction, output\), and no list of rows; write"
    ):
        load_examples(alpaca(path))
    path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
    with pytest.raises(InputError, match=r"a\.json: line 5: holds several JSON objects that extend over lines"):
        load_examples(alpaca(path))
    path.write_text(json.dumps({**META, "data": ROWS}, indent=1)[:-400])
    with pytest.raises(InputError, match=r"a\.json: ends in the middle of the record that begins at line 1"):
        load_examples(alpaca(path))


def test_a_single_row_is_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD))
    assert load_examples(messages_spec(tmp_path / "a.jsonl")).examples[0].messages == GOOD["messages"]
    row = {**chat("Q"), "sources": [{"a": 1}], "more": [{"a": 1}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert load_examples(messages_spec(tmp_path / "a.jsonl")).examples[0].messages == row["messages"]


@pytest.mark.parametrize("text", ['{"a": 1\n{"a": 2}\n', "", "\n", '{"a": 1', "[1]", '{"a": "x\n', '{"a"} {\n{"a": 1}'])
def test_other_files_are_no_single_object(tmp_path, text):
    (tmp_path / "a").write_text(text)
    assert single_object(tmp_path / "a") is None


def test_memory_holds_a_chunk_but_not_the_object(tmp_path):
    row = json.dumps({"q": "x" * 1000})
    with open(tmp_path / "a.json", "w") as file:
        file.write('{"skipped": [' + ",".join([row] * 10_000) + '], "data": [' + ",".join([row] * 10_000) + "]}")
    tracemalloc.start()
    count = sum(1 for _ in json_list(tmp_path / "a.json", "data"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000 and peak < 8 * 2**20
