"""The hub by way of `datasets`, on a folder laid out as a repository of it: no network."""

import json

import pytest

from tests.support.fake_hub import COMMIT, fake_hub
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples, why_unavailable
from tokenuq_ml.errors import InputError

SIZES = {"train": 5, "validation": 2, "test": 3}
CARD = """---
dataset_info:
  features:
  - {name: question, dtype: string}
  - {name: answer, dtype: string}
  splits:
  - {name: train, num_bytes: 1000, num_examples: 20}
  - {name: test, num_bytes: 400, num_examples: 8}
  download_size: SIZE
  dataset_size: 1400
---
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    for split, count in (("train", 20), ("test", 8)):
        rows = [{"question": f"{split} {i}", "answer": f"So.\n#### {i}"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def spec(folder, **more) -> DatasetSpec:
    drawn_from = {"train": "train", "validation": "train", "test": "test"}
    fields = {"name": "g", "format": "gsm8k", "id": str(folder), "sizes": SIZES, "drawn_from": drawn_from}
    return DatasetSpec(**{**fields, **more})


def rows(loaded) -> list:
    return [(e.id, e.split, e.messages) for e in loaded.examples]


@pytest.mark.parametrize("size", [None, 1400, 2**40])
def test_rows_of_the_hub_are_those_of_the_files(repository, monkeypatch, size):
    """Whether streamed (large, or of unknown size) or downloaded once, and whether from the hub or from a folder."""
    import datasets

    if size is not None:
        (repository / "README.md").write_text(CARD.replace("SIZE", str(size)))
    asked, plain = [], datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append(k["streaming"]) or plain(*a, **k))
    loaded = load_examples(spec(repository))
    assert asked == [size != 1400] * 2
    local = load_examples(spec(None).model_copy(update={"path": str(repository), "id": None}))
    assert rows(loaded) == rows(local) and len(rows(loaded)) == 10
    assert loaded.examples[0].source["file"] == f"{repository}:{loaded.examples[0].id.split('/')[1]}"


def test_without_drawn_from_all_splits_come_from_train(repository):
    loaded = load_examples(spec(repository, drawn_from=None))
    assert loaded.metrics["rows_read"] == 20 and all(e.id.startswith("g/0000") for e in loaded.examples)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "nobody/nothing"}, r"dataset g: nobody/nothing is not in the local cache.*name that folder as `path:`"),
        ({"drawn_from": {**dict.fromkeys(SIZES, "train"), "test": "dev"}}, r"the hub's splits in `drawn_from:` of g"),
        ({"config": "main"}, r"'main' not found.*name one as `config:` of g"),
        ({"id": "nobody/nothing", "file": "a.json", "drawn_from": None}, r"nothing is not in the local cache"),
    ],
)
def test_an_unavailable_dataset_is_explained_in_a_sentence(repository, monkeypatch, change, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=said) as caught:
        load_examples(spec(repository, **change))
    assert "\n" not in str(caught.value)


def test_an_unreadable_row_says_what_to_do(repository):
    (repository / "train.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"question\n')
    with pytest.raises(
        InputError, match=r"repository cannot be read .*download its files and name their folder as `path:`"
    ):
        load_examples(spec(repository))


def test_a_file_of_the_hub_is_read_as_a_local_one(repository, tmp_path, monkeypatch):
    wanted = spec("o/d", file="train.jsonl", drawn_from=None)
    with fake_hub(monkeypatch, tmp_path / "downloads", repository):
        loaded = load_examples(wanted)
    assert loaded.metrics["rows_read"] == 20 and loaded.examples[0].source["file"] == "train.jsonl"
    assert loaded.metrics["hub_commit"] == COMMIT
    with fake_hub(monkeypatch, tmp_path / "none", repository, "gated"):
        with pytest.raises(InputError, match=r"dataset g: o/d is gated: accept its licence at .*/datasets/o/d"):
            load_examples(wanted)


def test_availability_is_checked_without_a_download(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.dataset_info", refuse)
    reason = why_unavailable(spec("o/d"))
    assert "dataset g: https" in reason and "cannot be reached: check the network" in reason
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: None)
    assert why_unavailable(spec("o/d")) is None
