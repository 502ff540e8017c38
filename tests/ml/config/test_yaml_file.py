"""YAML files: what cannot be read as one mapping is refused by name and line."""

import pytest

from tokenuq_ml.config.yaml_file import read_mapping
from tokenuq_ml.errors import InputError


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: 2\na: 3\n", "'a' stands here and in line 1"),
        (b"a:\n  x: 1\n  y: {k: 1, k: 2}\n", "'k' stands here and in line 3"),
        (b"a: 1\nb: \xff\n", "line 2: is not UTF-8"),
        (b"a: [1, 2\nb: }", "not YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "not YAML"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"text", "must be a mapping"),
    ],
)
def test_a_wrong_file_is_refused(content, said, tmp_path):
    path = tmp_path / "studies.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_mapping(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_mapping(tmp_path)


@pytest.mark.parametrize(
    ("content", "mapping"),
    [
        (b"", {}),
        (b"\xef\xbb\xbfa: 1\n", {"a": 1}),
        (b"base: &b {x: 1, y: 2}\na: {<<: *b, y: 3}\n", {"base": {"x": 1, "y": 2}, "a": {"x": 1, "y": 3}}),
        (b"a: {x: 1}\nb: {x: 2}\n", {"a": {"x": 1}, "b": {"x": 2}}),
    ],
)
def test_a_mapping_is_read(content, mapping, tmp_path):
    path = tmp_path / "studies.yaml"
    path.write_bytes(content)
    assert read_mapping(path) == mapping
