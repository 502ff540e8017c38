"""Checks of trainings on hand-made tables: finite numbers, and the share of selected tokens."""

import pytest
import torch
from safetensors.torch import save_file

from tests.support.tiny_store import put
from tokenuq_ml.config import AblationSpec
from tokenuq_pipeline.assets import selection_checks, training_checks
from tokenuq_pipeline.runtime.store import Store

T, F = True, False


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def selections(steps):
    """steps: for each, the tokens' `selected`."""
    return [
        {
            "step": step,
            "epoch": 1.0,
            "example_id": "e",
            "position": position,
            "loss": 1.0,
            "selected": selected,
            "objective": "mle",
        }
        for step, mask in enumerate(steps)
        for position, selected in enumerate(mask)
    ]


@pytest.mark.parametrize(
    "values, selected, weights, passed",
    [
        ({}, {}, {}, True),
        ({"distill_loss": None}, {}, {}, True),  # no token is distilled
        ({"loss": float("nan")}, {}, {}, False),
        ({"grad_norm": float("inf")}, {}, {}, False),
        ({}, {"loss": float("nan")}, {}, False),
        ({}, {}, {"b": torch.tensor([0.0, float("nan"), 1.0])}, False),
        ({}, {}, {"b": torch.tensor([float("-inf")], dtype=torch.bfloat16)}, False),
        ({}, {}, {"b": torch.tensor([float("inf")], dtype=torch.float16)}, False),
        ({}, {}, {"b": torch.tensor([float("nan")], dtype=torch.float64), "c": torch.tensor([-1])}, False),
        ({}, {}, {"b": torch.tensor([3.3e38, -1e-45, 0.0]), "c": torch.tensor([-1])}, True),
        ({}, {}, None, False),  # there are no weights
    ],
)
def test_training_is_finite(store, values, selected, weights, passed):
    log = {"step": 1, "epoch": 1.0, "loss": 1.0, "mle_loss": 1.0, "distill_loss": 0.5, "selected_share": 1.0}
    log |= {"learning_rate": 0.1, "grad_norm": 1.0, "tokens": 2, "lora_rank": 4}
    put(store, "training_log", [log, {**log, "step": 2, **values}], study="s", ablation="a")
    rows = selections([[T, F]])
    put(store, "selections", [rows[0], {**rows[1], **selected}], study="s", ablation="a")
    store.path("adapter").mkdir()
    if weights is not None:
        save_file({"a": torch.ones(2, 3), **weights}, store.path("adapter") / "adapter_model.safetensors")
    check = training_checks.training_is_finite_check("s", "a", "adapter", "training_log", "selections")
    result = check.evaluate(store)
    assert result.passed is passed
    assert passed or weights is None or result.metadata["not_finite"].value == 1


@pytest.mark.parametrize(
    "select, steps, passed",
    [
        ("all", [[T, T], [T]], True),
        ("all", [[T, T], [F]], False),
        ({"by": "loss", "quantile": 0.25}, [[T, F, F, F], [T, T, F, F, F]], True),  # ceil(1.25) = 2
        ({"by": "loss", "quantile": 0.25}, [[T, F, F, F], [T, F, F, F, F]], False),
        ({"by": "loss", "quantile": 0.25}, [[T, T, F, F], [F, F, F, F]], False),  # right in total, wrong in each step
        ({"by": "loss", "quantile": 0.1}, [[T] * 3 + [F] * 27], True),  # 0.1 * 30 is above 3 in binary
        ({"by": "loss", "quantile": 0.5, "scope": "dataset"}, [[T, T, F, F], [T, T, F, F]], True),
        ({"by": "loss", "quantile": 0.5, "scope": "dataset"}, [[T, T, F, F], [F, F, T, T]], False),
        ({"by": "loss", "quantile": 0.5, "scope": "dataset"}, [[T, T, T, F]], False),
    ],
)
def test_selected_share(store, select, steps, passed):
    put(store, "selections", selections(steps), study="s", ablation="a")
    ablation = AblationSpec(name="a", select=select)
    assert selection_checks.selected_share_check("s", ablation).evaluate(store).passed is passed
