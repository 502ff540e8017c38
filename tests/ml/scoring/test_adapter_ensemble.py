"""BALD of an ensemble through one base model equals that of separate models with all logits in float64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.scoring import adapter_ensemble
from tokenuq_ml.scoring.adapter_ensemble import ensemble_uncertainty, shared_head

MEMBERS = ("teacher", "teacher_s1", "teacher_s2")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """One base model with three adapters, and three models with one each."""
    folder, base, alone = tmp_path_factory.mktemp("members"), tiny_model(), []
    for seed, name in enumerate(MEMBERS):
        alone.append(tiny_peft(seed=3 * seed).eval())
        alone[-1].save_pretrained(folder / name)
        base = attach_adapter(base, folder / name, name)
    return base, alone


def plain_scores(models, row) -> tuple[torch.Tensor, torch.Tensor]:
    """`H[mean p] - mean H[p]` and `H[mean p]` of a row's response tokens."""
    at, p = [position - 1 for position in row.positions], []
    for model in models:
        with torch.no_grad():
            p.append(model(input_ids=torch.tensor([row.input_ids])).logits[0, at].double().softmax(-1))
    p_KNV = torch.stack(p)
    entropy = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
    predictive = entropy(p_KNV.mean(0))
    return predictive - entropy(p_KNV).mean(0), predictive


@pytest.mark.parametrize("states_bytes", [1, 2**28])
def test_one_base_model_gives_what_separate_models_give(ensemble, states_bytes, monkeypatch):
    monkeypatch.setattr(adapter_ensemble, "STATES_BYTES", states_bytes)
    model, alone = ensemble
    rows, counted = examples(5), []
    found = ensemble_uncertainty(model, MEMBERS, rows, FLOAT32, counted.append)
    doubles = [one.double() for one in alone]
    for row in rows:
        bald, predictive = plain_scores(doubles, row)
        own = found.filter(example_id=row.example_id)
        assert own["position"].to_list() == row.positions
        assert own["bald"].to_list() == pytest.approx(bald.tolist(), rel=1e-4, abs=1e-6)
        assert own["predictive_entropy"].to_list() == pytest.approx(predictive.tolist(), rel=1e-5)
    assert found["n_samples"].unique().to_list() == [3] and found["bald"].min() > 1e-3
    assert sum(counted) == 3 * sum(len(row.input_ids) for row in rows)
    assert model.active_adapter == "teacher"


def test_equal_members_have_no_epistemic_uncertainty(ensemble):
    found = ensemble_uncertainty(ensemble[0], ["teacher", "teacher"], examples(2), FLOAT32)
    assert found["bald"].abs().max() < 1e-6


def test_an_adapter_that_changes_the_output_layer_is_refused(ensemble, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    other = get_peft_model(tiny_model(), config)
    other.base_model.model.lm_head.modules_to_save["default"].weight.data.add_(0.1)
    other.save_pretrained(tmp_path)
    base = attach_adapter(attach_adapter(tiny_model(), tmp_path, "head"), _plain(tmp_path / "plain"), "plain")
    with pytest.raises(InputError, match="'(plain|head)' changes the output layer"):
        shared_head(base, ["plain", "head"])


def _plain(folder):
    tiny_peft().save_pretrained(folder)
    return folder
