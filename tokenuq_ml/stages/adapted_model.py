"""A base model with a stored adapter, loaded in one precision at a time."""

import gc
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from tokenuq_ml import process_group
from tokenuq_ml.config import TrainSpec
from tokenuq_ml.config.resources import Sharding
from tokenuq_ml.models.adapters import (
    TrainedModel,
    adapter_settings,
    attach_adapter,
    freeze_adapter,
    put_adapter_weights,
    use_adapter,
)
from tokenuq_ml.models.base_settings import DEFAULT, BaseSettings
from tokenuq_ml.models.gate import output_path
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.numerics import Numerics, resolve_numerics
from tokenuq_ml.models.sharding import is_sharded, load_sharded

STUDENT_ADAPTER, TEACHER_ADAPTER = "default", "teacher"
"""Names of the adapters in their models; `default` is PEFT's own default."""


def load_base(
    folder: str | Path, precision: str, sharding: Sharding, settings: BaseSettings = DEFAULT
) -> tuple[PreTrainedModel, Numerics]:
    """Load a base model: this process's part of it, if the study shards it and the stage has several processes."""
    if sharding == "fsdp" and process_group.world_size() > 1:
        process_group.join()
        return load_sharded(folder, precision, process_group.world_size(), settings)
    return load_model(folder, precision, settings)


def load_trained_base(
    folder: str | Path, precision: str, train: TrainSpec, sharding: Sharding, settings: BaseSettings = DEFAULT
) -> tuple[PreTrainedModel, Numerics]:
    """Load a base model to train, and return it with the numerics of its passes.

    Weights that are trained themselves are float32, whatever the precision of the passes is: bfloat16 would round off
    most of an optimiser's steps.
    """
    if train.adapter != "none":
        return load_base(folder, precision, sharding, settings)
    return load_base(folder, "float32", sharding, settings)[0], resolve_numerics(precision)


def as_measured(model: TrainedModel, numerics: Numerics) -> tuple[TrainedModel, Numerics] | None:
    """Return a trained model, frozen for measurements; None if it has to be loaded for them.

    That is so of a sharded one, and of one without an adapter, whose weights are wider than those that are measured.
    """
    if is_sharded(model) or not isinstance(model, PeftModel):
        return None
    return freeze_adapter(model), numerics


@dataclass(frozen=True)
class StoredModel:
    """A base model with an adapter, as files and settings: what another process needs to load the same model."""

    base: str
    adapter: str
    name: str
    """Of the adapter in the model."""
    precision: str
    is_active: bool = True
    """Whether passes go through the adapter, or through the base model alone."""
    is_fresh: bool = False
    """Whether the adapter's B is zero, as before its training, and not as stored."""
    settings: BaseSettings = DEFAULT
    """How the base model is loaded besides its precision."""

    def activated(self, model: TrainedModel) -> AbstractContextManager[None]:
        """Activate the adapter inside the context, or none."""
        return use_adapter(model, self.name if self.is_active else None)


class AdaptedModel:
    """A base model with an adapter. Asked for another precision, it frees the model and loads it again.

    Args:
        base: folder of the base model.
        adapter: folder of the adapter.
        name: name of the adapter in the model.
        loaded: the model, if it is in memory already.
        sharding: of the base model over the processes of the stage, which all call the methods.
        settings: how the base model is loaded besides its precision.
    """

    def __init__(
        self,
        base: str | Path,
        adapter: str | Path,
        name: str,
        loaded: tuple[TrainedModel, Numerics] | None = None,
        sharding: Sharding = "none",
        settings: BaseSettings = DEFAULT,
    ):
        self._base, self._adapter, self._name, self._loaded = base, adapter, name, loaded
        self._sharding: Sharding = sharding
        self._settings = settings
        self._is_fresh = False

    def stored(self, numerics: Numerics) -> StoredModel:
        """Return the model in the dtype of its numerics, for another process."""
        precision = str(numerics.fields()["precision"])
        return StoredModel(str(self._base), str(self._adapter), self._name, precision, settings=self._settings)

    def become(self, stored: StoredModel) -> bool:
        """Become another model that differs in the weights of its adapter only; return whether this is that model now.

        The base model stays in memory, in its precision.
        """
        if (str(self._base), self._name, self._settings) != (stored.base, stored.name, stored.settings):
            return False
        if (str(self._adapter), self._is_fresh) == (stored.adapter, stored.is_fresh):
            return True
        if adapter_settings(self._adapter) != adapter_settings(stored.adapter):
            return False
        self._adapter, self._is_fresh = stored.adapter, stored.is_fresh
        if self._loaded is not None:
            self._put_weights(self._loaded[0])
        return True

    def _put_weights(self, model: TrainedModel) -> None:
        put_adapter_weights(model, self._name, None if self._is_fresh else self._adapter)

    def at(self, precision: str) -> tuple[TrainedModel, Numerics]:
        """Return the model with its adapter, frozen.

        Callers must drop their reference before they ask for another precision.
        """
        if self._loaded is None or self._loaded[1].dtype != resolve_numerics(precision).dtype:
            self._loaded = None
            # Modules refer to each other, so that only a collection frees their memory at once.
            gc.collect()
            base, numerics = load_base(self._base, precision, self._sharding, self._settings)
            model = attach_adapter(base, self._adapter, self._name)
            if is_sharded(model):
                # Now, on all processes: later one of them alone may ask for the head.
                output_path(model)
            if self._is_fresh:
                self._put_weights(model)
            self._loaded = model, numerics
        return self._loaded

    def for_bald(self) -> tuple[TrainedModel, Numerics]:
        """Return the model in float32, whatever the precision of the study is."""
        model, numerics = self.at("float32")
        return model, replace(numerics, reason="BALD is a difference of passes, below what bfloat16 rounds off")
