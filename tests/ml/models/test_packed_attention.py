"""Documents of a long packed row are attended to one by one, as each alone, without a mask of the row."""

import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import ARCHITECTURES, FLOAT32, tiny_architecture, tiny_model, tiny_peft
from tests.support.training import MASKED, training_setup
from tokenuq_ml.config import LoraSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models import packed_attention
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.packed_attention import can_be_separated, separated_documents
from tokenuq_ml.training import trainer
from tokenuq_ml.training.trainer import train

LENGTHS = (11, 7, 13, 1, 8)


def row():
    """A packed row of five documents, and the position of each token."""
    ids = torch.arange(sum(LENGTHS)) % 97
    return ids[None], torch.cat([torch.arange(length) for length in LENGTHS])[None]


def alone(model, ids_BT):
    """The hidden states of each document on its own."""
    parts = ids_BT[0].split(LENGTHS)
    return torch.cat([model.base_model(input_ids=part[None]).last_hidden_state[0] for part in parts])


@pytest.fixture
def dense_masks(monkeypatch):
    """The masks that transformers makes inside."""
    made = []
    mask = packed_attention.sdpa_mask
    monkeypatch.setattr(packed_attention, "sdpa_mask", lambda *a, **k: made.append(mask(*a, **k)) or made[-1])
    return made


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ("gemma2", "mamba")])
@torch.no_grad()
def test_documents_are_as_alone(kind, dense_masks):
    """Also with windows that are shorter than a document, where transformers makes the mask."""
    model, (ids_BT, positions_BT) = tiny_architecture(kind), row()
    window = getattr(model.config, "sliding_window", None)
    assert can_be_separated(model, FLOAT32)
    dense_masks.clear()
    with separated_documents(model, longer_than=0):
        states = model.base_model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).last_hidden_state[0]
        assert bool(dense_masks) == (window is not None and window < max(LENGTHS))
    torch.testing.assert_close(states, alone(model, ids_BT), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_short_rows_and_rows_of_one_document_keep_the_mask_of_transformers(dense_masks):
    model, (ids_BT, positions_BT) = tiny_model(), row()
    with separated_documents(model, longer_than=ids_BT.shape[1]):
        model.base_model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False)
        assert dense_masks.pop().shape[-2:] == (40, 40)
    with separated_documents(model, longer_than=0):
        model.base_model(input_ids=ids_BT, use_cache=False)
        assert dense_masks == [None]
        padding = torch.ones_like(ids_BT)
        padding[0, -3:] = 0
        model.base_model(input_ids=ids_BT, attention_mask=padding, position_ids=positions_BT, use_cache=False)
        assert dense_masks[-1].dtype == torch.bool


@torch.no_grad()
def test_a_model_that_hands_the_mask_to_pytorch_itself_is_not_separated(monkeypatch):
    model = tiny_model()

    def own(module, query, key, value, attention_mask, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask)
        return out.transpose(1, 2), None

    monkeypatch.setattr(packed_attention, "_attention", own)
    assert not can_be_separated(model, FLOAT32)
    model.set_attn_implementation("eager")
    assert not can_be_separated(model, FLOAT32)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_on_long_rows_is_that_on_masked_rows(checkpointing, tmp_path, monkeypatch, dense_masks):
    models = []
    for limit in (10_000, 8):
        monkeypatch.setattr(trainer, "LONG_ROW", limit)
        setup = training_setup(MASKED, epochs=1)
        setup.train = setup.train.model_copy(update={"batching": "pack", "gradient_checkpointing": checkpointing})
        models.append(tiny_peft(dropout=0.2))
        train(models[-1], setup, tmp_path / str(limit), RecordingReporter(), "x")
    assert dense_masks and all(mask is None for mask in dense_masks)
    for (name, own), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_forty_thousand_tokens_train_in_one_row(tmp_path, dense_masks):
    """Eighty documents of 500 tokens, packed and recomputed: a mask of the row would be 1.6 GB."""
    model = add_adapter(tiny_model(), LoraSpec(rank=2, alpha=4, dropout=0.0), 0)
    rows = [long_text(number, 500) for number in range(80)]
    recorder = train(model, long_setup(rows, batch_size=80), tmp_path, RecordingReporter(), "x")
    assert recorder.training_log()["tokens"].to_list() == [640] and recorder.batching == "pack"
    assert all(mask is None or mask.shape[-1] < 1000 for mask in dense_masks)


@pytest.mark.heavy
def test_a_text_beyond_32_thousand_tokens_trains(tmp_path):
    model = tiny_model()
    del model.model.layers[1:]
    model = add_adapter(model, LoraSpec(rank=2, alpha=4, dropout=0.0), 0)
    recorder = train(model, long_setup([long_text(0, 33_000)], batch_size=1), tmp_path, RecordingReporter(), "x")
    assert recorder.training_log()["loss"].is_finite().all()


def long_text(number, length):
    """A text whose last eight tokens are its answer."""
    ids = [3 + (7 * number + place) % 90 for place in range(length)]
    return TokenizedExample(f"toy/{number}", "toy", "train", ids, [False] * (length - 8) + [True] * 8)


def long_setup(rows, batch_size):
    setup = training_setup(MASKED, epochs=1)
    setup.examples = rows
    keys = {"batching": "pack", "gradient_checkpointing": True, "batch_size": batch_size, "micro_batch_size": None}
    setup.train = setup.train.model_copy(update=keys)
    return setup
