"""The training log has TRL's figures, equal to TRL's own, and those of the objective."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.support.tiny_models import examples, tiny_peft
from tests.support.training import MASKED, MLE, PAPER
from tokenuq_ml import TokenObjective
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.training.training_metrics import TrainingMetrics

pytestmark = pytest.mark.slow

OF_TRL = ("entropy", "mean_token_accuracy", "num_tokens")


class MyTrainer(TokenObjective, Trainer):
    """A user's own Trainer."""


def collate_rows(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    padded = lambda name, fill: [row[name] + [fill] * (longest - len(row[name])) for row in batch]  # noqa: E731
    return {
        "input_ids": torch.tensor(padded("input_ids", 0)),
        "labels": torch.tensor(padded("labels", -100)),
        "attention_mask": torch.tensor(padded("attention_mask", 0)),
    }


def rows():
    masked = lambda e: [t if m else -100 for t, m in zip(e.input_ids, e.response_mask, strict=True)]  # noqa: E731
    return [
        {"input_ids": e.input_ids, "labels": masked(e), "attention_mask": [1] * len(e.input_ids)} for e in examples(8)
    ]


def trained(folder, ablation, **options):
    arguments = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    } | options
    trainer = MyTrainer(
        model=tiny_peft(),
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=rows(),
        data_collator=collate_rows,
        ablation=ablation,
    )
    outs, record = [], trainer.record
    trainer.record = lambda batch, out, tokens: (outs.append((batch, out)), record(batch, out, tokens))
    trainer.train()
    return trainer, outs


def full_logits(model, batch):
    """Return the response tokens' logits from the model's own forward pass."""
    return batch.predicting(model(**batch.model_inputs).logits)


@pytest.mark.parametrize("ablation", [MLE, PAPER, MASKED], ids=lambda a: a.name)
def test_the_log_of_a_step_equals_full_logits(ablation, tmp_path):
    """Of every response token: all are trained or distilled, or selection reads their losses."""
    trainer, outs = trained(tmp_path, ablation, max_steps=1)
    logged, model, micro = trainer.state.log_history[0], tiny_peft(), []
    for batch, _ in outs:
        logits = full_logits(model, batch)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        micro.append((entropy.mean().item(), (logits.argmax(-1) == batch.label_N).float().mean().item()))
    assert logged["entropy"] == pytest.approx(sum(e for e, _ in micro) / 2, rel=1e-5)
    assert logged["mean_token_accuracy"] == pytest.approx(sum(a for _, a in micro) / 2, rel=1e-6)
    assert logged["num_tokens"] == sum(int(batch.model_inputs["attention_mask"].sum()) for batch, _ in outs)
    tokens = sum(batch.tokens for batch, _ in outs)
    share = 1.0 if ablation is MLE else count_selected(0.25, tokens) / tokens
    assert logged["selected_share"] == pytest.approx(share)
    if ablation is PAPER:
        distilled = [out.divergence_N[~out.selected_N] for _, out in outs]
        assert logged["distill_loss"] == pytest.approx(torch.cat(distilled).mean().item(), abs=1e-6)
    assert ("distill_loss" in logged) == (ablation is PAPER)


def test_tokens_whose_logits_are_not_computed_do_not_count(tmp_path):
    """A selection by columns leaves the rest without logits."""
    ablation = {"select": {"by": "random", "quantile": 0.25}}
    trainer, outs = trained(tmp_path, ablation, max_steps=1)
    model, micro = tiny_peft(), []
    for batch, out in outs:
        entropy_N = torch.distributions.Categorical(logits=full_logits(model, batch)).entropy()
        micro.append(entropy_N[out.selected_N].mean().item())
    assert trainer.state.log_history[0]["entropy"] == pytest.approx(sum(micro) / len(micro), rel=1e-5)


def test_the_log_of_several_steps_is_the_mean_of_their_micro_batches(tmp_path):
    each, _ = trained(tmp_path, PAPER, max_steps=4)
    together, _ = trained(tmp_path, PAPER, max_steps=4, logging_steps=2)
    rows_of = lambda trainer: [row for row in trainer.state.log_history if "loss" in row]  # noqa: E731
    for number, row in enumerate(rows_of(together)):
        pair = rows_of(each)[2 * number : 2 * number + 2]
        for name in ("entropy", "mean_token_accuracy", "distill_loss"):
            assert row[name] == pytest.approx(
                sum(one[name] for one in pair) / 2, rel=0.2 if "distill" in name else 1e-6
            )
        assert row["num_tokens"] == pair[-1]["num_tokens"]
    assert not set(OF_TRL) & set(together.state.log_history[-1]), "the last row has nothing new to report"


def test_evaluation_has_the_trainers_own_figures_alone(tmp_path):
    trainer, _ = trained(tmp_path, PAPER)
    trainer.eval_dataset = rows()
    assert not [name for name in trainer.evaluate() if "entropy" in name or "num_tokens" in name]


def test_the_log_has_no_more_than_the_trainers_if_that_is_asked_for(tmp_path):
    class Plain(MyTrainer):
        logs_metrics = False

    arguments = TrainingArguments(str(tmp_path), max_steps=1, logging_steps=1, report_to=[], use_cpu=True)
    trainer = Plain(model=tiny_peft(), args=arguments, train_dataset=rows(), data_collator=collate_rows, ablation=PAPER)
    trainer.train()
    assert set(trainer.state.log_history[0]) == {"loss", "grad_norm", "learning_rate", "epoch", "step"}


@pytest.mark.parametrize("packing", [False, True])
def test_the_log_equals_trls(packing, tmp_path):
    """Over accumulation, completion-only loss and packing; the log of TRL's trainer with the same batches."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from tests.support.tiny_tokenizer import tiny_tokenizer

    class Sft(TokenObjective, trl.SFTTrainer):
        pass

    ids = [{"input_ids": e.input_ids, "completion_mask": [int(m) for m in e.response_mask]} for e in examples(12)]
    arguments = {
        "per_device_train_batch_size": 1 if packing else 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "bf16": False,
        "packing": packing,
        "max_length": 40,
        "completion_only_loss": True,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    logs = []
    for kind, more in ((trl.SFTTrainer, {}), (Sft, {"ablation": "mle"})):
        trainer = kind(
            model=tiny_peft(),
            args=trl.SFTConfig(output_dir=str(tmp_path), **arguments),
            train_dataset=Dataset.from_list(ids),
            eval_dataset=Dataset.from_list(ids[:4]),
            processing_class=tiny_tokenizer(),
            **more,
        )
        trainer.train()
        logs.append(trainer.state.log_history)
    assert len(logs[0]) == len(logs[1]) == 4
    for theirs, ours in zip(*logs, strict=True):
        for name in set(theirs) - {name for name in theirs if name.endswith(("runtime", "per_second", "flos"))}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_means_over_ranks_and_micro_batches():
    """Two ranks: the mean of a micro-batch is over both, and one in which nothing is counted is left out."""
    other = torch.tensor([[[6.0, 2.0], [1.0, 4.0], [10.0, 0.0]], [[0.0, 0.0], [0.0, 4.0], [1.0, 0.0]]]).double()
    metrics = TrainingMetrics(gather=lambda own: torch.cat([own, other[None]]))
    for entropy, count in ((2.0, 2), (0.0, 0)):
        metrics.start_micro_batch()
        metrics.add("entropy", torch.tensor(entropy), torch.tensor(count))
        metrics.pool("selected_share", 1, 4.0)
        metrics.count("num_tokens", 5)
    assert metrics.take() == {}, "the step is not complete"
    metrics.end_step()
    assert metrics.take() == {"entropy": 8 / 4, "selected_share": 3 / 16, "num_tokens": 21}
    assert metrics.take() == {} and metrics.total("num_tokens") == 21
