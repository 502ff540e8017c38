"""Options of `transformers.Trainer` and TRL's `SFTTrainer` that touch the loss or the batches: honoured or refused.

`OPTIONS` has one entry for each. An option that is refused has a function that finds it set; all others work as they
do without `TokenObjective`, and a test shows it. Options that touch neither stay the Trainer's. The table of
docs/library.md has the same names; a test checks it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokenuq_ml.errors import InputError

Refusal = Callable[[Any, Any], str | None]
"""From an option's value and the Trainer to what is wrong and what to do; None if the value is right."""


@dataclass(frozen=True)
class Option:
    """An option that touches the loss or the batches."""

    meaning: str
    """How it is honoured, or which values are refused."""
    refusal: Refusal | None = None


def _label_smoothing(value: Any, trainer: Any) -> str | None:
    return value and (
        f"label_smoothing_factor={value}: the objective of each token is set by the ablation, which does not smooth "
        "labels; set it to 0"
    )


def _compute_loss_func(value: Any, trainer: Any) -> str | None:
    return value and (
        "compute_loss_func: the ablation is the loss; write your loss as an objective (`selected: module:function`), "
        "or train without TokenObjective"
    )


def _loss_type(value: Any, trainer: Any) -> str | None:
    if value in (None, "nll", "chunked_nll"):
        return None
    remedy = 'set ablation={"select": "all", "selected": "dft"} and ' if value == "dft" else ""
    return f"loss_type={value!r}: the ablation sets the loss of each token; {remedy}leave loss_type at 'nll'"


def _data_parallel(value: Any, trainer: Any) -> str | None:
    return value > 1 and (
        f"n_gpu is {value}: nn.DataParallel copies the model, and the objective needs the optimiser batch of all "
        "devices; start one process per GPU (`torchrun`, `accelerate launch`), or set CUDA_VISIBLE_DEVICES to one"
    )


def _average_tokens(value: Any, trainer: Any) -> str | None:
    return (
        value is False
        and trainer.accelerator.num_processes > 1
        and (
            "average_tokens_across_devices=False: the objective is divided by the tokens of all processes; "
            "set it to True"
        )
    )


def _packing_strategy(value: Any, trainer: Any) -> str | None:
    return (
        value == "wrapped"
        and getattr(trainer.args, "packing", False)
        and trainer.ablation.select.unit == "document"
        and (
            "packing_strategy='wrapped' cuts documents without a mark, so the ablation's `unit: document` cannot see "
            "them; use packing_strategy='bfd', or unit: token"
        )
    )


def _fp16(value: Any, trainer: Any) -> str | None:
    # accelerate trains in float32 then, without a word.
    return value and trainer.args.device.type == "cpu" and "fp16=True: a CPU does not train in float16; use bf16=True"


def _liger(value: Any, trainer: Any) -> str | None:
    asked = [key for key in LIGER_LOSSES if (trainer.args.liger_kernel_config or {}).get(key)] if value else []
    return asked and (
        f"liger_kernel_config: {asked[0]} replaces the model's own loss, which is not used here; set it to False "
        "(Liger's layers work)"
    )


def _compile_backend(value: Any, trainer: Any) -> str | None:
    recomputes = getattr(trainer.args, "activation_checkpointing", trainer.args.gradient_checkpointing)
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in trainer.model.modules())
    return (
        value == "eager"
        and recomputes
        and drops
        and (
            "torch_compile_backend='eager' drops other features in recomputed layers than in the forward pass, so that "
            "gradients would be wrong; use 'inductor' or 'aot_eager', or set gradient_checkpointing=False"
        )
    )


def _sharding(name: str) -> Refusal:
    def refusal(value: Any, trainer: Any) -> str | None:
        # `accelerate launch` may switch it on without an argument of the Trainer.
        return (value or getattr(trainer, f"is_{name}_enabled", False)) and (
            f"{name}: sharded models are not supported; use data parallelism (`torchrun`) without {name}"
        )

    return refusal


def _parallelism(value: Any, trainer: Any) -> str | None:
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        return (
            "from_pretrained(distributed_config=...) has sharded the model, which is not supported; load it whole in "
            "each process, or train by a study with `sharding: fsdp`"
        )
    value = value or getattr(trainer.accelerator, "parallelism_config", None)
    split = [name for name in ("tp", "cp", "sp") if getattr(value, f"{name}_size", 1) > 1]
    return split and (
        f"parallelism_config: {split[0]}_size is {getattr(value, f'{split[0]}_size')}; models and texts that are "
        "split over devices are not supported, use data parallelism only"
    )


LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Keys of `liger_kernel_config` for losses; the second is on by default."""

REPLACED_LOSSES = ("transformers.trainer.Trainer", "trl.trainer.sft_trainer.SFTTrainer")
"""Trainers whose training loss the ablation `mle` is, so that a user expects the objective in its place."""

OPTIONS = {
    # Refused, always or for some values.
    "label_smoothing_factor": Option("above 0 is refused", _label_smoothing),
    "compute_loss_func": Option("refused", _compute_loss_func),
    "loss_type": Option("`nll`; `dft` is refused: use the ablation `dft`", _loss_type),
    "n_gpu": Option("above 1 (nn.DataParallel) is refused, as in TRL", _data_parallel),
    "average_tokens_across_devices": Option("False is refused with several processes", _average_tokens),
    "use_liger_kernel": Option("Liger's layers; its losses are off, and refused if asked for", _liger),
    "liger_kernel_config": Option("see use_liger_kernel"),
    "fsdp": Option("refused", _sharding("fsdp")),
    "fsdp_config": Option("see fsdp"),
    "deepspeed": Option("refused", _sharding("deepspeed")),
    "parallelism_config": Option("tensor, context and sequence parallelism are refused", _parallelism),
    "fp16": Option("with loss scaling; refused on a CPU", _fp16),
    # The loss and the forward pass.
    "bf16": Option("accelerate's autocast; the head is used in its own dtype"),
    "neftune_noise_alpha": Option("noise on the student's embeddings, the same to select and to train"),
    "torch_compile": Option("the model; the objective runs outside the compiled graph"),
    "torch_compile_backend": Option("`eager` is refused with gradient_checkpointing and dropout", _compile_backend),
    "torch_compile_mode": Option("see torch_compile"),
    "gradient_checkpointing": Option("as in the Trainer"),
    "gradient_checkpointing_kwargs": Option("as in the Trainer"),
    "activation_checkpointing": Option("the newer name of gradient_checkpointing"),
    "activation_checkpointing_kwargs": Option("the newer name of gradient_checkpointing_kwargs"),
    "activation_offloading": Option("as in TRL"),
    "router_aux_loss_coef": Option("as in TRL"),
    "max_grad_norm": Option("as in the Trainer"),
    "logging_nan_inf_filter": Option("off: a loss that is not finite stops training"),
    # The batches.
    "per_device_train_batch_size": Option("changes nothing but memory and speed, given the optimiser batch"),
    "gradient_accumulation_steps": Option("selection and division are over the optimiser batch"),
    "auto_find_batch_size": Option("as in the Trainer"),
    "train_sampling_strategy": Option("as in the Trainer"),
    "group_by_length": Option("the older name of train_sampling_strategy='group_by_length'"),
    "length_column_name": Option("as in the Trainer"),
    "accelerator_config": Option("as in the Trainer"),
    "dataloader_drop_last": Option("as in the Trainer"),
    "remove_unused_columns": Option("as in the Trainer: False keeps columns for token_batch"),
    "label_names": Option("for evaluation; training reads `labels`"),
    "include_num_input_tokens_seen": Option("as in the Trainer"),
    "packing": Option("as in TRL"),
    "packing_strategy": Option("as in TRL; `wrapped` is refused with `unit: document`", _packing_strategy),
    "padding_free": Option("as in TRL"),
    "pad_to_multiple_of": Option("as in TRL"),
    "max_length": Option("as in TRL"),
    "truncation_mode": Option("as in TRL"),
    "shuffle_dataset": Option("as in TRL"),
    "completion_only_loss": Option("as in TRL"),
    "assistant_only_loss": Option("as in TRL"),
    "model_init": Option("each training starts from a new model, also in hyperparameter_search"),
    # Evaluation, which stays the Trainer's.
    "prediction_loss_only": Option("evaluation is the Trainer's"),
    "eval_packing": Option("evaluation is the Trainer's"),
}
"""By the name of the argument of `TrainingArguments`, `SFTConfig` or the Trainer."""


def check_options(trainer: Any) -> None:
    """Check the options of the Trainer; called when it is made, and at each step, because both may set them.

    Raises:
        InputError: an option would be ignored; the message names it, and says what to do.
    """
    for name, option in OPTIONS.items():
        if option.refusal is None:
            continue
        value = getattr(trainer.args, name, None) if hasattr(trainer.args, name) else getattr(trainer, name, None)
        if problem := option.refusal(value, trainer):
            raise InputError(problem)


def switch_off_liger_loss(trainer: Any) -> None:
    """Switch off Liger's fused loss, which would replace the forward pass when training starts; TRL does the same."""
    if trainer.args.use_liger_kernel:
        asked = trainer.args.liger_kernel_config or {}
        trainer.args.liger_kernel_config = {**asked, "fused_linear_cross_entropy": False}


def warn_of_unused_loss(trainer: Any, mixin: type) -> None:
    """Warn if a base class after the mixin computes a loss of its own, which is used in evaluation only."""
    bases = type(trainer).__mro__[type(trainer).__mro__.index(mixin) + 1 :]
    owner = next(base for base in bases if "compute_loss" in vars(base))
    if f"{owner.__module__}.{owner.__name__}" not in REPLACED_LOSSES:
        warnings.warn(
            f"{owner.__name__}.compute_loss is used in evaluation only: TokenObjective computes the training loss. To "
            "add to it, override compute_loss in a class that comes before TokenObjective",
            stacklevel=3,
        )
