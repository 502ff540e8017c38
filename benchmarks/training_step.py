"""One optimiser step on the same texts: ours, TRL's SFT and distillation trainers, a plain loop.

All contestants train the same LoRA adapter of the same bfloat16 model with AdamW, under the same autocast, on the same
sequences. All but the loop are a Trainer. TRL runs with its defaults, which include gradient checkpointing. Because
checkpointing costs time, a second row has TRL without it.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from benchmarks.common import LORA, Row, alternate, fresh_model, gsm_examples, model_folder, randomise
from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.models.adapters import lora_config
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.training.recorder import StepRecorder
from tokenuq_ml.training.setup import TrainingSetup, training_arguments
from tokenuq_ml.training.teacher import OnlineTeacher
from tokenuq_ml.training.teacher_cache import CachedTeacher, TeacherCache
from tokenuq_ml.training.trainer import TokenTrainer

BATCH = 8
PAPER = AblationSpec(name="paper", select={"by": "loss", "quantile": 0.25}, rest={"distill": {}})
ADAMW = {"learning_rate": 1e-4, "max_grad_norm": 1.0, "optim": "adamw_torch", "weight_decay": 0.0}


class StepTimer(TrainerCallback):
    """Seconds of the last optimiser step, from its first micro-batch to the optimiser's update."""

    def on_step_begin(self, *args, **kwargs):
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started


def paper_step(model: PeftModel, numerics: Numerics, examples: list[TokenizedExample], folder: Path) -> Callable:
    """Return a step of `TokenTrainer` with the paper's objective and a cached teacher."""
    online = OnlineTeacher("default", numerics)
    with TeacherCache(folder, examples, head_of(model), dataset_digest="d", teacher_digest="t") as cache:
        for example in examples:
            cache.put(example.example_id, online.states(model, collate([example])).hidden_ND)
    train = TrainSpec(epochs=1, batch_size=BATCH, learning_rate=1e-4, lora=LORA)
    teacher = CachedTeacher(folder, "cpu", dataset_digest="d", teacher_digest="t", distillation=PAPER.rest.distill)
    setup = TrainingSetup(examples, train, PAPER, 0, numerics, teacher)
    arguments = training_arguments(setup, folder)
    arguments.save_strategy = "no"

    def run() -> float:
        recorder, timer = StepRecorder(PAPER), StepTimer()
        trainer = TokenTrainer(model, setup, recorder, args=arguments, callbacks=[timer])
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_CloseRows(recorder))
        trainer.train()
        return timer.seconds

    return run


class _CloseRows(TrainerCallback):
    """Closes the step's records, which are part of the work of a step."""

    def __init__(self, recorder: StepRecorder):
        self.recorder = recorder

    def on_optimizer_step(self, *args, **kwargs):
        self.recorder.end_step(0.0, 0.0)


def trl_arguments(kind, checkpointing: bool, **kwargs):
    """Return TRL's arguments of the class `kind`: its defaults, except for what all contestants share."""
    return kind(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1000,
        save_strategy="no",
        use_cpu=True,
        bf16=True,
        gradient_checkpointing=checkpointing,
        dataloader_pin_memory=False,
        **ADAMW,
        **kwargs,
    )


def trl_rows(examples: list[TokenizedExample]) -> Dataset:
    """Return the examples as a dataset of tokens with completion masks."""
    return Dataset.from_list(
        [{"input_ids": e.input_ids, "completion_mask": [int(flag) for flag in e.response_mask]} for e in examples]
    )


def trl_step(trainer_class, arguments, model: PeftModel, examples: list[TokenizedExample], **more) -> Callable:
    """Return a step of one of TRL's trainers."""

    def run() -> float:
        timer = StepTimer()
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=trl_rows(examples),
            processing_class=load_tokenizer(model_folder()),
            callbacks=[timer],
            **more,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return timer.seconds

    return run


def trl_sft_step(model: PeftModel, examples: list[TokenizedExample], checkpointing: bool) -> Callable:
    """Return a step of `SFTTrainer`: cross-entropy of the completions."""
    from trl import SFTConfig, SFTTrainer

    return trl_step(SFTTrainer, trl_arguments(SFTConfig, checkpointing, completion_only_loss=True), model, examples)


def trl_distillation_step(model: PeftModel, teacher, examples: list[TokenizedExample], checkpointing: bool) -> Callable:
    """Return a step of `GKDTrainer`.

    It distils on the data's completions (lmbda 0) by forward KL (beta 0) at temperature 1, from an online teacher.
    """
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    arguments = trl_arguments(GKDConfig, checkpointing, lmbda=0.0, beta=0.0, temperature=1.0)

    def join(rows: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        pad = lambda values, fill: values + [fill] * (longest - len(values))  # noqa: E731
        masked = [[t if m else -100 for t, m in zip(r["input_ids"], r["completion_mask"], strict=True)] for r in rows]
        return {
            "input_ids": torch.tensor([pad(row["input_ids"], 0) for row in rows]),
            "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor([pad(labels, -100) for labels in masked]),
        }

    return trl_step(GKDTrainer, arguments, model, examples, teacher_model=teacher, data_collator=join)


def plain_step(model: PeftModel, numerics: Numerics, examples: list[TokenizedExample]) -> Callable:
    """Return a step in twenty lines of PyTorch.

    It has float32 logits of the full vocabulary, a forward pass of the teacher in each step, and PEFT's own layers.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    batch = collate(examples[:BATCH])
    lengths = torch.tensor([len(e.input_ids) for e in examples[:BATCH]])
    mask_BT = (torch.arange(batch.input_ids_BT.shape[1]) < lengths[:, None]).long()
    response_BT = batch.response_BT[:, 1:]

    def step() -> None:
        with numerics.autocast():
            with torch.no_grad():
                model.eval()
                teacher_BTV = model(input_ids=batch.input_ids_BT, attention_mask=mask_BT).logits[:, :-1].float()
                model.train()
            logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=mask_BT).logits[:, :-1].float()
        logp_BTV = logits_BTV.log_softmax(-1)
        ce_BT = -logp_BTV.gather(-1, batch.input_ids_BT[:, 1:, None])[..., 0]
        kl_BT = torch.nn.functional.kl_div(
            logp_BTV, teacher_BTV.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        threshold = ce_BT[response_BT].detach().quantile(0.75)
        loss = torch.where(ce_BT >= threshold, ce_BT, kl_BT)[response_BT].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def run(repeats: int) -> list[Row]:
    """Return one row per rival: the ratio of our step's time to the rival's."""
    # Examples of similar length, so that padding does not decide the result.
    examples = sorted(gsm_examples(64), key=lambda e: -len(e.input_ids))[16 : 16 + BATCH]
    set_seed(0)
    ours, numerics = fresh_model()
    plain, teacher = _stock(), load_model(model_folder())[0]
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            "ours": paper_step(ours, numerics, examples, Path(folder)),
            "TRL SFT": trl_sft_step(_stock(), examples, checkpointing=True),
            "TRL SFT, no checkpointing": trl_sft_step(_stock(), examples, checkpointing=False),
            "TRL GKD": trl_distillation_step(_stock(), teacher, examples, checkpointing=True),
            "TRL GKD, no checkpointing": trl_distillation_step(_stock(), teacher, examples, checkpointing=False),
            "plain loop": plain_step(plain, numerics, examples),
        }
        seconds = alternate(contestants, repeats)
    row = partial(_row, seconds)
    return [
        row("student step (paper objective, cached teacher) / TRL SFT vanilla step", "TRL SFT", 1.0),
        row("the same / TRL SFT without gradient checkpointing", "TRL SFT, no checkpointing", 1.0),
        row("student step / TRL distillation step (GKD, online teacher)", "TRL GKD", 0.6),
        row("the same / TRL GKD without gradient checkpointing", "TRL GKD, no checkpointing", 0.6),
        row("student step / plain loop (online teacher, full logits)", "plain loop", 0.45),
    ]


def _row(seconds: dict[str, float], measure: str, rival: str, target: float) -> Row:
    ratio = seconds["ours"] / seconds[rival]
    return Row(measure, f"{seconds['ours']:.2f} s", f"{seconds[rival]:.2f} s", ratio, f"<= {target:g}", ratio <= target)


def _stock() -> PeftModel:
    """Return the same model and adapter with PEFT's own modules."""
    base = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.bfloat16)
    return randomise(get_peft_model(base, lora_config(LORA)))
