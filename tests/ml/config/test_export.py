"""Entries of exports.yaml: checked against the studies, with the file and the key in each message."""

import pytest
import yaml

from tests.support.exported import written_config
from tests.support.tiny_study import STUDY
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError


@pytest.fixture
def load(tmp_path):
    def with_exports(*texts):
        written_config(tmp_path)
        folders = [tmp_path]
        for number, text in enumerate(texts):
            folder = tmp_path if number == 0 else tmp_path / str(number)
            folder.mkdir(exist_ok=True)
            (folder / "exports.yaml").write_text(text)
            folders += [] if number == 0 else [folder]
        return load_config(*folders).exports

    return with_exports


def test_entries_have_defaults_and_comments_alone_are_none(load):
    found = load(yaml.safe_dump({"a": {"study": STUDY, "ablation": "mle"}}))
    assert (found["a"].kind, found["a"].dtype, found["a"].schedule) == ("merged", "auto", None)
    assert "schedule" not in found["a"].fields()
    teacher = load(yaml.safe_dump({"a": {"study": STUDY, "ablation": "baseline_teacher", "kind": "gguf"}}))["a"]
    assert teacher.is_of_teacher and load("# nothing\n") == {}


@pytest.mark.parametrize(
    "entry, sentence",
    [
        ({"study": "other", "ablation": "mle"}, "a.study: 'other' is not in studies.yaml; allowed: tiny"),
        ({"study": STUDY, "ablation": "x"}, "a.ablation: tiny has no ablation 'x'; allowed: mle, .*baseline_teacher"),
        ({"study": STUDY, "ablation": "base"}, "a.ablation: 'base' is the base model"),
        ({"study": STUDY, "ablation": "mle", "kind": "onnx"}, "a.kind"),
        ({"study": STUDY, "ablation": "mle", "dtype": "int8"}, "a.dtype"),
        ({"study": STUDY, "ablation": "mle", "to": "x"}, "a.to"),
        ("mle", "a: must be a mapping, is str"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(load, entry, sentence):
    with pytest.raises(InputError, match=rf"exports\.yaml: {sentence}"):
        load(yaml.safe_dump({"a": entry}))


def test_a_name_in_two_folders_is_refused(load):
    text = yaml.safe_dump({"a": {"study": STUDY, "ablation": "mle"}})
    with pytest.raises(InputError, match="a: already defined in .*rename one of them"):
        load(text, text)
