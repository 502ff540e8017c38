"""JSON record by record gives what `json.loads` gives, wherever chunks end, also of cut and broken files."""

import json
import random
import tracemalloc

import pytest

from tokenuq_ml.data.sources import json_window
from tokenuq_ml.data.sources.json_records import is_list, json_lines, json_list
from tokenuq_ml.data.sources.records import BrokenRow, TruncatedFile
from tokenuq_ml.errors import InputError

ROWS = [
    *({"instruction": f'Q{i} é😀\\"{{[', "output": 'a, b]}"\n\\', "n": [{"a": 1}, {"b": -1.5e3}]} for i in range(3)),
    {},
    7,
    "s, ]",
    None,
]
TEXTS = {
    "escaped": json.dumps(ROWS),
    "indented": json.dumps(ROWS, indent=1, ensure_ascii=False) + "\n",
    "tight": json.dumps(ROWS, separators=(",", ":"), ensure_ascii=False),
}


@pytest.fixture(params=[1, 3, 64, 2**20])
def chunk(request, monkeypatch):
    monkeypatch.setattr(json_window, "CHUNK", request.param)


def read(path):
    """Values read, and how the file ended: None where it is whole."""
    values = []
    try:
        for record in json_list(path) if is_list(path) else json_lines(path):
            assert record.index == len(values)
            values.append(record.value)
    except TruncatedFile as cut:
        return values, cut
    return values, None


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_list_is_read_as_json_loads_reads_it(tmp_path, chunk, text):
    path = tmp_path / "a.json"
    for before, after in ((b"", b""), (b"\xef\xbb\xbf", b""), (b"\n \t", b" \n")):
        path.write_bytes(before + text.encode() + after)
        assert is_list(path) and read(path) == (ROWS, None)


def test_an_empty_list_has_no_records(tmp_path):
    (tmp_path / "a.json").write_text(" [ ] ")
    assert read(tmp_path / "a.json") == ([], None)
    (tmp_path / "a.json").write_text(" \n")
    assert not is_list(tmp_path / "a.json") and read(tmp_path / "a.json") == ([], None)


def whole_within(text: str, cut: int) -> int:
    """How many values of the list in `text` are whole in its first `cut` bytes, by a plain parser."""
    head, whole, at = text.encode()[:cut].decode(errors="ignore"), 0, 1
    while True:
        at += len(head[at:]) - len(head[at:].lstrip(" \n,"))
        try:
            value, at = json.JSONDecoder().raw_decode(head, at)
        except ValueError:
            return whole
        # A bare number or word at the very end may go on.
        if value != ROWS[whole] or (not isinstance(value, dict | str) and at == len(head)):
            return whole
        whole += 1


@pytest.mark.parametrize("size", [5, 2**20])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_list_cut_at_any_byte_reports_its_complete_records(tmp_path, monkeypatch, size, text):
    monkeypatch.setattr(json_window, "CHUNK", size)
    path, content = tmp_path / "a.json", text.encode()
    for cut in range(1, len(content.rstrip())):
        path.write_bytes(content[:cut])
        values, end = read(path)
        assert end is not None and end.complete == len(values) == whole_within(text, cut), cut
        assert values == ROWS[: len(values)]


def test_a_cut_is_reported_where_its_record_begins(tmp_path):
    text = json.dumps([{"a": "é" * i} for i in range(9)], indent=0, ensure_ascii=False)
    (tmp_path / "a.json").write_text(text[: text.rindex("é")])
    *_, end = read(tmp_path / "a.json")
    byte = len(text[: text.rindex("{")].encode())
    assert str(end).startswith(f"ends in the middle of the record that begins at line 26 (byte {byte:,}); the 8 before")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_cut_at_any_byte_report_their_complete_records(tmp_path, newline):
    rows = [{"a": f"é {i}", "b": [i, -2.5e-3, True, None]} for i in range(3)]
    lines = [json.dumps(row, ensure_ascii=False) + newline for row in rows]
    ends = [len("".join(lines[: i + 1]).encode()) for i in range(3)]
    content, path = "".join(lines).encode(), tmp_path / "a.jsonl"
    for cut in range(1, len(content) + 1):
        path.write_bytes(content[:cut])
        values, end = read(path)
        # The last newline may be missing from a whole row.
        whole = sum(stop - len(newline) <= cut for stop in ends)
        assert values == rows[:whole]
        assert (end is None) == (cut in ends or any(0 < stop - cut <= len(newline) for stop in ends)), cut
        assert end is None or end.complete == whole


def damaged(old: str, new: str) -> str:
    text = json.dumps([{"q": f"Q{i}", "a": "x, y"} for i in range(6)], indent=1)
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ('"Q2"', '"Q2', 2),  # a quotation mark is missing: brackets no longer tell where the record ends
        ('"Q2",', '"Q2"', 2),
        ('"Q3"', 'Q3"', 3),
        ('"Q0"', "Q0", 0),
        ('"Q5"', "Q5", 5),
        ('"Q4"', '"Q\n4"', 4),
        ('"Q4"', '"Q\\4"', 4),
        ('"Q1"', "[" * 100_000, 1),
        ('"Q1"', "9" * 5000, 1),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_a_broken_record_is_skipped(tmp_path, old, new, lost, flat):
    text = damaged(old, new)
    (tmp_path / "a.json").write_text(text.replace("\n ", " ") if flat and "\n4" not in new else text)
    values, end = read(tmp_path / "a.json")
    assert end is None and len(values) == 6
    assert [i for i, value in enumerate(values) if isinstance(value, BrokenRow)] == [lost]
    assert values[lost].reason == "not JSON" and all(values[i]["q"] == f"Q{i}" for i in range(6) if i != lost)


def test_records_report_the_line_on_which_they_begin(tmp_path):
    (tmp_path / "a.json").write_text(damaged('"Q3"', "Q3"))
    assert [record.line for record in json_list(tmp_path / "a.json")] == [2, 6, 10, 14, 18, 22]


def test_a_missing_comma_costs_one_record(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2} {"a": 3}, {"a": 4}, ]')
    values, end = read(tmp_path / "a.json")
    assert end is None and [v if isinstance(v, dict) else str(v) for v in values] == [
        {"a": 1},
        {"a": 2},
        "not JSON (a comma is missing before it)",
        {"a": 4},
    ]


def test_text_after_the_list_is_an_error(tmp_path):
    """Two lists one after the other must not pass as the first."""
    (tmp_path / "a.json").write_text('[{"a": 1}]\n[{"a": 2}]')
    with pytest.raises(InputError, match=r"a\.json: line 2: text follows the end of the list"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["list", "lines"])
def test_random_damage_never_ends_in_a_traceback(tmp_path, kind):
    rows = [{"q": f"Q{i} é", "a": [{"b": 'x, "y"'}, i]} for i in range(4)]
    content = json.dumps(rows, indent=1).encode() if kind == "list" else "\n".join(map(json.dumps, rows)).encode()
    draw, path, broken = random.Random(kind), tmp_path / "a.json", 0
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(1, len(damaged))
            if draw.random() < 0.5:
                damaged[at] = draw.choice(b'{}[]",\\:\x00\xff\xe9 1a\n')
            else:
                del damaged[at : at + draw.randint(1, 9)]
        path.write_bytes(damaged)
        try:
            values, _ = read(path)
        except InputError:
            continue
        broken += any(isinstance(value, BrokenRow) for value in values)
    assert broken > 100


@pytest.mark.parametrize("kind", ["list", "lines"])
def test_a_huge_record_is_skipped(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(json_window, "MAX_RECORD", 1000)
    monkeypatch.setattr(json_window, "CHUNK", 100)
    rows = [json.dumps({"a": text}) for text in ("x", 'y, "]}' * 1000, "z")]
    (tmp_path / "a.json").write_text("[" + ",\n".join(rows) + "]" if kind == "list" else "\n".join(rows))
    values, end = read(tmp_path / "a.json")
    assert end is None and [values[0], values[2]] == [{"a": "x"}, {"a": "z"}]
    assert values[1].reason == "too large"


@pytest.mark.parametrize("kind", ["list", "lines"])
def test_memory_holds_a_chunk_but_not_the_file(tmp_path, kind):
    row = json.dumps({"q": "x" * 1000})
    with open(tmp_path / "a.json", "w") as file:
        file.write("[" + ",".join([row] * 20_000) + "]" if kind == "list" else f"{row}\n" * 20_000)
    tracemalloc.start()
    count = sum(1 for _ in (json_list if kind == "list" else json_lines)(tmp_path / "a.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 8 * 2**20
