"""Complete models in place of adapters: stored, attached, switched and put back."""

import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_model
from tokenuq_ml.config import TrainSpec
from tokenuq_ml.data.batching import collate
from tokenuq_ml.models.adapters import (
    adapter_digest,
    adapter_settings,
    add_trained_weights,
    attach_adapter,
    put_adapter_weights,
    save_adapter,
    use_adapter,
)
from tokenuq_ml.models.float32_passes import float32_passes
from tokenuq_ml.models.forward import head_of, hidden_states
from tokenuq_ml.models.load import load_model
from tokenuq_ml.scoring.adapter_ensemble import ensemble_uncertainty
from tokenuq_ml.scoring.teacher_change import teacher_change

FULL = TrainSpec(adapter="none")
TRAIN = examples(4)
BATCH = collate(TRAIN)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model and two that were trained from it, each with an output layer of its own."""
    path = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        model = tiny_model(seed=0)
        torch.manual_seed(seed)
        if seed:
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
        save_adapter(model, path / name)
    return path


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        head, hidden_BTD = head_of(model), hidden_states(model, BATCH.model_inputs)
        return head.finish(head.product(hidden_BTD))


def alone(folders, name: str) -> torch.Tensor:
    return logits(load_model(folders / name, "float32")[0])


def test_all_weights_are_trained_and_the_seed_is_set():
    model = add_trained_weights(tiny_model(), FULL, 3)
    drawn = torch.rand(1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    add_trained_weights(tiny_model(), FULL, 3)
    assert torch.equal(torch.rand(1), drawn)


def test_weights_are_switched_as_adapters_are(folders):
    model = attach_adapter(load_model(folders / "base", "float32")[0], folders / "one", "teacher")
    attach_adapter(model, folders / "two", "other")
    expected = {name: alone(folders, name) for name in ("base", "one", "two")}
    assert torch.equal(logits(model), expected["one"])
    for _ in range(2):
        with use_adapter(model, None):
            assert torch.equal(logits(model), expected["base"])
            with use_adapter(model, "other"):
                assert torch.equal(logits(model), expected["two"])
            assert torch.equal(logits(model), expected["base"])
        with pytest.raises(KeyError), use_adapter(model, "other"):
            raise KeyError
        assert torch.equal(logits(model), expected["one"])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_replaced_by_a_snapshot_and_by_the_base_model(folders):
    model = attach_adapter(load_model(folders / "base", "float32")[0], folders / "one", "default")
    put_adapter_weights(model, "default", folders / "two")
    assert torch.equal(logits(model), alone(folders, "two"))
    put_adapter_weights(model, "default", None)
    assert torch.equal(logits(model), alone(folders, "base"))


@pytest.mark.heavy
def test_weights_in_bfloat16_are_switched_inside_float32_passes(folders):
    model = attach_adapter(load_model(folders / "base", "bfloat16")[0], folders / "one", "teacher")
    before = {name: parameter.data for name, parameter in model.named_parameters()}
    with float32_passes(model), use_adapter(model, None):
        found = logits(model)
    base = load_model(folders / "base", "bfloat16")[0].float()
    assert torch.allclose(found, logits(base), atol=1e-5)
    assert all(parameter.data_ptr() == before[name].data_ptr() for name, parameter in model.named_parameters())


def test_the_digest_is_that_of_the_tensors_and_differs_between_models(folders, tmp_path):
    save_adapter(load_model(folders / "one", "float32")[0], tmp_path / "again")
    assert adapter_digest(tmp_path / "again") == adapter_digest(folders / "one") != adapter_digest(folders / "two")
    assert adapter_settings(folders / "one") == adapter_settings(folders / "two") == {}


def test_the_change_of_a_teacher_compares_each_model_with_its_own_head(folders):
    model = attach_adapter(load_model(folders / "base", "float32")[0], folders / "one", "teacher")
    found = teacher_change(model, TRAIN, FLOAT32)["change"].to_numpy()
    teacher, base = (alone(folders, name).log_softmax(-1) for name in ("one", "base"))
    kl_BT = (teacher.exp() * (teacher - base)).sum(-1)
    expected = torch.cat([row[[p - 1 for p in one.positions]] for row, one in zip(kl_BT, BATCH.examples, strict=True)])
    assert found == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)


def test_an_ensemble_of_models_mixes_the_distributions_of_their_own_heads(folders):
    model = attach_adapter(load_model(folders / "base", "float32")[0], folders / "one", "teacher")
    attach_adapter(model, folders / "two", "teacher_s1")
    found = ensemble_uncertainty(model, ["teacher", "teacher_s1"], TRAIN, FLOAT32)["bald"].to_numpy()
    p = torch.stack([alone(folders, name).softmax(-1) for name in ("one", "two")])
    entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    bald_BT = entropy(p.mean(0)) - entropy(p).mean(0)
    expected = torch.cat(
        [row[[q - 1 for q in one.positions]] for row, one in zip(bald_BT, BATCH.examples, strict=True)]
    )
    assert found == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)
