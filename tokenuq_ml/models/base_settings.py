"""How a base model is loaded besides its precision: the settings that a study names, as its assets' fields have them.

Does not import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenuq_ml.config.base_keys import BASE_KEYS, Attention, Quantization


@dataclass(frozen=True)
class BaseSettings:
    """How a base model is loaded besides its precision."""

    attention: Attention = "auto"
    quantization: Quantization | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "BaseSettings":
        """Return the settings that an asset's fields name (`StudySpec.base_fields`)."""
        return cls(**{key: fields[key] for key in BASE_KEYS if key in fields})


DEFAULT = BaseSettings()
