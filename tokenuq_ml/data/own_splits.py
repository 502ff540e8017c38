"""The splits that a dataset's files or rows name themselves."""

from collections.abc import Mapping
from typing import Any

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.formats.row import SPLIT_WORDS
from tokenuq_ml.data.sources import locate, read_file
from tokenuq_ml.data.sources.fingerprint import TEXT

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""How rows are divided that name no split."""


def split_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys `sizes` and `drawn_from` of an entry, so that it has the three splits that a study needs.

    If the rows or the files name all three, they are taken. If files name two of them, validation is a tenth of train.
    Otherwise rows are drawn by `SHARES`; of a dataset on the hub, those of its split `train`.

    Args:
        keys: of the entry, with `format`; the other keys are left as they are.

    Raises:
        InputError: the files cannot be found.
    """
    spec = DatasetSpec.model_validate({**keys, "sizes": "all"})
    if spec.on_hub:
        return {"sizes": dict(SHARES)}
    found = locate.find_files(spec)
    named = set(found.drawn_from or {})
    if SHARES.keys() <= named or (not named and _rows_name_splits(spec, found)):
        return {"sizes": "all"}
    held_out = next((split for split in ("test", "validation") if split in named), None)
    if "train" in named and held_out is not None:
        return {
            "drawn_from": {"train": "train", "validation": "train", "test": held_out},
            "sizes": {"train": 0.9, "validation": 0.1, "test": 1.0},
        }
    return {"sizes": dict(SHARES)}


def ood_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the key `sizes` of an entry that is only evaluated: the split `test` if files name one, else all rows."""
    spec = DatasetSpec.model_validate({**keys, "sizes": "all"})
    named = () if spec.on_hub else locate.find_files(spec).drawn_from or ()
    return {"sizes": {"test" if "test" in named else "ood": 1.0}}


def _rows_name_splits(spec: DatasetSpec, found: locate.DataFiles) -> bool:
    file = found.files[0]
    if read_file.kind_of_content(file) == TEXT:
        return False
    row = next(iter(read_file.records(spec, file, lambda value: True))).value
    return isinstance(row, dict) and str(row.get("split", "")).lower() in SPLIT_WORDS
