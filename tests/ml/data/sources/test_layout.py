"""Which files of a folder are read: those that `datasets` reads by the same conventions; the others are named."""

import json
from collections import Counter

import polars as pl
import pytest

from tests.support.tiny_datasets import by_split, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples, why_unavailable
from tokenuq_ml.data.sources.locate import find_files
from tokenuq_ml.errors import InputError

NAMES = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "dev", "my_train", "eval", "part")


def spec(path, **more) -> DatasetSpec:
    return DatasetSpec(
        **{"name": "d", "format": "prompt_completion", "path": str(path), "sizes": {"train": 2, "test": 2}, **more}
    )


def write(path, count: int = 3) -> None:
    """Write rows that say which file they are from; Parquet or JSON lines, by the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{path.parent.name}/{path.name} {i}", "completion": "A"} for i in range(count)]
    pl.DataFrame(rows).write_parquet(path) if path.suffix == ".parquet" else write_lines(path, rows)


def rows_of_library(folder, *config) -> dict[str, list[str]]:
    """Split -> prompts, as `datasets.load_dataset` reads the folder."""
    import datasets

    loaded = datasets.load_dataset(str(folder), *config, cache_dir=str(folder.parent / "cache"))
    return {split: rows["prompt"] for split, rows in loaded.items()}


def rows_of_ours(folder, **more) -> dict[str, list[str]]:
    """Part -> prompts, in the order of the files."""
    data = find_files(spec(folder, **more))
    found = {}
    for part, files in data.parts.items():
        one = load_examples(spec(folder, **{"sizes": dict.fromkeys(data.drawn_from or {"train": 0}, 1.0), **more}))
        examples = [example for example in one.examples if not part or example.id.split("/")[1] == part]
        assert Counter(example.source["file"] for example in examples) == {data.name(file): 3 for file in files}
        found[part] = [example.messages[0]["content"] for example in examples]
    return found


LAYOUTS = {
    "shards in data/": [f"data/{name}.parquet" for name in ("train-00000-of-00002", "train-00001-of-00002")]
    + ["data/test-00000-of-00001.parquet"],
    "folders": ["train/a.jsonl", "train/deep/b.jsonl", "test/a.jsonl"],
    "names": ["my_train.jsonl", "test.jsonl"],
    "other names of splits": ["training.jsonl", "dev.jsonl", "eval.jsonl"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conventions_of_the_hub_give_the_splits_of_load_dataset(tmp_path, layout):
    folder = tmp_path / "data_set"
    for name in LAYOUTS[layout]:
        write(folder / name)
    expected = rows_of_library(folder)
    wanted = dict.fromkeys(expected, 1.0)
    assert len(wanted) > 1 and rows_of_ours(folder, sizes=wanted) == expected
    assert "files_not_read" not in load_examples(spec(folder, sizes=wanted)).metrics


README = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: ["rows/a-*.jsonl", rows/b.jsonl]
  - split: test
    path: rows/held_out.jsonl
- config_name: other
  data_files: extra.jsonl
---
# A dataset
"""


def test_the_configs_of_a_readme_give_the_splits_of_load_dataset(tmp_path):
    folder = tmp_path / "data_set"
    for name in ("rows/a-1.jsonl", "rows/a-2.jsonl", "rows/b.jsonl", "rows/held_out.jsonl", "extra.jsonl"):
        write(folder / name)
    (folder / "README.md").write_text(README)
    both = {"train": 1.0, "test": 1.0}
    assert rows_of_ours(folder, sizes=both) == rows_of_library(folder)
    metrics = load_examples(spec(folder, sizes=both)).metrics
    assert metrics["files_not_read"] == "extra.jsonl (its README.md makes it no part of the dataset)"
    (rows,) = rows_of_ours(folder, config="other", sizes={"train": 1.0}).values()
    assert rows == rows_of_library(folder, "other")["train"]
    drawn = load_examples(
        spec(folder, drawn_from={"train": "train", "validation": "test"}, sizes={"train": 4, "validation": 2})
    )
    assert all(("held_out" in example.question) == (example.split == "validation") for example in drawn.examples)
    with pytest.raises(
        InputError, match=r"README\.md: has no configuration 'third'; name one as `config:`: main, other"
    ):
        find_files(spec(folder, config="third"))
    (folder / "README.md").write_text(README.replace("  default: true\n", ""))
    assert "has several configurations" in why_unavailable(spec(folder))
    (folder / "README.md").write_text(README.replace("held_out", "nothing"))
    assert "datasets cannot find the data files" in why_unavailable(spec(folder))


def saved(rows, folder) -> None:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(folder, num_shards=2)


def test_a_saved_dict_has_its_own_splits(tmp_path):
    import datasets

    folder = tmp_path / "saved"
    splits = {
        name: datasets.Dataset.from_list([{"prompt": f"{name} {i}", "completion": "A"} for i in range(6)])
        for name in ("train", "test", "unsup")
    }
    datasets.DatasetDict(splits).save_to_disk(folder)
    loaded = datasets.load_from_disk(folder)
    loaded["train"].map(lambda row: {"prompt": "changed " + row["prompt"]})
    assert list((folder / "train").glob("cache-*.arrow"))
    examples = load_examples(spec(folder, sizes={"train": 6, "test": 6}))
    for split in ("train", "test"):
        texts = [example.messages[0]["content"] for example in examples.examples if example.split == split]
        assert texts == loaded[split]["prompt"]
    not_read = examples.metrics["files_not_read"]
    assert not_read.startswith("train/cache-") and "by map()" in not_read
    assert "unsup/data-00000-of-00001.arrow (no split is drawn from it)" in not_read
    drawn = load_examples(spec(folder, drawn_from={"train": "unsup", "test": "test"}))
    assert by_split(drawn.examples) == {"train": 2, "test": 2}
    assert all(example.question.startswith(("unsup", "test")) for example in drawn.examples)
    with pytest.raises(
        InputError, match=r"has the splits train, test, unsup; `sizes` asks for validation too\. Say which"
    ):
        find_files(spec(folder, sizes={"train": 1, "validation": 1}))
    assert by_split(load_examples(spec(folder, sizes="all")).examples) == {"train": 6, "test": 6}
    (folder / "test" / "data-00000-of-00001.arrow").unlink()
    assert "state.json: names data-00000-of-00001.arrow, which is missing" in why_unavailable(spec(folder))


def test_a_folder_of_saved_datasets_is_read_by_their_state(tmp_path):
    for name in ("a", "b"):
        saved([{"prompt": f"{name} {i}", "completion": "A"} for i in range(4)], tmp_path / "all" / name)
        (tmp_path / "all" / name / "cache-0123456789abcdef.arrow").write_bytes(b"x")
    data = find_files(spec(tmp_path / "all", sizes={"train": 8}))
    assert [data.name(file) for file in data.files] == [
        f"{name}/data-0000{i}-of-00002.arrow" for name in ("a", "b") for i in (0, 1)
    ]
    assert set(data.unread) == {f"{name}/cache-0123456789abcdef.arrow" for name in ("a", "b")}


def test_what_is_not_read_is_named_with_the_reason(tmp_path):
    cache = "cache-0123456789abcdef_00001_of_00004.arrow"
    for name in ("a.jsonl", "inner/b.jsonl", ".hidden.jsonl", ".git/x.jsonl", "c.jsonl.part", "config.json"):
        write(tmp_path / name)
    for name in ("README.md", "notes.txt", "dataset_info.json", "archive.zip", "c.parquet.gz", cache):
        (tmp_path / name).write_text("x")
    data = find_files(spec(tmp_path, sizes={"train": 6}))
    assert [data.name(file) for file in data.files] == ["a.jsonl", "inner/b.jsonl"]
    assert data.unread == {
        ".git/": "is hidden",
        ".hidden.jsonl": "is hidden",
        "archive.zip": "is no kind of data file",
        "c.jsonl.part": "is still being written",
        "c.parquet.gz": "is no kind of data file",
        cache: "is a cache that datasets wrote, of rows that were changed by map()",
        "config.json": "describes a model or a dataset",
        "notes.txt": "is no kind of data file",
    }
    assert data.being_written == "c.jsonl.part"
    loaded = load_examples(spec(tmp_path, sizes={"train": 6}))
    assert ".git/ (is hidden), .hidden.jsonl (is hidden)" in loaded.metrics["files_not_read"]
    assert any("notes.txt" in warning for warning in loaded.warnings)


def test_one_word_of_a_split_divides_nothing(tmp_path):
    """`load_dataset` would read the second file only."""
    write(tmp_path / "chats.jsonl")
    write(tmp_path / "chats_train.jsonl")
    assert len(find_files(spec(tmp_path)).parts[""]) == 2


def test_words_of_parts_are_looked_for_in_names_then_in_folders(tmp_path):
    for name in ("x_train/a_test.jsonl.gz", "x_train/b.jsonl", "train/c.jsonl"):
        write(tmp_path / name)
    data = find_files(spec(tmp_path, drawn_from={"train": "train", "test": "test"}))
    assert {part: [data.name(file) for file in files] for part, files in data.parts.items()} == {
        "train": ["train/c.jsonl", "x_train/b.jsonl"],
        "test": ["x_train/a_test.jsonl.gz"],
    }
    write(tmp_path / "train_and_test.jsonl")
    with pytest.raises(
        InputError, match=r"train_and_test\.jsonl has the words of several parts in its name: train, test"
    ):
        find_files(spec(tmp_path, drawn_from={"train": "train", "test": "test"}))


def test_splits_that_are_not_asked_for_are_never_mixed(tmp_path):
    """A folder with train and test is not one pool, from which test could go into train."""
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / name)
    assert "`sizes` asks for validation too" in why_unavailable(spec(tmp_path, sizes={"train": 1, "validation": 1}))
    loaded = load_examples(spec(tmp_path, sizes={"train": 3}))
    assert {example.source["file"] for example in loaded.examples} == {"train.jsonl"}
    assert loaded.metrics["files_not_read"] == "test.jsonl (no split is drawn from it)"


def test_a_selection_that_old_versions_saved_apart_is_refused(tmp_path):
    saved([{"prompt": "Q", "completion": "A"}] * 2, tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    state.write_text(
        json.dumps({**json.loads(state.read_text()), "_indices_data_files": [{"filename": "indices.arrow"}]})
    )
    assert "saved a selection of rows apart" in why_unavailable(spec(tmp_path / "saved"))
