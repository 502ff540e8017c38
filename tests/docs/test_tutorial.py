"""What the tutorial relies on."""

import re

from tests.support.paths import ROOT
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.own_splits import SHARES

PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")


def test_the_file_of_the_tutorial_has_rows_for_every_split():
    files = set(re.findall(r"examples/\w+\.jsonl", PAGE))
    assert files == {"examples/questions.jsonl"}
    spec = DatasetSpec(name="questions", format="messages", path=str(ROOT / files.pop()), sizes=SHARES)
    splits = [example.split for example in load_examples(spec).examples]
    assert {split: splits.count(split) for split in SHARES} == {"train": 32, "validation": 4, "test": 4}


def test_the_pictures_of_the_tutorial_exist():
    for file in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / file).read_bytes().startswith(b"\x89PNG")
