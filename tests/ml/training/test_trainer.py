"""Training by our Trainer equals plain PyTorch, and its tables have the documented rows."""

import random
from dataclasses import replace

import polars as pl
import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.training import MASKED, MLE, PAPER, lora_weights, plain_objective, setup_with_teacher, training_setup
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.batching import LengthBucketSampler, collate
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.training.token_columns import TokenColumns
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow


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
    """Two epochs of Trainer and of twenty lines of PyTorch give the same losses and the same adapter."""
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
def test_the_micro_batch_size_does_not_change_losses_and_selection(micro, tmp_path):
    """Traps: a mean of means is not the batch mean; a quantile per micro-batch is not the quantile of the batch."""
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


def test_the_loss_pass_that_selects_draws_the_dropout_masks_of_the_training_pass(tmp_path):
    """The table `selections` has the losses of the pass that selects, the log those of the training pass."""
    model = tiny_peft(dropout=0.3)
    recorder = train(model, training_setup(MASKED, micro=2, epochs=1), tmp_path, RecordingReporter(), "x")
    assert recorder.costs.selection_passes == 1
    for row in recorder.log_rows:
        step = recorder.selections().filter(pl.col("step") == row["step"])
        assert step["selected"].sum() == count_selected(0.25, len(step))
        assert step.filter("selected")["loss"].min() >= step.filter(~pl.col("selected"))["loss"].max()
        trained_loss = row["loss"] * row["tokens"]
        assert step.filter("selected")["loss"].sum() == pytest.approx(trained_loss, rel=1e-5)


def test_both_tables_have_their_schemas_and_a_row_per_token_and_epoch(tmp_path):
    recorder = train(tiny_peft(), training_setup(), tmp_path, RecordingReporter(), "x")
    write_table(recorder.training_log(), "training_log", tmp_path / "t", spec_hash="s", code_version="c")
    write_table(recorder.selections(), "selections", tmp_path / "s", spec_hash="s", code_version="c")
    selections = recorder.selections()
    tokens = sum(sum(e.response_mask) for e in examples(11))
    assert len(selections) == 2 * tokens
    assert set(selections.filter("selected")["objective"]) == {"mle"}
    assert set(selections.filter(~pl.col("selected"))["objective"]) == {"distill"}
    assert set(TABLES["selections"].columns) == set(selections.columns)


@pytest.mark.slow
def test_cached_and_online_teachers_give_the_same_losses(tmp_path):
    """Hidden states are cached in bfloat16, so losses agree to its precision; mean embeddings in the head's dtype."""
    tiny_peft(seed=5).save_pretrained(tmp_path)
    logs = {}
    for states, form in (("cached", "hidden_states"), ("cached", "mean_embeddings"), ("online", "")):
        student, s = setup_with_teacher(tmp_path, states, form=form)
        s = replace(s, examples=weighted(s.examples))
        logs[form] = train(student, s, tmp_path / f"{states}{form}", RecordingReporter(), "x").training_log()
    assert logs[""]["distill_loss"].min() > 0.01
    for column in ("loss", "distill_loss"):
        hidden, means, online = (torch.tensor(log[column].to_list()) for log in logs.values())
        torch.testing.assert_close(hidden, online, rtol=0.02, atol=1e-3)
        # Mean embeddings are kept in the head's own dtype, here float32: nothing is rounded.
        torch.testing.assert_close(means, online, rtol=1e-3, atol=1e-4)


def test_dataset_scope_selects_among_all_train_tokens_by_the_teachers_loss(tmp_path):
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
