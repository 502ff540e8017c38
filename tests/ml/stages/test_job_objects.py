"""Files that grow on one machine and are copied to another one in parts."""

import json
import random

import pytest

from tokenuq_ml.stages import job_objects
from tokenuq_ml.stages.job_objects import ReceivedFile, SentFile, SentMessages, SentOutput


class Objects:
    """A bucket in memory, which can lose the answer to a write."""

    def __init__(self):
        self.content: dict[str, bytes] = {}
        self.loses_answers = False

    def write(self, key, content):
        self.content[key] = content
        if self.loses_answers:
            raise OSError("the answer was lost")

    def received_by(self, copy: ReceivedFile) -> None:
        for key, content in sorted(self.content.items()):
            copy.take(int(key.rpartition("/")[2]), len(content), lambda content=content: content)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(job_objects, "PART_BYTES", 100)
    monkeypatch.setattr(job_objects, "READ_BYTES", 64)


def result(stage: str) -> bytes:
    payload = {"kind": "result", "result": {"stage": stage}}
    message = {"__dagster_pipes_version": "0.1", "method": "report_custom_message", "params": {"payload": payload}}
    return json.dumps(message).encode()


def test_a_copy_is_the_file_whenever_it_is_looked_at_and_whatever_is_lost(tmp_path):
    random.seed(0)
    objects, file = Objects(), tmp_path / "file"
    sent, copy = SentFile(objects, "said/file", file), ReceivedFile(tmp_path / "copy")
    for _ in range(200):
        with file.open("ab") as stream:
            stream.write(random.randbytes(random.choice([0, 1, 7, 90, 300])))
        objects.loses_answers = random.random() < 0.3
        try:
            while sent.send():
                pass
        except OSError:
            pass
        if random.random() < 0.5:
            objects.received_by(copy)
            assert file.read_bytes().startswith((tmp_path / "copy").read_bytes())
    objects.loses_answers = False
    while sent.send():
        pass
    objects.received_by(copy)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    # Parts that are complete are not written again, and are not tiny.
    assert len(objects.content) <= file.stat().st_size / 100 + 1


def test_a_part_that_has_grown_since_it_was_listed_is_read_as_it_was_listed(tmp_path):
    copy = ReceivedFile(tmp_path / "copy")
    copy.take(0, 3, lambda: b"abcdef")
    assert (tmp_path / "copy").read_bytes() == b"abc"
    copy.take(0, 6, lambda: b"abcdef")
    copy.take(0, 6, lambda: pytest.fail("read again"))
    assert (tmp_path / "copy").read_bytes() == b"abcdef"


def test_messages_are_sent_in_complete_lines_and_results_after_their_outputs(tmp_path):
    objects, file, uploaded = Objects(), tmp_path / "messages", []

    def upload(stage):
        assert not any(stage.encode() in content for content in objects.content.values())
        uploaded.append(stage)

    sent = SentMessages(objects, "said/messages", file, upload)
    # The line before was cut on a full disk; the long line is longer than what is read at once.
    file.write_bytes(b'{"method": "lo' + result("first") + b"\n" + b"x" * 500 + b"\n" + result("second")[:-1])
    while sent.send():
        pass
    copy = ReceivedFile(tmp_path / "copy")
    objects.received_by(copy)
    complete = file.read_bytes()[: file.read_bytes().rfind(b"\n") + 1]
    assert (tmp_path / "copy").read_bytes() == complete and uploaded == ["first"] and sent.sent == len(complete)
    with file.open("ab") as stream:
        stream.write(b"}\nno message\n")
    while sent.send():
        pass
    assert uploaded == ["first", "second"]


def test_of_a_long_output_the_beginning_and_the_end_are_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(job_objects, "OUTPUT_BYTES", 200)
    monkeypatch.setattr(job_objects, "END_BYTES", 50)
    objects, file = Objects(), tmp_path / "stderr"
    sent = SentOutput(objects, "said/stderr", file)
    sent.send_end()
    assert not objects.content
    content = random.randbytes(10_000)
    file.write_bytes(content)
    for _ in range(20):
        sent.send()
    sent.send_end()
    copy = ReceivedFile(tmp_path / "copy")
    objects.received_by(copy)
    shown = (tmp_path / "copy").read_bytes()
    assert len(shown) < 400 and content.startswith(shown[:200]) and content.endswith(shown[-50:])
