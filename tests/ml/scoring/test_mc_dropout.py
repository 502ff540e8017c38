"""Token losses equal a plain Hugging Face forward pass; Monte-Carlo dropout follows its definition."""

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.attention_dropout import attention_dropout
from tokenuq_ml.models.dropout_passes import monte_carlo_dropout, sample_hidden_states
from tokenuq_ml.models.forward import head_of, hidden_states
from tokenuq_ml.models.keyed_masks import KeyedDropout, KeyedMasks
from tokenuq_ml.scoring import mc_dropout
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_scores_equal_those_of_a_plain_forward_pass(kind):
    """The reference runs one example at a time and keeps all logits. Soft-capping is trap 1."""
    model, rows = tiny_model(kind), examples(9)
    table = score_examples(model, rows, FLOAT32, max_tokens=60).sort("example_id", "position")
    expected = []
    for example in rows:
        logits = model(torch.tensor([example.input_ids])).logits[0].double()
        logp = logits.log_softmax(-1)
        for position in example.positions:
            row, label = logp[position - 1], example.input_ids[position]
            expected.append(
                (
                    example.example_id,
                    position,
                    label,
                    -row[label].item(),
                    -(row.exp() * row).sum().item(),
                    int((row > row[label]).sum()),
                )
            )
    expected = pl.DataFrame(
        expected, schema=["example_id", "position", "token_id", "loss", "entropy", "rank"], orient="row"
    ).sort("example_id", "position")
    assert (
        table.select("example_id", "position", "token_id", "rank").rows()
        == expected.select("example_id", "position", "token_id", "rank").rows()
    )
    for column in ("loss", "entropy"):
        assert (table[column] - expected[column]).abs().max() < 1e-3


SPEC = UncertaintySpec(samples=4, dropout=0.3)


def test_bald_is_positive_with_a_trained_adapter_and_zero_with_a_fresh_one():
    """Trap 2: Llama has no dropout, so that `train()` alone would give BALD = 0."""
    rows = examples(4)
    assert token_uncertainty(tiny_peft(), rows, SPEC, FLOAT32)["bald"].max() > 1e-4
    fresh = token_uncertainty(tiny_peft(trained=False), rows, SPEC, FLOAT32)
    # B of a fresh adapter is zero, so that its dropout changes nothing.
    assert fresh["bald"].max() < 1e-6


@pytest.mark.parametrize("mask", ["sequence", "position"])
def test_uncertainty_does_not_depend_on_batching(mask):
    """Trap 16: masks depend on the example, not on batches, order or padding."""
    model, rows = tiny_peft(), examples(7)
    spec = SPEC.model_copy(update={"mask": mask})
    keys = ["example_id", "position"]
    together = token_uncertainty(model, rows, spec, FLOAT32, max_tokens=500).sort(keys)
    torch.manual_seed(3)
    alone = token_uncertainty(model, rows[::-1], spec, FLOAT32, max_tokens=1).sort(keys)
    for column in ("predictive_entropy", "expected_entropy", "bald", "mc_loss"):
        assert (together[column] - alone[column]).abs().max() < 1e-5, column


def test_batches_shrink_with_more_samples_to_keep_the_memory(monkeypatch):
    """Hidden states of all samples of a batch stay within the budget, and the results do not change."""
    model, rows, keys, held = tiny_peft(), examples(7), ["example_id", "position"], []
    expected = token_uncertainty(model, rows, SPEC, FLOAT32).sort(keys)
    monkeypatch.setattr(mc_dropout, "STATES_BYTES", 30 * SPEC.samples * 32 * 4)
    original = mc_dropout.sample_hidden_states

    def counted(*args):
        hidden_KND = original(*args)
        held.append(hidden_KND.nbytes)
        return hidden_KND

    monkeypatch.setattr(mc_dropout, "sample_hidden_states", counted)
    got = token_uncertainty(model, rows, SPEC, FLOAT32).sort(keys)
    assert (got["bald"] - expected["bald"]).abs().max() < 1e-5
    assert len(held) > 3 and max(held) <= mc_dropout.STATES_BYTES


def test_bald_is_the_mean_divergence_from_the_mean_prediction():
    model, rows = tiny_peft(), examples(3)
    table = token_uncertainty(model, rows, SPEC, FLOAT32).sort("example_id", "position")
    batch = collate(rows)
    with monte_carlo_dropout(model, SPEC) as start_pass:
        hidden = sample_hidden_states(model, batch, start_pass, SPEC.samples, FLOAT32)
    p = torch.softmax(hidden.double() @ head_of(model).weight_VD.double().T, -1)
    bald = (p * (p / p.mean(0)).log()).sum(-1).mean(0)
    expected = (
        pl.DataFrame(batch.keys, schema=["example_id", "position"], orient="row")
        .with_columns(bald=bald.numpy())
        .sort("example_id", "position")
    )
    assert (table["bald"] - expected["bald"]).abs().max() < 1e-6
    assert (table["predictive_entropy"] - table["expected_entropy"] - table["bald"]).abs().max() < 1e-6
    assert table["n_samples"].unique().to_list() == [4]


def test_a_seed_repeats_its_results_and_another_seed_differs():
    model, rows = tiny_peft(), examples(3)
    first, again = (token_uncertainty(model, rows, SPEC, FLOAT32) for _ in range(2))
    other = token_uncertainty(model, rows, SPEC.model_copy(update={"seed": 1}), FLOAT32)
    assert first.equals(again) and not first["bald"].equals(other["bald"])


def test_dropouts_are_restored_and_other_dropouts_stay_off():
    """GPT-2 has dropouts of its own."""
    model = tiny_peft("gpt2", dropout=0.25)
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    model.train()
    with monte_carlo_dropout(model, SPEC) as start_pass:
        start_pass(0, ["a"])
        assert not any(m.training for m in model.modules())
        assert any(isinstance(m, KeyedDropout) for m in model.modules())
    assert model.training and not any(isinstance(m, KeyedDropout) for m in model.modules())
    assert [m for m in model.modules() if isinstance(m, torch.nn.Dropout)] == dropouts


class TestAttentionDropout:
    SPEC = UncertaintySpec(samples=4, dropout=0.3, attention_dropout=0.2)

    @pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
    def test_gives_bald_without_lora_dropout(self, kind):
        """B of a fresh adapter is zero, so that LoRA dropout changes nothing."""
        model, rows = tiny_peft(kind, trained=False), examples(3)
        assert token_uncertainty(model, rows, self.SPEC, FLOAT32)["bald"].max() > 1e-4
        assert token_uncertainty(model, rows, SPEC, FLOAT32)["bald"].max() < 1e-6

    @pytest.mark.parametrize("mask", ["sequence", "position"])
    def test_does_not_depend_on_batching(self, mask):
        model, rows, keys = tiny_peft(), examples(7), ["example_id", "position"]
        spec = self.SPEC.model_copy(update={"mask": mask})
        together = token_uncertainty(model, rows, spec, FLOAT32, max_tokens=500).sort(keys)
        alone = token_uncertainty(model, rows[::-1], spec, FLOAT32, max_tokens=1).sort(keys)
        for column in ("predictive_entropy", "expected_entropy", "bald", "mc_loss"):
            assert (together[column] - alone[column]).abs().max() < 1e-5, column

    @pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
    def test_equals_the_models_own_attention_if_nothing_is_dropped(self, kind):
        model, batch = tiny_model(kind), collate(examples(3))
        expected = batch.predicting(hidden_states(model, batch.model_inputs))
        masks = KeyedMasks(UncertaintySpec(attention_dropout=0.0))
        masks.start_pass(0, [example.example_id for example in batch.examples])
        before = model.config._attn_implementation
        with attention_dropout(model, masks):
            got = batch.predicting(hidden_states(model, batch.model_inputs))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert model.config._attn_implementation == before


def test_a_model_without_lora_is_rejected():
    from peft import IA3Config, get_peft_model

    model = get_peft_model(tiny_model(), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(InputError, match="BALD would be 0"), monte_carlo_dropout(model, SPEC):
        pass


def test_an_adapter_on_embeddings_alone_is_refused():
    """PEFT's dropout leaves it fixed, so BALD would be 0 everywhere."""
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["embed_tokens"]))
    with (
        pytest.raises(InputError, match=r"1 of lora.Embedding, which it does not sample: .* uncertainty of nothing"),
        monte_carlo_dropout(model, UncertaintySpec(samples=2)),
    ):
        pass
