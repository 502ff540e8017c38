"""The arguments that `TokenObjective` adds to a Trainer's, in every form that they may have: ablation and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapter_kinds import active_adapters, adapter_configs, check_training, has_adapter
from tokenuq_ml.models.output_layer import causal_lm, sees_logits
from tokenuq_ml.training.objective_hooks import ObjectiveHooks
from tokenuq_ml.training.teacher import OnlineTeacher, SeparateTeacher, TeacherSource

if TYPE_CHECKING:
    from tokenuq_ml.config import AblationSpec

ADAPTER_KEYS = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
"""Key of an ablation's `lora` -> attribute of PEFT's `LoraConfig`."""


def as_ablation(ablation: AblationSpec | dict[str, Any] | str) -> AblationSpec:
    """Return the ablation: itself, made of an entry of `ablations.yaml` without its name, or shipped under a name.

    Raises:
        InputError: no shipped ablation has the name, the entry is wrong, or it is neither.
    """
    if isinstance(ablation, dict):
        return _from_entry(ablation)
    if isinstance(ablation, str):
        return _shipped(ablation)
    # By what it can do: where pydantic is not installed, there is no class to compare with.
    if not (hasattr(ablation, "select") and hasattr(ablation, "decides_together")):
        raise InputError(
            f"ablation is a {type(ablation).__name__}; pass an AblationSpec, a dict as in ablations.yaml, or the name "
            "of a shipped ablation"
        )
    return ablation


def _from_entry(entry: dict[str, Any]) -> AblationSpec:
    # Imported here: a Trainer with an ablation that is given needs no pydantic.
    from pydantic import ValidationError

    from tokenuq_ml.config import AblationSpec
    from tokenuq_ml.config.problems import problems

    try:
        return AblationSpec(**{"name": "custom", **entry})
    except ValidationError as error:
        raise InputError("\n".join(f"ablation{line}" for line in problems(AblationSpec, error))) from None


def _shipped(name: str) -> AblationSpec:
    # Imported here, as above.
    from tokenuq_ml.config.shipped import shipped_ablations

    shipped = shipped_ablations()
    if name not in shipped:
        raise InputError(f"ablation {name!r} is not shipped; pass a dict, or one of: {', '.join(shipped)}")
    return shipped[name]


def as_teacher(teacher: TeacherSource | nn.Module | None, ablation: AblationSpec, student: nn.Module) -> TeacherSource:
    """Return the source of the teacher's distributions; a model is wrapped in `SeparateTeacher`, which freezes it.

    Raises:
        InputError: there is none and the ablation needs one, or it is no source.
    """
    if teacher is None:
        if ablation.distillation and not has_adapter(student):
            raise InputError(
                "the ablation distils, but the model has no adapter whose base model could be the teacher; "
                "pass teacher=SeparateTeacher(model)"
            )
        return OnlineTeacher()
    if isinstance(teacher, nn.Module):
        return SeparateTeacher(teacher)
    if not (hasattr(teacher, "form") and hasattr(teacher, "head")):
        raise InputError(
            f"teacher is a {type(teacher).__name__}, which has no `form` and `head`; make it a subclass of "
            "tokenuq_ml.training.teacher.TeacherSource"
        )
    return teacher


def prepare_model(trainer: Any, model: nn.Module) -> None:
    """Check the model's adapters and the teacher against it, before it is trained.

    Raises:
        InputError: see `adapter_kinds.check_training` and the `prepare` of the teacher.
    """
    check_training(model)
    # A source that is no subclass of `TeacherSource` may not have it.
    prepare = getattr(trainer.teacher, "prepare", None)
    if trainer.ablation.distillation and prepare is not None:
        prepare(model, trainer.processing_class)


def check_trainable(model: nn.Module) -> None:
    """Check, when a training starts, that the model's adapters are in use and something is trained.

    Raises:
        InputError: see `adapter_kinds.check_training`; all parameters are frozen; or a hook reads the model's output.
    """
    check_training(model)
    for outer in (model, causal_lm(model)):
        # PEFT's hooks (shadow adapters) do not look at the output.
        others = [hook for hook in outer._forward_hooks.values() if not str(hook.__module__).startswith("peft.")]
        if sees_logits(outer) and others:
            raise InputError(
                f"{type(outer).__name__} has a forward hook, which would get the loss in place of the logits that "
                "training does not compute; remove it, or put it on the decoder or a layer"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "all parameters of the model are frozen, so nothing would be trained; load the adapter with "
            "PeftModel.from_pretrained(..., is_trainable=True), or add one"
        )


def check_ablation(trainer: Any) -> None:
    """Check that the Trainer applies every key of its ablation.

    Raises:
        InputError: a key would be ignored: `scope: dataset`, `rank_growth`, `train`, `budget`, or `lora` with another
            value than the adapter's.
    """
    ablation = trainer.ablation
    if ablation.select.is_decided_before_training and type(trainer).static_mask is ObjectiveHooks.static_mask:
        raise InputError(
            "the ablation has scope 'dataset', which selects before training among the complete train split; override "
            "`static_mask` to return that selection, or use scope 'batch'"
        )
    if ablation.rank_growth is not None and "rank_growth" not in trainer.applied_keys:
        raise InputError(
            "the ablation has rank_growth, which only a study applies (`tokenuq run`); remove the key, or grow the "
            "rank yourself and add it to `applied_keys`"
        )
    if ablation.train.values and "train" not in trainer.applied_keys:
        raise InputError(
            f"the ablation has train.{next(iter(ablation.train.values))}, which only a study applies (`tokenuq run`); "
            "set it in the TrainingArguments or the adapter, and remove the key"
        )
    if ablation.budget != "equal_steps" and "budget" not in trainer.applied_keys:
        raise InputError(
            f"the ablation has budget {ablation.budget!r}, which only a study applies (`tokenuq run`); set max_steps "
            "in the TrainingArguments, and remove the key"
        )
    if "lora" not in trainer.applied_keys:
        _check_adapter(trainer)


def _check_adapter(trainer: Any) -> None:
    """Compare the keys of `lora` with the adapter that the user made."""
    model, wanted = trainer.model, trainer.ablation.lora.model_dump(exclude_none=True)
    if not wanted:
        return
    if not has_adapter(model):
        raise InputError(f"the ablation has lora.{next(iter(wanted))}, and the model has no adapter; remove the key")
    config = adapter_configs(model)[active_adapters(model)[0]]
    for key, value in wanted.items():
        found = getattr(config, ADAPTER_KEYS[key], None)
        if found != value:
            raise InputError(
                f"the ablation has lora.{key} {value}, and the model's adapter has {found}; "
                f"make it with LoraConfig({ADAPTER_KEYS[key]}={value}), or remove the key"
            )
