"""Every kind of adapter of the installed PEFT, and LoRA's options: right beside plain PEFT, or refused by name.

The table of docs/library.md says which; it is read here.
"""

import re
import typing
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, PeftType

from tests.support.adapter_outcomes import bald_outcome, outcomes, score_outcome, teacher_outcome
from tests.support.paths import ROOT
from tests.support.peft_kinds import CASES, INITIALISATIONS, KINDS, tiny_adapter, tiny_llama
from tokenuq_ml.models.adapter_kinds import REFUSED_KINDS, SUPPORTED_KINDS, UNCHANGED_BASE, base_tensors

pytestmark = pytest.mark.slow

USES = ("score", "train", "default teacher", "BALD")
"""Columns of the table."""
EACH_TIME = {
    *("LORA", "ADALORA", "IA3", "LN_TUNING", "OFT", "PREFIX_TUNING", "PROMPT_TUNING", "TRAINABLE_TOKENS", "VERA"),
    *("XLORA", "use_dora", "target_modules: lm_head", "target_modules: embed_tokens, tied", "modules_to_save"),
    *("target_parameters: experts", 'bias="all"', "two active adapters", "model.add_adapter"),
    *("SHADOW", "ADAPTION_PROMPT", "POLY", "LILY", "alora_invocation_tokens", "kasa_config", "layer_replication"),
    *(True, False, "gaussian", "pissa", "loftq"),
}
"""Adapters and initialisations that `make test` looks at: the most used, and one per reason of a refusal.
`make test-heavy` looks at all."""


def cases(names):
    return [name if name in EACH_TIME else pytest.param(name, marks=pytest.mark.heavy) for name in names]


def documented() -> dict[str, dict[str, str]]:
    """Return the cells of the table's rows, by adapter and use."""
    section = (ROOT / "docs" / "library.md").read_text().partition("## Adapters")[2].partition("\n## ")[0]
    rows: dict[str, dict[str, str]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([^`]+)`", cells[0])
        if line.startswith("| `") and len(cells) == 1 + len(USES):
            rows |= {name: dict(zip(USES, cells[1:], strict=True)) for name in names}
    return rows


def initialisation_name(init: object) -> str:
    return f'init_lora_weights="{init}"' if isinstance(init, str) else f"init_lora_weights={init}"


def test_the_table_has_every_kind_and_initialisation_of_the_installed_peft():
    assert set(documented()) == {*CASES, *map(initialisation_name, INITIALISATIONS)}
    assert set(KINDS) == {kind.value for kind in PeftType} == SUPPORTED_KINDS | set(REFUSED_KINDS)
    (declared,) = (field.type for field in fields(LoraConfig) if field.name == "init_lora_weights")
    values = {True, False, *typing.get_args(typing.get_args(typing.get_type_hints(LoraConfig)["init_lora_weights"])[1])}
    assert declared and values <= set(INITIALISATIONS)
    # Not among the declared values, but accepted.
    assert set(INITIALISATIONS) - values == {"lora_ga"}


@pytest.mark.parametrize("name", cases(CASES))
def test_an_adapter_gives_the_numbers_of_plain_peft_or_is_refused(name):
    got = outcomes(CASES[name].make, CASES[name].base)
    assert {use: "refused" if message else "yes" for use, message in got.items()} == documented()[name]
    for message in got.values():
        # One or two sentences: what is wrong, and what to do.
        assert message is None or (";" in message and len(message) < 400)


@pytest.mark.parametrize("init", cases(INITIALISATIONS), ids=str)
def test_an_initialisation_that_changes_the_base_model_is_refused_as_teacher(init):
    case, expected = INITIALISATIONS[init], documented()[initialisation_name(init)]
    message = teacher_outcome(case.make, case.base)
    assert ("refused" if message else "yes") == expected["default teacher"]
    model = case.make()
    with torch.no_grad(), model.disable_adapter():
        ids = torch.arange(3, 12)[None]
        same = torch.equal(model(input_ids=ids).logits, case.base()(input_ids=ids).logits)
    # LoftQ needs an accelerator, and is only said to be used here.
    assert same == (init in UNCHANGED_BASE or init == "loftq")
    assert message is None or ("merge it first" in message and "teacher=SeparateTeacher" in message)
    assert score_outcome(case.make) is None and bald_outcome(case.make) is None


@pytest.mark.parametrize("kind", cases(sorted(SUPPORTED_KINDS)))
def test_the_base_models_tensors_are_told_from_the_adapters(kind):
    ours = base_tensors(tiny_adapter(kind))
    theirs = dict(tiny_llama().named_parameters())
    assert len(ours) == len(theirs)
    for tensor in theirs.values():
        assert any(tensor.shape == own.shape and torch.equal(tensor, own) for own in ours.values())
