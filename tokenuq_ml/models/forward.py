"""Forward passes without the output head, on any causal language model of transformers."""

import inspect
from contextlib import contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.patches import replaced_forward


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside any PEFT wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_of(model: PreTrainedModel | PeftModel) -> Head:
    """The output head, with soft-capping and scaling where the architecture has them.

    Gemma-2 soft-caps its final logits, Cohere multiplies them, Granite divides them; a
    loss that forgets it optimises another objective.
    """
    model = causal_lm(model)
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(
        output.weight,
        getattr(output, "bias", None),
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=scale,
    )


def hidden_states(
    model: PreTrainedModel | PeftModel, inputs: dict[str, torch.Tensor], numerics: Numerics | None = None
) -> torch.Tensor:
    """`hidden_BTD` after the final norm: all but the head of a forward pass over `inputs` (`Batch.model_inputs`)."""
    decoder = getattr(causal_lm(model), causal_lm(model).base_model_prefix)
    # Where all weights have the dtype already, autocast would only look at every operation, and round what is
    # float32 on purpose.
    casts = numerics is not None and numerics.dtype != torch.float32 and _dtypes(model) != {numerics.dtype}
    with numerics.autocast() if casts else nullcontext():
        return decoder(**inputs, use_cache=False).last_hidden_state


_kept_dtypes: WeakKeyDictionary[PreTrainedModel, set[torch.dtype]] = WeakKeyDictionary()


def _dtypes(model: PreTrainedModel | PeftModel) -> set[torch.dtype]:
    """Those of the model's weights, its adapters' included."""
    kept = _kept_dtypes.get(causal_lm(model))
    return kept if kept is not None else {parameter.dtype for parameter in causal_lm(model).parameters()}


@contextmanager
def cached_dtypes(model: PreTrainedModel | PeftModel):
    """Inside, the dtypes of the model's weights are looked at once: a thousand tensors before each pass take long."""
    lm = causal_lm(model)
    before = _kept_dtypes.get(lm)
    _kept_dtypes[lm] = _dtypes(model)
    try:
        yield
    finally:
        if before is None:
            del _kept_dtypes[lm]


@torch.no_grad()
def packing_is_exact(model: PreTrainedModel | PeftModel, numerics: Numerics) -> bool:
    """Whether sequences packed into one row come out as they do alone, tried on three short ones.

    Attention implementations differ in whether they read the ends of sequences off the position ids;
    one that does not lets sequences see each other without a word.
    """
    model, ids, device = causal_lm(model), torch.arange(12) % model.config.get_text_config().vocab_size, numerics.device
    parts = [ids[:5], ids[5:9], ids[9:]]
    packed = {
        "input_ids": ids[None].to(device),
        "position_ids": torch.cat([torch.arange(len(part)) for part in parts])[None].to(device),
    }
    was_training = model.training
    model.eval()
    together = hidden_states(model, packed, numerics)[0].float()
    alone = torch.cat([hidden_states(model, {"input_ids": part[None].to(device)}, numerics)[0] for part in parts])
    model.train(was_training)
    tolerance = 1e-3 if numerics.dtype == torch.float32 else 0.1
    return bool((together - alone.float()).abs().max() <= tolerance * alone.float().abs().max())


@contextmanager
def accept_token_function(model: PreTrainedModel | PeftModel):
    """Inside, `model(input_ids=..., token_function=f)` returns `f(hidden_BTD, head)`; without `f` all is as it was.

    The head is used within the wrapped model's own forward: what wraps a model for many
    devices (DDP's gradient hooks, FSDP's gathering of shards) acts only there.
    """
    lm = causal_lm(model)
    plain = lm.forward

    def forward(self, *args, token_function=None, **inputs):
        if token_function is None:
            return plain(*args, **inputs)
        return token_function(hidden_states(self, inputs), head_of(self))

    # Trainer reads off the signature which of a dataset's columns the model wants.
    wanted = inspect.signature(plain)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = wanted.replace(parameters=[own, *wanted.parameters.values()])

    with replaced_forward(lm, forward):
        yield model
