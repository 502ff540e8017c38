"""The contestants of a training step that need TRL or Liger; `unavailable` says what this machine lacks."""

import importlib.util

from transformers import PreTrainedTokenizerFast

from benchmarks.accelerator.clock import Measured, StepClock
from benchmarks.accelerator.shapes import END_IDS, Setting, peers_model
from benchmarks.accelerator.steps import (
    Ticks,
    dataset_of,
    train_and_measure,
    trainer_settings,
    trainer_step,
    unchanged_modules,
)

LIGER, TRL = ("liger_kernel",), ("trl", "datasets")


def unavailable(packages: tuple[str, ...]) -> str | None:
    """Return which of the packages are not installed; None if all are."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def liger_step(setting: Setting, clock: StepClock) -> Measured:
    """Fine-tune by transformers' Trainer with Liger's kernels, its fused loss included."""
    with unchanged_modules(setting):
        return trainer_step(setting, clock, use_liger_kernel=True)


def trl_step(setting: Setting, clock: StepClock, checkpointing: bool = True) -> Measured:
    """Fine-tune by TRL's SFTTrainer with its defaults; checkpointing of activations is one of them."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": row["input_ids"].tolist(),
            "completion_mask": (row["labels"] != -100).int().tolist(),
        }
        for row in dataset_of(setting.shape, clock.steps)
    ]
    arguments = SFTConfig(
        **trainer_settings(setting, clock),
        completion_only_loss=True,
        gradient_checkpointing=checkpointing,
        max_length=setting.shape.length,
    )
    trainer = SFTTrainer(
        model=peers_model(setting),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        callbacks=[Ticks(clock)],
    )
    return train_and_measure(trainer, clock)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that TRL can pad with; the rows are token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    ids = {"<pad>": END_IDS["pad_token_id"], "<s>": END_IDS["bos_token_id"], "</s>": END_IDS["eos_token_id"]}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
