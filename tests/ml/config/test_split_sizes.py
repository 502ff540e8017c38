"""The keys `sizes`, `duplicates` and `mix` of a dataset: what is accepted, and what errors say."""

from fractions import Fraction

import pytest
import yaml
from pydantic import ValidationError

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.split_sizes import apportion
from tokenuq_ml.errors import InputError


def entry(**keys) -> dict:
    return {"name": "d", "format": "alpaca", "path": "/a.json", **keys}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sizes": {"train": 100, "test": 0.1}}, "train has a count and test a share; give only counts or only shares"),
        ({"sizes": {"train": 2000.0}}, "train: a share must be above 0 and at most 1.0, is 2000.0; counts are whole"),
        ({"sizes": {"train": 0}}, "train: a count must be greater than 0, is 0"),
        ({"sizes": {"train": True}}, "train: must be a count or a share, is True"),
        ({"sizes": {"train": "all"}}, "train: must be a count or a share, is 'all'"),
        ({"sizes": {"dev": 3}}, "unknown split 'dev'; allowed: train, validation, test, ood"),
        ({"sizes": {}}, "is empty: name at least one split, or write `sizes: all`"),
        ({"sizes": "everything"}, "must be counts (`train: 2000`), shares (`train: 0.9`) or `all`, is 'everything'"),
        (
            {"sizes": "all", "drawn_from": {"train": "train", "validation": "train"}},
            "'sizes: all' cannot divide 'train' among train, validation",
        ),
        (
            {"sizes": {"train": 0.9, "test": 1.0, "ood": 0.2}, "drawn_from": {"train": "a", "test": "b", "ood": "a"}},
            "the shares of 'a' for train, ood add up to 1.1, above 1",
        ),
        ({"sizes": {"train": 1}, "duplicates": "question", "mix": {"a": 1}}, "'mix' needs format 'mix', is 'alpaca'"),
        ({"format": "mix", "path": None, "sizes": "all"}, "format 'mix' needs 'mix'"),
        ({"format": "mix", "path": None, "sizes": "all", "mix": {"a": 1, "d": 1}}, "'mix' names d itself"),
        ({"format": "mix", "sizes": "all", "mix": {"a": 1}}, "reads the datasets that 'mix' names; set 'path' there"),
        (
            {"format": "mix", "path": None, "sizes": "all", "mix": {"a": 1}, "train_on": "last"},
            "reads the datasets that 'mix' names; set 'train_on' there",
        ),
        (
            {"format": "reasoning_gym", "path": None, "task": "x", "sizes": {"train": 0.5}},
            "'sizes' of format 'reasoning_gym' must be counts",
        ),
    ],
)
def test_wrong_keys_are_refused_by_name(keys, message):
    with pytest.raises(ValidationError) as caught:
        DatasetSpec(**entry(**keys))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "drawn_from", "splits"),
    [
        ({"train": 5, "test": 1}, None, ("train", "test")),
        ({"train": 0.9, "validation": 0.05, "test": 0.05}, None, ("train", "validation", "test")),
        ("all", {"train": "a", "test": "b"}, ("train", "test")),
        ("all", None, None),
    ],
)
def test_splits_are_those_that_the_entry_names(sizes, drawn_from, splits):
    spec = DatasetSpec(**entry(sizes=sizes, drawn_from=drawn_from))
    assert spec.splits == splits
    assert DatasetSpec(**spec.fields()) == spec, "stages build the spec from its fields"


def test_new_keys_are_no_part_of_the_fields_while_they_have_their_default():
    spec = DatasetSpec(**entry(sizes={"train": 5}))
    assert not {"duplicates", "mix"} & set(spec.fields()) and spec.fields()["sizes"] == {"train": 5}
    assert spec.model_copy(update={"duplicates": "keep"}).fields()["duplicates"] == "keep"


@pytest.mark.parametrize(
    ("total", "shares", "rows"),
    [
        (10, {"a": "0.9", "b": "0.05", "c": "0.05"}, {"a": 9, "b": 1, "c": 0}),
        (100, {"a": "0.333", "b": "0.333", "c": "0.334"}, {"a": 33, "b": 33, "c": 34}),
        (7, {"a": "0.5", "b": "0.25"}, {"a": 3, "b": 2}),
        (3, {"a": "1"}, {"a": 3}),
        (1000, {"a": "0.7", "b": "0.1", "c": "0.2"}, {"a": 700, "b": 100, "c": 200}),
    ],
)
def test_rows_are_divided_by_the_largest_remainder(total, shares, rows):
    assert apportion(total, {name: Fraction(share) for name, share in shares.items()}) == rows


def write_config(folder, datasets):
    for kind in ("models", "studies", "ablations"):
        (folder / f"{kind}.yaml").write_text("{}")
    (folder / "datasets.yaml").write_text(yaml.safe_dump(datasets))
    return folder


def mix(sizes="all", **weights):
    return {"format": "mix", "mix": weights, "sizes": sizes}


PLAIN = {"format": "alpaca", "id": "o/d", "sizes": {"train": 9}}


def test_a_mix_needs_what_it_is_made_of(tmp_path):
    with pytest.raises(InputError, match=r"datasets\.yaml: m\.mix: 'b' is not in datasets\.yaml; allowed: a$"):
        load_config(write_config(tmp_path, {"a": PLAIN, "m": mix(a=1, b=1)}))
    with pytest.raises(InputError, match=r"datasets\.yaml: m\.mix: m is made of itself"):
        load_config(write_config(tmp_path, {"a": PLAIN, "m": mix(a=1, n=1), "n": mix(m=1)}))


def test_datasets_of_a_mix_stand_before_it(tmp_path):
    config = load_config(
        write_config(tmp_path, {"outer": mix(inner=1, b=2), "inner": mix(a=1), "a": PLAIN, "b": PLAIN})
    )
    assert config.with_sources("outer") == ["b", "a", "inner", "outer"]
    assert config.with_sources("a") == ["a"]
