"""Damaged JSON: one sentence, whatever is wrong."""

import os

import pytest

from tokenuq_ml import json_files
from tokenuq_ml.json_files import DamagedFile, read_json

DAMAGES = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\0"[:2], "is empty"),
    "zeros": (b"\0" * 64, "is not JSON"),
    "truncated": (b'{"files": [', "is not JSON: Expecting value"),
    "text": (b"hello", "is not JSON"),
    "two documents": (b"{} {}", "is not JSON: Extra data"),
    "not UTF-8": (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\)"),
    "UTF-16": ("{}".encode("utf-16"), "is not UTF-8"),
    "deep": (b"[" * 200_000, "is nested too deeply"),
    "deep objects": (b'{"a":' * 200_000, "is nested too deeply"),
    "NaN": (b'{"a": NaN}', "is not JSON: NaN is no number of JSON"),
    "infinite": (b'{"a": -Infinity}', "is not JSON: -Infinity is no number of JSON"),
    "key given twice": (b'{"a": 1, "b": 2, "a": 3}', "is not JSON: the key 'a' is given twice"),
    "half a surrogate pair": (b'{"a": "\\ud800"}', "holds half of a surrogate pair"),
    "long number": (b"1" * 10_000, "is not JSON"),
}


@pytest.mark.parametrize("content, says", DAMAGES.values(), ids=DAMAGES)
def test_a_sentence_names_the_file_what_is_wrong_and_the_remedy(tmp_path, content, says):
    path = tmp_path / "it.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=f"^{path}: {says}.*; do this$") as raised:
        read_json(path, "do this")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "fifo")
    for name, says in (("folder", "a folder"), ("link", "a symbolic link"), ("fifo", "a FIFO")):
        with pytest.raises(DamagedFile, match=f"{name}: is {says}, not a file$"):
            read_json(tmp_path / name)
    for missing in ("nothing", "fifo/below"):
        with pytest.raises(FileNotFoundError):
            read_json(tmp_path / missing)


def test_a_file_without_permission(tmp_path, monkeypatch):
    (tmp_path / "it").write_text("{}")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(json_files, "open_regular", refuse)
    with pytest.raises(DamagedFile, match=r"it: cannot be read \(Permission denied\)$"):
        read_json(tmp_path / "it")


def test_a_sparse_file_is_not_read(tmp_path):
    with open(tmp_path / "it", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedFile, match="too large"):
        read_json(tmp_path / "it")


def test_json_is_read(tmp_path):
    (tmp_path / "it").write_text('{"a": [1, 2.5, null, "ü"]}')
    assert read_json(tmp_path / "it") == {"a": [1, 2.5, None, "ü"]}
