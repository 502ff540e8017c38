"""Keys of a dataset's rows: left out of versions while they have their default."""

import pytest

from tokenuq_ml.config import DatasetSpec, spec_hash
from tokenuq_ml.config.row_keys import ROW_KEYS


def spec(**keys) -> DatasetSpec:
    return DatasetSpec(name="d", format="alpaca", path="d.json", sizes={"train": 5, "test": 2}, **keys)


def test_defaults_of_later_keys_do_not_change_the_hash():
    defaults = {"columns": {}, "roles": {}, "train_on": "all", "merge_turns": False}
    assert defaults.keys() == ROW_KEYS
    # The hash of version 0.1.0, which had none of these keys.
    assert spec_hash(spec().fields()) == spec_hash(spec(**defaults).fields()) == "1f697d1eaf08"


@pytest.mark.parametrize(
    "keys",
    [{"columns": {"output": "answer"}}, {"roles": {"bot": "assistant"}}, {"train_on": "last"}, {"merge_turns": True}],
)
def test_other_values_are_fields(keys):
    fields = spec(**keys).fields()
    assert {name: fields[name] for name in fields.keys() & ROW_KEYS} == keys
    assert DatasetSpec(**fields) == spec(**keys)
