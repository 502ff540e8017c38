"""Training without an adapter, and with DoRA: the objective in plain PyTorch, its teachers, and what resumes."""

from functools import partial

import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_model
from tests.support.training import PAPER, kill_training, training_setup
from tokenuq_ml.config import LoraSpec, TrainSpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.training_loss import training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision
from tokenuq_ml.models.adapters import add_trained_weights, attach_adapter, put_adapter_weights, save_adapter
from tokenuq_ml.models.forward import accept_token_function, head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.training.teacher import SeparateTeacher
from tokenuq_ml.training.teacher_cache import CachedTeacher, TeacherCache, cache_bytes
from tokenuq_ml.training.trainer import train

BFLOAT16 = Numerics("cpu", torch.bfloat16, 1, "test")
DIGESTS = {"dataset_digest": "d", "teacher_digest": "t"}
FULL = TrainSpec(adapter="none")
DORA = TrainSpec(adapter="dora", lora=LoraSpec(rank=4, alpha=8, dropout=0.1))


def other_model():
    """A teacher whose head is not the student's."""
    model = tiny_model()
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def setup_with(teacher, **options):
    setup = training_setup(save_steps=1, snapshot_fractions=(0.5,), **options)
    setup.train = setup.train.model_copy(update={"adapter": "none", "learning_rate": 1e-3})
    setup.teacher = teacher
    return setup


def cached(folder, teacher, rows):
    with TeacherCache(folder, rows, head_of(teacher), **DIGESTS, shared_head=False) as cache:
        for row in rows:
            batch = collate([row])
            with torch.no_grad():
                cache.put(row.example_id, batch.predicting(hidden_states(teacher, batch.model_inputs)))
    return CachedTeacher(folder, "cpu", **DIGESTS, distillation=PAPER.rest.distill)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(teacher, folder, seed=0, **options):
    model = add_trained_weights(tiny_model(), FULL, seed)
    recorder = train(model, setup_with(teacher, **options), folder, RecordingReporter(), "x")
    return model, recorder


def test_a_step_follows_the_gradient_of_the_plain_objective(tmp_path):
    """Of all weights, the tied output layer too, against AdamW in plain PyTorch."""
    teacher = other_model()
    got, recorder = trained(SeparateTeacher(teacher, FLOAT32), tmp_path, count=4, epochs=1, micro=4)
    model = add_trained_weights(tiny_model(), FULL, 0)
    batch = collate(sorted(examples(4), key=lambda one: len(one.input_ids)))
    logits = model(input_ids=batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]
    with torch.no_grad():
        theirs = teacher(input_ids=batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]
    ce = torch.nn.functional.cross_entropy(logits, batch.label_N, reduction="none")
    kl = torch.nn.functional.kl_div(
        logits.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    top = torch.zeros_like(ce, dtype=torch.bool)
    top[ce.detach().topk(count_selected(0.25, len(ce))).indices] = True
    loss = torch.where(top, ce, kl).mean()
    assert recorder.log_rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert recorder.log_rows[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    before = weights(tiny_model())
    moved = {name: parameter - before[name] for name, parameter in weights(got).items()}
    for name, parameter in model.named_parameters():
        # Adam's first step is the learning rate in the direction of the gradient's sign.
        clear = parameter.grad.abs() > 1e-6
        assert clear.any() and torch.equal(moved[name].sign()[clear], -parameter.grad.sign()[clear]), name


@pytest.mark.heavy
def test_a_cached_teacher_with_a_head_of_its_own_trains_as_the_online_one(tmp_path):
    rows, teacher = examples(11), other_model()
    source = cached(tmp_path / "cache", teacher, rows)
    assert source.form == "hidden_states" and torch.equal(source.head.weight_VD, teacher.lm_head.weight)
    from_cache, one = trained(source, tmp_path / "a")
    online, two = trained(SeparateTeacher(teacher, FLOAT32), tmp_path / "b")
    losses = [[row["loss"] for row in recorder.log_rows] for recorder in (one, two)]
    # Cached states are bfloat16.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert one.costs.trains_base and one.costs.lora_rank == 0 and one.log_rows[0]["lora_rank"] is None
    with_the_students_head = cached(tmp_path / "cache", teacher, rows)
    with_the_students_head.head = None
    with pytest.raises(InputError, match="the student trains or adapts its own"):
        trained(with_the_students_head, tmp_path / "c")


def test_the_size_of_a_cache_with_a_head_is_computed_exactly(tmp_path):
    rows, teacher = examples(5), other_model()
    cached(tmp_path, teacher, rows)
    tokens = sum(len(row.positions) for row in rows)
    size = cache_bytes(tokens, head_of(teacher), shared_head=False)
    files = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size < files < size + 1000


@pytest.mark.heavy
@pytest.mark.parametrize("spec", [FULL, DORA], ids=["none", "dora"])
def test_a_training_that_was_killed_resumes_with_the_same_result(spec, tmp_path):
    def setup():
        made = training_setup(save_steps=1, snapshot_fractions=(0.5,))
        made.teacher = SeparateTeacher(other_model(), FLOAT32)
        made.train = made.train.model_copy(update={"adapter": spec.adapter, "learning_rate": 1e-3})
        return made

    models = [add_trained_weights(tiny_model(), spec, 0) for _ in range(3)]
    train(models[0], setup(), tmp_path / "a", RecordingReporter(), "x")
    kill_training(4, models[1], setup(), tmp_path / "b")
    reporter = RecordingReporter()
    train(models[2], setup(), tmp_path / "b", reporter, "x")
    assert any("resuming from step" in line for line in reporter.lines)
    ours, expected = weights(models[2]), weights(models[0])
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    snapshots = [sorted((tmp_path / run / "snapshots").rglob("*.safetensors")) for run in "ab"]
    assert len(snapshots[0]) == 1 and snapshots[0][0].read_bytes() == snapshots[1][0].read_bytes()


@pytest.mark.heavy
def test_weights_stay_float32_while_passes_are_bfloat16(tmp_path):
    """Steps of 1e-5 would be rounded off in bfloat16."""
    setup = setup_with(SeparateTeacher(other_model().bfloat16(), BFLOAT16))
    setup.numerics = BFLOAT16
    setup.train = setup.train.model_copy(update={"learning_rate": 1e-5, "warmup_ratio": 0.0})
    model = add_trained_weights(tiny_model(), FULL, 0)
    before = weights(model)
    train(model, setup, tmp_path, RecordingReporter(), "x")
    moved = [(parameter - before[name]).abs().max() for name, parameter in model.named_parameters()]
    assert {p.dtype for p in model.parameters()} == {torch.float32} and 0 < max(moved) < 1e-3
    assert min(moved) > 0


def test_a_trained_head_is_multiplied_in_the_dtype_of_autocast():
    """As the output layer of the model's own forward pass is."""
    batch, found = collate(examples(4)), []
    for ours in (True, False):
        model = add_trained_weights(tiny_model(), FULL, 0)
        with accept_token_function(model), torch.autocast("cpu", torch.bfloat16):
            if ours:
                loss = model(**batch.model_inputs, token_function=partial(summed_loss, batch))
            else:
                logits = model(input_ids=batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]
                loss = torch.nn.functional.cross_entropy(logits.float(), batch.label_N)
        loss.backward()
        found.append((loss.item(), weights_of_gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, gradient in found[1][1].items():
        assert (found[0][1][name] - gradient).norm() <= 0.02 * gradient.norm(), name


def summed_loss(batch, states, head):
    assert head.weight_VD.dtype == torch.bfloat16
    everything = BatchDecision.of_weights(torch.full_like(batch.label_N, 1.0, dtype=torch.float32), 0 * batch.label_N)
    return training_loss(batch.predicting(states), head, batch.label_N, everything).total / len(batch.label_N)


def weights_of_gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_dora_adapter_keeps_its_factors_and_is_fresh_again(tmp_path):
    model = add_trained_weights(tiny_model(), DORA, 0)
    rows = collate(examples(4))
    with torch.no_grad():
        fresh = hidden_states(model.eval(), rows.model_inputs)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter += 0.1 * torch.rand_like(parameter)
        changed = hidden_states(model, rows.model_inputs)
        save_adapter(model, tmp_path)
        again = attach_adapter(tiny_model(), tmp_path, "student")
        assert torch.equal(hidden_states(again, rows.model_inputs), changed)
        narrow = attach_adapter(tiny_model().bfloat16(), tmp_path, "student")
        kinds = {"magnitude" in name: p.dtype for name, p in narrow.named_parameters() if "lora" in name}
        assert kinds == {True: torch.float32, False: torch.bfloat16}
        put_adapter_weights(again, "student", None)
        assert torch.allclose(hidden_states(again, rows.model_inputs), fresh, atol=1e-5)
        put_adapter_weights(again, "student", tmp_path)
        assert torch.equal(hidden_states(again, rows.model_inputs), changed)
