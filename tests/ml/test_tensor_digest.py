"""Content hashes of safetensors files."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from tokenuq_ml.tensor_digest import tensors_digest

TENSORS = {
    "b": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "a": torch.tensor([1.5, -2.0], dtype=torch.float64),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    # More than is read at a time.
    "large": torch.randn(1200, 1000, generator=torch.Generator().manual_seed(0)),
    "flags": torch.tensor([True, False]),
}


def reference(tensors, *more):
    """From the tensors themselves."""
    digest = hashlib.sha256("|".join(more).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(bytes(tensor.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("metadata", [None, {"dataset": "d"}])
def test_the_digest_covers_names_types_shapes_and_values(tmp_path, metadata):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata=metadata)
    assert tensors_digest(tmp_path / "a.safetensors") == reference(TENSORS)
    assert tensors_digest(tmp_path / "a.safetensors", "x", "y") == reference(TENSORS, "x", "y")


@pytest.mark.parametrize(
    "change", [{"a": TENSORS["a"] + 1}, {"b": TENSORS["b"].view(3, 2)}, {"a": TENSORS["a"].view(torch.int64)}]
)
def test_any_change_changes_the_digest(tmp_path, change):
    save_file(TENSORS, tmp_path / "a.safetensors")
    save_file(TENSORS | change, tmp_path / "b.safetensors")
    assert tensors_digest(tmp_path / "a.safetensors") != tensors_digest(tmp_path / "b.safetensors")
