"""The work of models and datasets, which studies share. Does not import torch."""

from tokenuq_ml.config import ModelSpec
from tokenuq_ml.costs.memory import PROCESS_BYTES
from tokenuq_ml.costs.sources import ModelSizes
from tokenuq_ml.costs.work import Work


def model_work(spec: ModelSpec, sizes: ModelSizes | None) -> Work:
    """Return the work of converting a model; only its tokens, of which it has none, if the sizes are not known."""
    if sizes is None:
        return Work(flop=None)
    parameters = sizes.architecture.parameters
    disk = {"weights": parameters * sizes.stored_bytes}
    download = {"the hub's cache": parameters * sizes.stored_bytes} if spec.source == "hub" else {}
    # A GGUF file is unpacked to float32 before it is converted to bfloat16.
    in_memory = 6 if spec.source in ("gguf", "wheel") else sizes.stored_bytes
    memory = {"process": PROCESS_BYTES, "weights": parameters * in_memory}
    return Work(disk=disk, memory=memory, temporary_disk=download)


def dataset_work(tokens: float, bytes_per_token: float) -> Work:
    """Return the work of loading a dataset with so many tokens of text."""
    return Work(disk={"examples": bytes_per_token * tokens}, memory={"process": PROCESS_BYTES})
