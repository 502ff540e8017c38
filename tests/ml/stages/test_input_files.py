"""A stage reads what the manifests recorded, or nothing."""

import hashlib
import json
import os
import re

import pytest

from tests.support.reporter import RecordingReporter
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import input_files, reporters, runner
from tokenuq_ml.stages.request import RecordedFile, RecordedInput, StageRequest


def entry(path, read=True):
    content = path.read_bytes()
    return RecordedFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest() if read else None)


@pytest.fixture
def request_of(tmp_path):
    """A request with two inputs: a model whose weights the stage does not read, and an adapter with a sub folder."""
    model, adapter = tmp_path / "models/tiny", tmp_path / "adapter"
    (adapter / "sub").mkdir(parents=True)
    model.mkdir(parents=True)
    for path in (model / "weights", model / "config.json", adapter / "a", adapter / "sub" / "b"):
        path.write_bytes(path.name.encode() * 50)
    recorded = {
        "model": {"weights": entry(model / "weights", read=False), "config.json": entry(model / "config.json")},
        "adapter": {"a": entry(adapter / "a"), "sub/b": entry(adapter / "sub/b")},
    }
    return StageRequest(
        entrypoint="x",
        assets={},
        inputs={"model": str(model), "adapter": str(adapter)},
        recorded={name: RecordedInput(asset=f"s/{name}", files=files) for name, files in recorded.items()},
        work_dir=str(tmp_path),
    )


def refused(request):
    with pytest.raises(InputError) as raised:
        input_files.verify_inputs(request, RecordingReporter())
    said = str(raised.value)
    assert "`tokenuq verify --forget`" in said and "\n" not in said
    return said


def test_inputs_as_recorded_are_read_once(request_of, monkeypatch):
    reads, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: reads.append(file) or real(file, name))
    monkeypatch.setattr("tokenuq_ml.file_hashes._RECENT_S", -1)
    for _ in range(2):
        input_files.verify_inputs(request_of, RecordingReporter())
    assert len(reads) == 3


def test_what_takes_long_is_told(request_of, monkeypatch):
    reporter = RecordingReporter()
    monkeypatch.setattr(input_files, "TOLD_S", -1)
    input_files.verify_inputs(request_of, reporter)
    assert re.search(r"compared 0.0 GB of inputs with their recorded hashes in 0 s", reporter.lines[0])


@pytest.mark.parametrize("path", ["adapter/a", "adapter/sub/b", "models/tiny/config.json"])
def test_a_flipped_byte_is_refused(request_of, tmp_path, path):
    content = bytearray((tmp_path / path).read_bytes())
    content[10] ^= 1
    (tmp_path / path).write_bytes(content)
    assert re.search(f"s/.*: {tmp_path / path}: its SHA-256 begins with", refused(request_of))


def test_what_is_not_read_is_compared_by_size(request_of, tmp_path):
    weights = tmp_path / "models/tiny/weights"
    weights.write_bytes(b"x" * weights.stat().st_size)
    input_files.verify_inputs(request_of, RecordingReporter())
    weights.write_bytes(b"x")
    assert f"{weights} has 1 bytes, not 350" in refused(request_of)


def test_missing_linked_and_additional_files_are_refused(request_of, tmp_path):
    file = tmp_path / "adapter/sub/b"
    file.rename(tmp_path / "elsewhere")
    assert f"{file} is missing" in refused(request_of)
    file.symlink_to(tmp_path / "elsewhere")
    assert f"{file} is a symbolic link" in refused(request_of)
    file.unlink()
    os.mkfifo(file)
    assert f"{file} is not a file" in refused(request_of)
    file.unlink()
    (tmp_path / "elsewhere").rename(file)
    (tmp_path / "adapter/.nfs00000000012f").touch()
    input_files.verify_inputs(request_of, RecordingReporter())
    (tmp_path / "adapter/sub/part-1.parquet").touch()
    assert f"{tmp_path}/adapter/sub/part-1.parquet does not belong to s/adapter" in refused(request_of)
    (tmp_path / "adapter/sub/part-1.parquet").unlink()
    (tmp_path / "adapter").rename(tmp_path / "moved")
    (tmp_path / "adapter").symlink_to(tmp_path / "moved")
    assert f"{tmp_path}/adapter is a symbolic link" in refused(request_of)


def test_the_program_refuses_before_it_runs(request_of, tmp_path, monkeypatch, capsys):
    request_of.write(tmp_path / "request.json")
    monkeypatch.setattr("sys.argv", ["stage", str(tmp_path / "request.json")])
    ran = []
    assert (
        runner._run(lambda request, reporter: ran.append(request), reporters.TerminalReporter()) == 0 and len(ran) == 1
    )
    (tmp_path / "adapter/a").write_bytes(b"b" * 50)
    assert runner._run(lambda request, reporter: ran.append(request), reporters.TerminalReporter()) == runner.BAD_INPUT
    assert len(ran) == 1 and "its SHA-256 begins with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b"\xff", "is not UTF-8"),
        (b"null", "the file: Input should be"),
        (b"[1]", "the file: Input should be"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"{}", "entrypoint: Field required"),
        (json.dumps({"entrypoint": 3}).encode(), "entrypoint: Input should be a valid string"),
        (b'{"entrypoint": NaN}', "is not JSON: NaN"),
        (None, "is a folder, not a file"),
        (False, "is missing"),
    ],
)
def test_a_damaged_request_is_one_sentence(tmp_path, content, says, monkeypatch, capsys):
    path = tmp_path / "request.json"
    if content is None:
        path.mkdir()
    elif content:
        path.write_bytes(content)
    elif content == b"":
        path.touch()
    monkeypatch.setattr("sys.argv", ["stage", str(path)])
    assert runner._run(lambda request, reporter: None, reporters.TerminalReporter()) == runner.BAD_INPUT
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: {says}") and err.count("\n") == 1
    assert "`tokenuq run`" in err and "`tokenuq verify --forget`" in err
