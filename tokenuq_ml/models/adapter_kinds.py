"""Which adapters of PEFT each computation supports: decided from their configuration, before anything is computed.

Three questions have different answers for the kinds of PEFT:

- Does a forward pass over token ids alone use the adapter? Not if PEFT adds something outside the model's layers.
- Is a training loss computed from that pass all that PEFT's own forward pass would train? Some kinds add a penalty.
- Is the model with its adapters disabled the base model? Not if the adapter has changed the base's weights when it was
  made (PiSSA subtracts what it moves into the adapter).

Lists of kinds rather than a trial: a trial sees a model after the adapter was made, when its base is unknown. Kinds
that are in none of the lists are refused, because nothing here was compared with PEFT for them.
`tests/field/test_training_peft_kinds.py` compares every kind of the installed PEFT.
"""

from collections.abc import Iterator

from peft import PeftConfig, PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError

_VIRTUAL = "only PEFT's own forward pass adds its virtual tokens"
REFUSED_KINDS = {
    "PROMPT_TUNING": _VIRTUAL,
    "MULTITASK_PROMPT_TUNING": _VIRTUAL,
    "P_TUNING": _VIRTUAL,
    "PREFIX_TUNING": _VIRTUAL,
    "CARTRIDGE": _VIRTUAL,
    "CPT": _VIRTUAL,
    "ADAPTION_PROMPT": "it replaces attention modules, and only PEFT's own forward pass runs them",
    "POLY": "it needs the task of each text, which only PEFT's own forward pass takes",
    "XLORA": "only PEFT's own forward pass mixes its adapters",
    "LILY": "it weighs its experts by the mean over all tokens of a batch, so a text depends on its batch and its end",
}
"""Kinds whose numbers a forward pass of the model's layers does not give, and why."""

SUPPORTED_KINDS = frozenset(
    "LORA ADALORA ADAMSS BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR MISS "
    "OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD SHADOW SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA VERA "
    "WAVEFT".split()
)
"""Kinds that are a part of the layers, and without which, disabled, the layers compute what the base model does."""

UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva", "mica")
"""Values of `LoraConfig.init_lora_weights` that leave the base model's weights alone."""


def has_adapter(model: nn.Module) -> bool:
    """Return whether PEFT has added an adapter, by `get_peft_model` or by transformers' own `add_adapter`."""
    return isinstance(model, PeftModel | PeftMixedModel) or bool(getattr(model, "_hf_peft_config_loaded", False))


def active_adapters(model: PeftModel | PreTrainedModel) -> list[str]:
    """Return the names of the adapters that a forward pass uses, unless they are disabled."""
    if not has_adapter(model):
        return []
    # A property of PEFT's models, and a method of transformers'.
    names = model.active_adapters
    return list(names() if callable(names) else names)


def adapter_configs(model: PeftModel | PreTrainedModel) -> dict[str, PeftConfig]:
    """Return PEFT's configuration of each adapter that the model has, active or not."""
    return dict(model.peft_config) if has_adapter(model) else {}


def adapter_modules(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer | AuxiliaryTrainingWrapper]]:
    """Yield path and module of each layer that PEFT has wrapped."""
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield path, module


def check_forward(model: PeftModel | PreTrainedModel) -> None:
    """Check that a forward pass of the model's layers is that of the model with its active adapters.

    Raises:
        InputError: the kind of an active adapter is refused, or was not compared with PEFT.
    """
    if isinstance(model, PeftMixedModel):
        raise InputError("the model is a PeftMixedModel; load its adapters with PeftModel, or merge them first")
    if isinstance(model, PeftModel) and _kind(model) == "XLORA":
        # The adapters that it mixes are active, not itself.
        raise InputError(f"the adapter is XLORA: {REFUSED_KINDS['XLORA']}; use another kind, such as LoRA")
    configs = adapter_configs(model)
    for name in active_adapters(model):
        config, kind = configs[name], _kind(configs[name])
        if kind in REFUSED_KINDS:
            raise InputError(f"adapter {name!r} is {kind}: {REFUSED_KINDS[kind]}; use another kind, such as LoRA")
        if kind not in SUPPORTED_KINDS:
            raise InputError(
                f"adapter {name!r} is {kind}, a kind that tokenuq was not compared with PEFT for; use LoRA"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise InputError(
                f"adapter {name!r} is an activated LoRA (alora_invocation_tokens), which only PEFT's own forward pass "
                "switches on; use LoRA without it"
            )


def check_in_use(model: PeftModel | PreTrainedModel, purpose: str) -> None:
    """Check that the model's adapters take part in a forward pass, and can be switched off and on again.

    Args:
        model: with or without adapters.
        purpose: what needs them, for the message.

    Raises:
        InputError: adapters are merged into the weights, disabled, or not active.
    """
    if not has_adapter(model):
        return
    layers = [module for _, module in adapter_modules(model)]
    if any(getattr(module, "merged_adapters", None) for module in layers):
        raise InputError(
            f"{purpose} needs an adapter apart from the base model, but it is merged into the weights; call "
            "unmerge_adapter(), or merge_and_unload() and add a new one"
        )
    if any(module.disable_adapters for module in layers) or getattr(model, "_adapters_disabled", False):
        raise InputError(f"{purpose} needs the model's adapter, but adapters are disabled; enable them first")
    if not active_adapters(model):
        raise InputError(f"{purpose} needs an active adapter, but none is; call set_adapter(name)")


def check_training(model: PeftModel | PreTrainedModel) -> None:
    """Check that a loss from the model's forward pass trains its active adapters as PEFT would.

    Raises:
        InputError: see `check_forward` and `check_in_use`; or PEFT's forward pass adds a penalty to the loss.
    """
    check_forward(model)
    check_in_use(model, "training")
    configs = adapter_configs(model)
    for name in active_adapters(model):
        kind = _kind(configs[name])
        if kind == "ADALORA":
            what, remedy = "the penalty on its orthogonality", "use LoRA"
        elif kind == "SHADOW" and configs[name].auxiliary_loss_weight > 0:
            what, remedy = "its auxiliary loss", "set auxiliary_loss_weight=0"
        else:
            continue
        raise InputError(
            f"adapter {name!r} is {kind}: PEFT's own forward pass adds {what} to the loss, and TokenObjective replaces "
            f"that loss; {remedy}"
        )


def check_base_is_intact(model: PeftModel | PreTrainedModel) -> None:
    """Check that the model with its adapters disabled is the base model, apart from base tensors trained in place.

    Raises:
        InputError: the initialisation of an adapter has changed the base model.
    """
    for name, config in adapter_configs(model).items():
        changed = _change_of_base(config)
        if changed:
            raise InputError(
                f"adapter {name!r} was made with {changed}, which changed the base model's weights, so the model "
                "without its adapter is not the base model; merge it first (merge_and_unload) and add a plain adapter, "
                "or pass teacher=SeparateTeacher(base_model)"
            )


def _change_of_base(config: PeftConfig) -> str | None:
    """Return the setting by which the adapter changed the base model; None if there is none."""
    initial = getattr(config, "init_lora_weights", True)
    if initial not in UNCHANGED_BASE:
        return f"init_lora_weights={initial!r}"
    for setting in ("layer_replication", "kasa_config"):
        if getattr(config, setting, None):
            return setting
    return None


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the base model's own parameters by name: those that no class of PEFT has added.

    They are frozen in most cases. Those that are not (`bias="all"`, or unfrozen by the user) are trained in place, so
    disabling the adapter does not bring the base model back.
    """
    found: dict[str, Tensor] = {}
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        is_pefts = any(kind.__module__.startswith("peft.") for kind in type(module).__mro__)
        if not is_pefts:
            found |= {f"{path}{name}": tensor for name, tensor in module.named_parameters(recurse=False)}
        for name, child in module.named_children():
            if not is_pefts or name in ("base_model", "model", "base_layer", "original_module"):
                stack.append((f"{path}{name}.", child))
    return found


def _kind(config: PeftConfig | PeftModel) -> str:
    return getattr(config.peft_type, "value", str(config.peft_type))
