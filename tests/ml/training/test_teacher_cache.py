"""The cache of a teacher's states holds what the online teacher returns, and is written completely or not at all."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tokenuq_ml.config import DistillSpec
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.training.online_marker import read_online_reason, write_online_marker
from tokenuq_ml.training.teacher import OnlineTeacher
from tokenuq_ml.training.teacher_cache import (
    HIDDEN_FILE,
    CachedTeacher,
    TeacherCache,
    cache_bytes,
)

FORWARD = DistillSpec()
DIGESTS = {"dataset_digest": "d", "teacher_digest": "t"}


def write_cache(folder, model, rows, adapter="default"):
    """Write the cache of an adapter's states, and return the online teacher that they came from."""
    online = OnlineTeacher(adapter, FLOAT32)
    with TeacherCache(folder, rows, head_of(model), **DIGESTS) as cache:
        # In another order than that of the file.
        for example in rows[::-1]:
            cache.put(example.example_id, online.states(model, collate([example])).hidden_ND)
    return online


def test_cached_states_equal_online_within_bfloat16(tmp_path):
    rows, model = examples(5), tiny_peft()
    online = write_cache(tmp_path, model, rows)
    cached = CachedTeacher(tmp_path, "cpu", **DIGESTS)
    batch = collate([rows[3], rows[1], rows[4]])
    stored, expected = cached.states(model, batch).hidden_ND, online.states(model, batch).hidden_ND
    torch.testing.assert_close(stored.float(), expected, rtol=2**-8, atol=1e-3)
    distil_all = BatchDecision.of_weights(torch.zeros(batch.tokens), torch.ones(batch.tokens))

    def divergences(states):
        term = TeacherTerm(states)
        return training_loss(expected, head_of(model), batch.label_N, distil_all, teacher=term).divergence_N

    for distil in (None, FORWARD):
        states = CachedTeacher(tmp_path, "cpu", **DIGESTS, distillation=distil).states(model, batch)
        assert divergences(states).max() < 0.01
    # With the states of other tokens it is far above the bound.
    other = TeacherStates(expected.roll(1, 0))
    assert divergences(other).max() > 0.1


def test_cached_mean_embeddings_equal_online(tmp_path):
    rows, model = examples(5), tiny_peft()
    online = write_cache(tmp_path, model, rows)
    cached = CachedTeacher(tmp_path, "cpu", **DIGESTS, distillation=FORWARD)
    batch = collate([rows[3], rows[1], rows[4]])
    hidden = online.states(model, batch).hidden_ND
    expected = mean_embeddings(hidden, head_of(model)).states(hidden)
    got = cached.states(model, batch)
    torch.testing.assert_close(got.mean_ND, expected.mean_ND)
    torch.testing.assert_close(got.offset_N, expected.offset_N)


@pytest.mark.parametrize(
    "distil, form",
    [
        (FORWARD, "mean_embeddings"),
        (DistillSpec(divergence="reverse_kl"), "hidden_states"),
        (DistillSpec(temperature=2.0), "hidden_states"),
        (None, "hidden_states"),
    ],
)
def test_mean_embeddings_are_read_only_for_forward_kl_at_temperature_1(tmp_path, distil, form):
    write_cache(tmp_path, tiny_peft(), examples(2))
    assert CachedTeacher(tmp_path, "cpu", **DIGESTS, distillation=distil).form == form


def test_the_cache_of_a_head_that_soft_caps_has_only_hidden_states(tmp_path):
    write_cache(tmp_path, tiny_peft("gemma2"), examples(2))
    assert set(load_file(tmp_path / HIDDEN_FILE)) == {"hidden_ND"}
    assert CachedTeacher(tmp_path, "cpu", **DIGESTS, distillation=FORWARD).form == "hidden_states"


def test_the_cache_is_a_safetensors_file_in_the_order_of_ids(tmp_path):
    rows, model = examples(4), tiny_peft()
    online = write_cache(tmp_path, model, rows)
    tensors = load_file(tmp_path / HIDDEN_FILE)
    expected = torch.cat([online.states(model, collate([row])).hidden_ND for row in rows])
    assert torch.equal(tensors["hidden_ND"], expected.bfloat16())
    assert tensors["mean_ND"].shape == expected.shape and tensors["offset_N"].shape == expected.shape[:1]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_size_of_a_cache_is_computed_exactly(tmp_path, kind):
    rows, model = examples(4), tiny_peft(kind)
    write_cache(tmp_path, model, rows)
    stored = load_file(tmp_path / HIDDEN_FILE).values()
    expected = sum(tensor.numel() * tensor.element_size() for tensor in stored)
    assert cache_bytes(sum(len(row.positions) for row in rows), head_of(model)) == expected
    assert read_online_reason(tmp_path) is None


def test_a_folder_without_a_cache_holds_the_reason(tmp_path):
    why = write_online_marker(tmp_path / "new", 72_500_000_000, 50_000_000_000)
    assert why == read_online_reason(tmp_path / "new") == "72.5 GB is above the budget of 50 GB"


@pytest.mark.parametrize("what", ["dataset", "teacher"])
def test_a_cache_of_another_dataset_or_teacher_raises(tmp_path, what):
    write_cache(tmp_path, tiny_peft(), examples(2))
    with pytest.raises(ValueError, match=f"holds states for {what} .*materialise teacher_hidden again"):
        CachedTeacher(tmp_path, "cpu", **{**DIGESTS, f"{what}_digest": "other"})


def test_an_incomplete_cache_leaves_no_file(tmp_path):
    rows, model = examples(2), tiny_peft()
    with (
        pytest.raises(ValueError, match="states of 2 examples were not put"),
        TeacherCache(tmp_path, rows, head_of(model), **DIGESTS),
    ):
        pass
    with pytest.raises(KeyError), TeacherCache(tmp_path, rows, head_of(model), **DIGESTS) as cache:
        cache.put("another", torch.zeros(1, 32))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_student_with_another_head_than_the_caches_is_refused(options, tmp_path):
    write_cache(tmp_path, tiny_peft(), examples(2))
    cached = CachedTeacher(tmp_path, "cpu", **DIGESTS)
    cached.prepare(tiny_peft())
    with pytest.raises(InputError, match="the student trains or adapts its own"):
        cached.prepare(get_peft_model(tiny_model(), LoraConfig(**{"target_modules": ["q_proj"], **options})))
