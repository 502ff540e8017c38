"""Entries of synthetic languages: what is accepted, and the sentence for each mistake."""

from pathlib import Path

import pytest
import yaml

from tests.support.tiny_language import GRAMMAR, LLAMA
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.model import ModelSpec
from tokenuq_ml.config.sources import DatasetSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import study_fields

TALK = {"format": "synthetic_language", "grammar": GRAMMAR, "sizes": {"train": 10, "ood": 4}}
POST = {"format": "synthetic_language", "language": "talk", "world": "post"} | {
    "sizes": {"train": 4, "validation": 2, "test": 2}
}
MODEL = {"source": "pretrain", "language": "talk", "config": LLAMA, "pretraining": {"steps": 5}}


def config_of(folder: Path, **changes):
    """Write a study on a language; `changes` replace entries, None removes one."""
    files = {
        "datasets": {"talk": TALK, "post": POST},
        "models": {"tiny": MODEL},
        "studies": {"s": {"model": "tiny", "dataset": "post", "ood": ["talk"], "ablations": ["mle"]}},
        "ablations": {"mle": {"select": "all"}},
    }
    for name, entry in changes.items():
        kind, _, key = name.partition("__")
        files[kind] = {**files[kind], key: entry}
    for kind, entries in files.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    return load_config(folder)


def test_a_study_on_a_language_needs_its_datasets(tmp_path):
    config = config_of(tmp_path)
    study = config.studies["s"]
    assert config.datasets_of(study) == ["talk", "post"] and config.has_truth(study)
    assert study_fields(config, study, "tokenized_dataset")["only_ood"] == ["talk"]
    # The language is made for its model also where no dataset of the study is written in it.
    other = {"format": "gsm8k", "path": "gsm.jsonl", "sizes": {"train": 2, "validation": 1, "test": 1}}
    plain = {"model": "tiny", "dataset": "gsm", "ablations": ["mle"]}
    config = config_of(tmp_path, datasets__gsm=other, studies__s=plain)
    assert config.datasets_of(config.studies["s"]) == ["gsm", "talk"] and not config.has_truth(config.studies["s"])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({**TALK, "path": "x"}, "generates its documents; remove 'path'"),
        ({**TALK, "sizes": {"train": 0.5}}, "must be counts"),
        ({**TALK, "world": "post"}, "'world' needs 'language'"),
        ({**POST, "world": None}, "'language' needs 'world': pre or post"),
        ({**POST, "language": "d"}, "'language' names d itself"),
        ({**POST, "grammar": GRAMMAR}, "'grammar' is set in talk"),
        ({"format": "gsm8k", "path": "x", "sizes": "all", "language": "talk"}, "'language' needs format"),
        ({"format": "gsm8k", "path": "x", "sizes": "all", "grammar": GRAMMAR}, "'grammar' needs format"),
        ({**TALK, "duplicates": "keep"}, "generates its documents; remove 'duplicates'"),
    ],
)
def test_wrong_keys_of_datasets_are_refused(entry, says):
    with pytest.raises(ValueError, match=says):
        DatasetSpec(name="d", **{key: value for key, value in entry.items() if value is not None})


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({**MODEL, "config": None}, "source 'pretrain' needs 'config'"),
        ({**MODEL, "language": None}, "source 'pretrain' needs 'language'"),
        ({**MODEL, "path": "x"}, "reads no 'path'; remove it"),
        ({**MODEL, "config": {**LLAMA, "vocab_size": 9}}, "remove 'vocab_size'"),
        ({**MODEL, "config": {"hidden_size": 9}}, "needs 'model_type'"),
        ({"source": "path", "path": "x", "language": "talk"}, "'language' needs source 'pretrain'"),
        ({"source": "path", "path": "x", "pretraining": {}}, "'pretraining' needs source 'pretrain'"),
    ],
)
def test_wrong_keys_of_models_are_refused(entry, says):
    with pytest.raises(ValueError, match=says):
        ModelSpec(name="m", **{key: value for key, value in entry.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datasets__post": {**POST, "language": "none"}}, "post.language: 'none' is not in datasets.yaml"),
        ({"datasets__other": {**POST, "language": "post"}}, "other.language: 'post' defines no language"),
        ({"models__tiny": {**MODEL, "language": "post"}}, "tiny.language: 'post' defines no language"),
        ({"datasets__talk": {**TALK, "sizes": {"ood": 2}}}, "talk.sizes: has no 'train' split, on which model tiny"),
        ({"datasets__second": TALK, "models__tiny": {**MODEL, "language": "second"}}, "such models: none yet"),
    ],
)
def test_languages_that_do_not_fit_are_refused(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        config_of(tmp_path, **changes)


def test_other_entries_keep_their_fields():
    spec = DatasetSpec(name="d", format="gsm8k", path="x", sizes={"train": 1})
    assert not {"grammar", "language", "world"} & spec.fields().keys()
    model = ModelSpec(name="m", source="path", path="x", config={"hidden_size": 1})
    assert not {"language", "pretraining", "config"} & model.fields().keys()
    pretrained = ModelSpec(name="m", **MODEL)
    assert pretrained.fields()["config"] == LLAMA and pretrained.fields()["pretraining"]["steps"] == 5
