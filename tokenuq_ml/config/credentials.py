"""Refuse keys and passwords in the configuration: its values are stored in manifests and shown in the UI."""

from collections.abc import Iterator
from typing import Any

from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import holds_secret

REMEDY = (
    "holds a password or key, which would be stored and shown: remove it, and set it as an environment variable "
    "(a judge's key: one that `api_key_env` names; the Hugging Face Hub's: HF_TOKEN; S3's: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY)"
)


def check_no_credentials(where: str, raw: Any) -> None:
    """Check the texts of an entry, and its keys.

    Args:
        where: the file and the entry, for the message, which does not repeat the value.
        raw: what YAML has read.

    Raises:
        InputError: one holds a credential.
    """
    for key, text in _texts(raw):
        if holds_secret(text):
            raise InputError(f"{where}{key}: {REMEDY}")


def _texts(raw: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(raw, str):
        yield key, raw
    elif isinstance(raw, dict):
        for name, value in raw.items():
            yield key, str(name)
            yield from _texts(value, f"{key}.{name}")
    elif isinstance(raw, (list, tuple)):
        for number, value in enumerate(raw):
            yield from _texts(value, f"{key}.{number}")
