"""The reference of the documentation site is complete: every model of the configuration, every public name."""

import pkgutil
import re
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

import pytest

import tokenuq_ml
from tests.support.paths import ROOT
from tokenuq_ml import config, tables
from tokenuq_ml.config import Spec

_FILE = ROOT / "docs/hooks/keys.py"
_spec = spec_from_file_location("keys_hook", _FILE)
keys = module_from_spec(_spec)
_spec.loader.exec_module(keys)

STUDIES = (ROOT / "docs/reference/studies.md").read_text(encoding="utf-8")
LIBRARY = (ROOT / "docs/reference/library.md").read_text(encoding="utf-8")
LISTED = keys.MARK.findall(STUDIES)
NO_ENTRY = {"CuratedDatasetSpec"}
"""Models that no YAML file is checked by: the loader makes them."""


def specs() -> dict[str, type[Spec]]:
    """Path -> model, of those that no other model is derived from."""
    for module in pkgutil.walk_packages(config.__path__, f"{config.__name__}."):
        import_module(module.name)
    found, todo = {}, [Spec]
    while todo:
        # A test may have derived models of its own.
        derived = [one for one in todo.pop().__subclasses__() if one.__module__.startswith(config.__name__)]
        found |= {f"{one.__module__}.{one.__name__}": one for one in derived if one.__name__ not in NO_ENTRY}
        todo += derived
    bases = {base for one in found.values() for base in one.__mro__[1:]}
    return {path: one for path, one in found.items() if one not in bases}


def test_every_model_of_the_configuration_is_listed_once():
    assert sorted(LISTED) == sorted(set(LISTED)) == sorted(specs())


@pytest.mark.parametrize("path", LISTED)
def test_every_key_has_a_meaning(path):
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", keys.table(path, set()), re.MULTILINE)
    model = specs()[path]
    assert [name for name, *_ in rows] == [
        field.alias or key for key, field in model.model_fields.items() if key != "name"
    ]
    assert [name for name, kind, _, meaning in rows if not kind or not meaning] == []


def test_a_table_says_what_a_key_may_be():
    text = keys.table("tokenuq_ml.config.train.TrainSpec", {"LoraSpec"})
    assert "| `batch_size` | integer > 0 | `8` | examples per optimiser step |" in text
    assert "| `lora` | [LoraSpec](#loraspec) | its defaults | the adapter |" in text
    assert "| `batching` | `bucket`, `pack` | `bucket` |" in text
    assert "| `micro_batch_size` | integer > 0 | — | examples per forward pass;" in text
    assert "reviewed file: &lt;name>.csv or" in keys.table("tokenuq_ml.config.curated.CuratedEntry", set())
    assert "| `select` | SelectSpec | required |" in keys.table("tokenuq_ml.config.ablation.AblationSpec", set())


@pytest.mark.slow
def test_every_public_name_is_in_the_reference():
    listed = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", LIBRARY, re.MULTILINE)}
    public = {*tokenuq_ml.__all__, *tables.__all__} - {"AblationSpec", "TABLES"}
    assert public <= listed
    for path in re.findall(r"^::: ([\w.]+)$", LIBRARY, re.MULTILINE):
        module, _, name = path.rpartition(".")
        assert getattr(import_module(module), name).__doc__
    assert "[AblationSpec](studies.md#ablationsyaml)" in LIBRARY and "`tokenuq_ml.tables.TABLES`" in LIBRARY
