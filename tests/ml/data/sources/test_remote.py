"""Data at an address: downloaded once, read like local files, and explained if it cannot be had. No network."""

import gzip
import http.server
import json
import re
import sys
import threading
from functools import partial
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry

from tests.support.tiny_datasets import chat, messages_spec, write_lines
from tokenuq_ml.config.load import load_config
from tokenuq_ml.data.load import load_examples, why_unavailable
from tokenuq_ml.errors import InputError

CHECKOUT = Path(__file__).parents[4]


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """fsspec's file system in memory, as `s3://` would be."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/bucket", recursive=True) if filesystem.exists("/bucket") else None


def lines(*questions: str) -> bytes:
    return "".join(json.dumps(chat(question)) + "\n" for question in questions).encode()


def questions(spec) -> list[str]:
    return [example.question for example in load_examples(spec).examples]


def test_a_folder_at_an_address_is_read_like_a_local_one(memory, monkeypatch):
    memory.pipe_file("/bucket/rows/b.jsonl", lines("b1", "b2"))
    memory.pipe_file("/bucket/rows/deep/a.jsonl.gz", gzip.compress(lines("a1")))
    memory.pipe_file("/bucket/rows/notes.txt", b"x")
    spec = messages_spec("memory://bucket/rows", {"train": 3})
    assert why_unavailable(spec) is None
    loaded = load_examples(spec)
    assert [example.question for example in loaded.examples] == ["b1", "b2", "a1"]
    assert loaded.metrics["files_not_read"] == "notes.txt (is no kind of data file)"
    fetched = []
    fetch = type(memory).get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda self, path, *rest: fetched.append(path) or fetch(self, path, *rest)
    )
    assert questions(spec) == ["b1", "b2", "a1"] and fetched == []
    memory.pipe_file("/bucket/rows/b.jsonl", lines("b1", "b3"))
    assert questions(spec) == ["b1", "b3", "a1"] and len(fetched) == 3


def test_a_file_of_a_web_server_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "site"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [chat("one")])
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        spec = messages_spec(f"{address}/a.jsonl?download=true")
        assert why_unavailable(spec) is None and questions(spec) == ["one"]
        write_lines(folder / "a.jsonl", [chat("two")])
        assert questions(spec) == ["two"], "the server states no version"
        missing = messages_spec(f"{address}/b.jsonl")
        assert f"{address}/b.jsonl: no such file; correct `path:` of chats" in why_unavailable(missing)
        with pytest.raises(InputError, match=r"b\.jsonl: no such file"):
            load_examples(missing)
        server.shutdown()
    closed = messages_spec(f"{address}/a.jsonl")
    assert re.search(rf"{address}/a\.jsonl: cannot be read \(Client.*Cannot connect", why_unavailable(closed))
    with pytest.raises(InputError, match=r"cannot be read \(Client.*check the address and the access to it"):
        load_examples(closed)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://bucket/a.jsonl", r"s3://bucket/a\.jsonl: cannot be opened \(.*\); pip install s3fs"),
        ("gs://bucket/a.jsonl", r"gs://bucket/a\.jsonl: cannot be opened \(.*\); pip install gcsfs"),
        ("nonsense://a.jsonl", r"cannot be opened \(Protocol not known: nonsense.*\); download the files and name"),
        ("memory://bucket/none.jsonl", r"dataset chats: memory://bucket/none\.jsonl: no such file; correct `path:`"),
    ],
)
def test_an_address_that_cannot_be_read_is_explained(memory, monkeypatch, address, said):
    for scheme, package in {"s3": "s3fs", "gs": "gcsfs"}.items():
        monkeypatch.setitem(sys.modules, package, None)
        # A test before may have loaded it.
        monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(InputError, match=said) as caught:
        load_examples(messages_spec(address))
    assert why_unavailable(messages_spec(address)) == str(caught.value) and "\n" not in str(caught.value)


def test_addresses_stay_as_they_are_in_the_configuration(tmp_path):
    (tmp_path / "datasets.yaml").write_text("far: {format: messages, path: 's3://bucket/rows', sizes: {train: 1}}\n")
    assert load_config(CHECKOUT / "config", tmp_path).datasets["far"].path == "s3://bucket/rows"
