"""Training: the objective of an optimiser batch, its logs, and restarts that change nothing."""

import os
import random
import signal
from dataclasses import replace

import polars as pl
import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.training import MASKED, MLE, PAPER, lora_weights, plain_objective, training_setup
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.batching import LengthBucketSampler, collate
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.models.forward import accept_token_function, head_of
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.training.checkpoints import MARKER, latest_checkpoint
from tokenuq_ml.training.teacher import OnlineTeacher
from tokenuq_ml.training.teacher_cache import CachedTeacher, TeacherCache
from tokenuq_ml.training.token_columns import TokenColumns
from tokenuq_ml.training.trainer import train


def weighted(rows, seed=0):
    """Return the examples with token weights between 0 and 2; every third example keeps none."""
    draw = random.Random(seed)
    return [
        row if number % 3 == 2 else replace(row, weights=[draw.choice([0.25, 1.0, 2.0]) for _ in row.input_ids])
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("weights", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("ablation", [MLE, MASKED, PAPER], ids=lambda a: a.name)
def test_training_equals_a_plain_loop(ablation, weights, tmp_path):
    """Two epochs by Trainer and by twenty lines of PyTorch end in the same adapter."""
    ours = tiny_peft(trained=True)
    s = training_setup(ablation)
    if weights:
        s = replace(s, examples=weighted(s.examples))
    recorder = train(ours, s, tmp_path, RecordingReporter(), "x")
    plain = tiny_peft(trained=True)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    sampler = LengthBucketSampler([len(e.input_ids) for e in s.examples], 4, 4, 0)
    losses, step = [], 0
    warmup = round(s.train.warmup_ratio * s.steps)
    for epoch in range(2):
        for indices in sampler.optimiser_batches(epoch):
            rate = step / warmup if step < warmup else (s.steps - step) / (s.steps - warmup)
            optimiser.param_groups[0]["lr"] = 1e-2 * rate
            loss = plain_objective(plain, collate([s.examples[i] for i in indices]), ablation)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            step += 1
    log = recorder.training_log()
    torch.testing.assert_close(torch.tensor(log["loss"].to_list()), torch.tensor(losses), rtol=1e-4, atol=1e-5)
    for name, tensor in lora_weights(plain).items():
        torch.testing.assert_close(lora_weights(ours)[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("micro", [2, 1])
def test_micro_batches_change_nothing(micro, tmp_path):
    """Traps: a mean of means is not the batch mean; a quantile a micro-batch is not the quantile of the batch."""
    logs = []
    for size in (4, micro):
        s = training_setup(PAPER, size)
        s = replace(s, examples=weighted(s.examples))
        logs.append(train(tiny_peft(), s, tmp_path / str(size), RecordingReporter(), "x").training_log())
    a, b = logs
    # From the second step on the weights differ by rounding, and with them the losses.
    assert b["loss"][0] == pytest.approx(a["loss"][0], rel=1e-6)
    torch.testing.assert_close(
        torch.tensor(a["loss"].to_list()), torch.tensor(b["loss"].to_list()), rtol=1e-5, atol=1e-6
    )
    assert a["tokens"].to_list() == b["tokens"].to_list()
    assert a["selected_share"].to_list() == b["selected_share"].to_list()


def test_selection_pass_leaves_dropout_as_it_was(tmp_path):
    """The loss pass over micro-batches draws the very masks that the training pass draws."""
    model = tiny_peft(dropout=0.3)
    recorder = train(model, training_setup(PAPER, micro=2, epochs=1), tmp_path, RecordingReporter(), "x")
    rows = recorder.selections()
    for (_,), step in rows.group_by("step"):
        k = count_selected(0.25, len(step))
        assert step["selected"].sum() == k
        # The logged losses are the training pass's: had the masks differed, the top quarter by them would too.
        assert step.filter("selected")["loss"].min() >= step.filter(~pl.col("selected"))["loss"].max()


def test_logs_fit_their_schemas(tmp_path):
    recorder = train(tiny_peft(), training_setup(), tmp_path, RecordingReporter(), "x")
    write_table(recorder.training_log(), "training_log", tmp_path / "t", spec_hash="s", code_version="c")
    write_table(recorder.selections(), "selections", tmp_path / "s", spec_hash="s", code_version="c")
    selections = recorder.selections()
    tokens = sum(sum(e.response_mask) for e in examples(11))
    assert len(selections) == 2 * tokens
    assert set(selections.filter("selected")["objective"]) == {"mle"}
    assert set(selections.filter(~pl.col("selected"))["objective"]) == {"distill"}
    assert set(TABLES["selections"].columns) == set(selections.columns)


class _Killed(BaseException):
    pass


def _train_and_die_at(step, model, s, work_dir):
    from tokenuq_ml.training.recorder import StepRecorder

    original = StepRecorder.end_step

    def end_step(self, *args):
        row = original(self, *args)
        if row["step"] == step:
            raise _Killed
        return row

    StepRecorder.end_step = end_step
    try:
        with pytest.raises(_Killed):
            train(model, s, work_dir, RecordingReporter(), "x")
    finally:
        StepRecorder.end_step = original


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("die_at", [2, 4, 5])
def test_a_restart_changes_nothing(micro, die_at, tmp_path):
    """Trap 13. Dropout on, mid-epoch and at an epoch's end: same adapter bytes, same logs."""
    straight = tiny_peft(dropout=0.2)
    expected = train(straight, training_setup(micro=micro, save_steps=1), tmp_path / "a", RecordingReporter(), "x")
    _train_and_die_at(die_at, tiny_peft(dropout=0.2), training_setup(micro=micro, save_steps=1), tmp_path / "b")
    torch.manual_seed(99)
    resumed = tiny_peft(dropout=0.2)
    reporter = RecordingReporter()
    got = train(resumed, training_setup(micro=micro, save_steps=1), tmp_path / "b", reporter, "x")
    assert any("resuming from step" in line for line in reporter.lines)
    for name, tensor in lora_weights(straight).items():
        assert torch.equal(lora_weights(resumed)[name], tensor), name
    assert got.training_log().equals(expected.training_log())
    assert got.selections().equals(expected.selections())


def test_a_finished_training_is_not_repeated(tmp_path):
    """Killed after its last checkpoint and before it was published, it takes no further step."""
    first, again = tiny_peft(dropout=0.2), tiny_peft(dropout=0.2)
    expected = train(first, training_setup(), tmp_path, RecordingReporter(), "x")
    got = train(again, training_setup(), tmp_path, RecordingReporter(), "x")
    assert got.training_log().equals(expected.training_log()) and got.selections().equals(expected.selections())
    for name, tensor in lora_weights(first).items():
        assert torch.equal(lora_weights(again)[name], tensor), name


def with_stored_teacher(folder, states, dropout=0.0, form="mean_embeddings"):
    """A student and its setup, with the teacher stored in `folder`, cached or online."""
    rows, online = examples(11), OnlineTeacher("teacher", FLOAT32)
    student = attach_adapter(tiny_peft(trained=False, dropout=dropout), folder, "teacher")
    s = training_setup(save_steps=1, snapshot_fractions=(0.5,))
    s.teacher = online
    if states == "cached":
        with TeacherCache(folder / "cache", rows, head_of(student), dataset_digest="d", teacher_digest="t") as cache:
            for example in rows:
                cache.put(example.example_id, online.states(student, collate([example])).hidden_ND)
        distil = PAPER.rest.distill if form == "mean_embeddings" else None
        s.teacher = CachedTeacher(folder / "cache", "cpu", dataset_digest="d", teacher_digest="t", distillation=distil)
        assert s.teacher.form == form
    return student, s


def test_cached_and_online_teachers_train_alike(tmp_path):
    """`teacher_states`: the same losses within what bfloat16 does to a stored state, in either form."""
    tiny_peft(seed=5).save_pretrained(tmp_path)
    logs = {}
    for states, form in (("cached", "hidden_states"), ("cached", "mean_embeddings"), ("online", "")):
        student, s = with_stored_teacher(tmp_path, states, form=form)
        s = replace(s, examples=weighted(s.examples))
        logs[form] = train(student, s, tmp_path / f"{states}{form}", RecordingReporter(), "x").training_log()
    assert logs[""]["distill_loss"].min() > 0.01
    for column in ("loss", "distill_loss"):
        hidden, means, online = (torch.tensor(log[column].to_list()) for log in logs.values())
        torch.testing.assert_close(hidden, online, rtol=0.02, atol=1e-3)
        # Mean embeddings are kept in the head's own dtype, here float32: nothing is rounded.
        torch.testing.assert_close(means, online, rtol=1e-3, atol=1e-4)


def test_an_online_teacher_survives_a_restart_and_is_not_stored_with_the_student(tmp_path):
    tiny_peft(seed=5).save_pretrained(tmp_path)
    straight, s = with_stored_teacher(tmp_path, "online", dropout=0.2)
    expected = train(straight, s, tmp_path / "a", RecordingReporter(), "x")
    dying, s = with_stored_teacher(tmp_path, "online", dropout=0.2)
    _train_and_die_at(4, dying, s, tmp_path / "b")
    resumed, s = with_stored_teacher(tmp_path, "online", dropout=0.2)
    got = train(resumed, s, tmp_path / "b", RecordingReporter(), "x")
    assert got.training_log().equals(expected.training_log())
    for name, tensor in lora_weights(straight).items():
        assert torch.equal(lora_weights(resumed)[name], tensor), name
    (snapshot,) = (tmp_path / "b" / "snapshots").iterdir()
    assert not (snapshot / "teacher").exists() and (snapshot / "adapter_model.safetensors").exists()


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / MARKER).touch()
    (tmp_path / "checkpoint-12").mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-4"
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_interrupt_stops_within_a_step_with_a_checkpoint(tmp_path, monkeypatch):
    from tokenuq_ml.training.recorder import StepRecorder

    original = StepRecorder.end_step

    def end_step(self, *args):
        row = original(self, *args)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(StepRecorder, "end_step", end_step)
    with pytest.raises(KeyboardInterrupt, match="a checkpoint holds the state"):
        train(tiny_peft(), training_setup(epochs=20), tmp_path, RecordingReporter(), "x")
    checkpoint = latest_checkpoint(tmp_path)
    step = int(checkpoint.name.split("-")[1])
    assert step in (3, 4)
    assert len(pl.read_parquet(checkpoint / "training_log.parquet")) == step


def test_snapshots_are_kept(tmp_path):
    train(tiny_peft(), training_setup(snapshot_fractions=(0.0, 0.25, 0.5, 1.0)), tmp_path, RecordingReporter(), "x")
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == ["step-000002", "step-000003"]


def test_dataset_scope_selects_over_the_whole_table(tmp_path):
    """Trap 8: `scope: dataset` takes its threshold from the teacher's table, not from the batch."""
    ablation = AblationSpec(name="g", select={"by": "loss", "quantile": 0.25, "scope": "dataset"})
    rows = examples(11)
    table = score_examples(tiny_model(), rows, FLOAT32)
    s = training_setup(ablation)
    s.columns = TokenColumns(ablation.columns_read, {"token_losses": table}, rows)
    recorder = train(tiny_peft(trained=False), s, tmp_path, RecordingReporter(), "x")
    chosen = recorder.selections().filter(pl.col("step") <= 3).filter("selected").select("example_id", "position")
    k = count_selected(0.25, len(table))
    expected = table.sort("loss", descending=True).head(k).select("example_id", "position")
    assert sorted(chosen.rows()) == sorted(expected.rows())


def test_order_depends_on_seed_and_epoch_alone():
    lengths = list(range(1, 40))
    a, b = LengthBucketSampler(lengths, 4, 2, 7), LengthBucketSampler(lengths, 4, 2, 7)
    list(a)
    torch.manual_seed(5)
    a.set_epoch(1), b.set_epoch(1)
    assert list(a) == list(b)
    b.set_epoch(0)
    assert list(a) != list(b)
    assert sorted(i for batch in a for i in batch) == list(range(39)) and len(list(a)) == len(a)


def test_the_kernel_runs_inside_the_wrapped_forward():
    """Trap 19: whatever wraps the model sees the head used within its forward."""
    model, seen = tiny_peft(), []
    model.get_base_model().register_forward_pre_hook(lambda *_: seen.append("forward"))
    with accept_token_function(model):
        out = model(input_ids=torch.ones(1, 3, dtype=torch.long), token_function=lambda h, head: h.shape)
    assert seen == ["forward"] and out == (1, 3, 32)
    assert model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 97)
