"""Output and messages of a child: passed on in order, and bounded whatever the child writes."""

import json
import os
import time

import pytest

from tokenuq_pipeline.runtime import child_output, message_file
from tokenuq_pipeline.runtime.child_output import Allowance, ChildOutput, shown_tail
from tokenuq_pipeline.runtime.message_file import MessageFile


@pytest.fixture
def target(tmp_path, monkeypatch):
    """The file that output is copied to."""
    file = open(tmp_path / "captured", "wb")
    monkeypatch.setattr(child_output, "_descriptor", lambda stream, default: file.fileno())
    yield tmp_path / "captured"
    file.close()


def test_output_is_copied_and_its_end_is_kept(tmp_path, target):
    with ChildOutput(tmp_path) as output:
        output.stdout.write(b"bar 1\rbar 2\n")
        output.stdout.flush()
        output.stderr.write("Traceback: \N{SNOWMAN}\n".encode())
        output.stderr.flush()
        output.finish()
        assert output.tail() == "Traceback: \N{SNOWMAN}"
    assert sorted(target.read_text().replace("\r", "\n").splitlines()) == ["Traceback: \N{SNOWMAN}", "bar 1", "bar 2"]


def test_gigabytes_fill_neither_the_captured_log_nor_the_staging_folder(tmp_path, target, monkeypatch):
    monkeypatch.setattr(child_output, "BURST_BYTES", 2**20)
    monkeypatch.setattr(child_output, "FILE_BYTES", 2**21)
    largest = 0
    with ChildOutput(tmp_path) as output:
        for number in range(12):
            output.stderr.write(b"%02d" % number * 2**19)
            output.stderr.flush()
            time.sleep(0.06)
            largest = max(largest, (tmp_path / "stderr").stat().st_size)
        output.stderr.write(b"\nthe last line\n")
        output.stderr.flush()
        output.finish()
        assert output.tail().splitlines()[-1] == "the last line"
    assert largest < 2**24
    captured = target.read_bytes()
    assert len(captured) < 2**20 + 2**17 and captured.endswith(b"the last line\n")
    assert captured.count(b"[tokenuq: more than 1 MiB of output; only its end follows]") == 1
    assert captured.count(b"bytes of output were left out here]") == 1


def test_a_log_of_gigabytes_is_not_read_for_its_end(tmp_path, target):
    with ChildOutput(tmp_path) as output:
        os.truncate(tmp_path / "stderr", 2**36)
        output.stderr.write(b"\nthe last line\n")
        output.stderr.flush()
        output.finish()
        assert output.tail().splitlines()[-1] == "the last line"
    assert target.stat().st_size < 2**23


def test_the_tail_has_few_lines_of_bounded_length():
    tail = shown_tail(b"x\n" * 1000 + b"y" * 60_000)
    assert len(tail.splitlines()) == 30 and len(tail) < 2200 and tail.endswith("y ...")


def test_an_allowance_grows_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(child_output.time, "monotonic", lambda: now[0])
    allowance = Allowance(10, 2)
    assert [allowance.take(8), allowance.take(8), allowance.take(8)] == [8, 2, 0]
    now[0] = 3
    assert allowance.take(100) == 6
    now[0] = 1000
    assert allowance.take(100) == 10


class Handler:
    """What Dagster does with messages."""

    def __init__(self):
        self.seen = []

    def handle_message(self, message):
        self.seen.append(message)


def line(method="log", **params):
    return json.dumps({"__dagster_pipes_version": "0.1", "method": method, "params": params}) + "\n"


@pytest.fixture
def messages(tmp_path):
    reader, handler = MessageFile(tmp_path / "messages.jsonl"), Handler()
    with reader.read_messages(handler):
        yield reader, handler, lambda text: open(tmp_path / "messages.jsonl", "a").write(text)


def test_a_message_of_megabytes_arrives_whole(messages):
    reader, handler, write = messages
    text = line("report_custom_message", payload={"kind": "result", "text": "x" * 6_000_000})
    write(text[:1_000_000])
    assert list(reader.pump()) == []
    write(text[1_000_000:])
    (payload,) = reader.pump()
    assert len(payload["text"]) == 6_000_000 and len(handler.seen) == 1


def test_a_log_message_of_megabytes_is_cut(messages):
    reader, handler, write = messages
    write(line(message="x" * 6_000_000, level="INFO"))
    reader.drain()
    text = handler.seen[0]["params"]["message"]
    assert len(text) < 70_000 and text.endswith("x ... (6,000,000 characters)")


def test_log_messages_are_counted_and_results_are_not(messages, monkeypatch):
    reader, handler, write = messages
    monkeypatch.setattr(reader, "_logs", Allowance(3, 0))
    for number in range(5):
        write(line(message=str(number), level="INFO"))
        write(line("report_custom_message", payload={"number": number}))
    assert [payload["number"] for payload in reader.pump()] == [0, 1, 2, 3, 4]
    said = [one["params"]["message"] for one in handler.seen if one["method"] == "log"]
    assert said[:3] == ["0", "1", "2"] and len(said) == 4
    assert said[3].endswith("further ones are left out") and "more than 2,000 log messages" in said[3]


def test_the_file_is_replaced_before_it_is_large(messages, monkeypatch, tmp_path):
    reader, handler, write = messages
    monkeypatch.setattr(message_file, "FILE_BYTES", 100_000)
    monkeypatch.setattr(message_file, "RETIRED_S", 0.0)
    for number in range(20):
        write(line("report_custom_message", payload={"number": number, "text": "x" * 30_000}))
        reader.drain()
    assert [one["params"]["payload"]["number"] for one in handler.seen] == list(range(20))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 300_000


def test_a_message_written_to_the_file_that_was_replaced_arrives(messages, monkeypatch, tmp_path):
    reader, handler, write = messages
    monkeypatch.setattr(message_file, "FILE_BYTES", 1000)
    with open(tmp_path / "messages.jsonl", "a") as opened_before:
        write(line("report_custom_message", payload={"text": "x" * 2000}))
        reader.drain()
        opened_before.write(line("report_custom_message", payload={"text": "late"}))
    assert [payload["text"] for payload in reader.pump()] == ["late"]


def test_a_caller_that_stops_finds_the_rest_later(messages):
    reader, handler, write = messages
    for number in range(3):
        write(line("report_custom_message", payload=number))
    pump = reader.pump()
    assert next(pump) == 0
    pump.close()
    assert list(reader.pump()) == [1, 2]


@pytest.mark.parametrize(
    "odd", ["", "no JSON", "3", "[]", '{"method": 1', '{"a": 1}', '{"method": "log", "params": 1}']
)
def test_lines_that_are_no_message_are_skipped(messages, odd):
    reader, handler, write = messages
    write(odd + "\n" + line(message="after", level="INFO"))
    reader.drain()
    assert [one["params"]["message"] for one in handler.seen] == ["after"]


def test_a_message_after_a_cut_one_is_found(messages):
    """On a full disk half a message is written, and the next one follows in the same line."""
    reader, handler, write = messages
    write(line(message="cut", level="INFO")[:50] + line(message="after", level="INFO"))
    reader.drain()
    assert [one["params"]["message"] for one in handler.seen] == ["after"]
