"""The work of models and datasets, which studies share. Does not import torch."""

from tokenuq_ml.config import ModelSpec
from tokenuq_ml.costs.memory import PROCESS_BYTES
from tokenuq_ml.costs.sources import ModelSizes
from tokenuq_ml.costs.work import Work

PRETRAINING_FLOP, PRETRAINING_BYTES = 6, 16
"""Of a parameter that is trained: FLOPs per token, forward and backward; bytes of weight, gradient and two moments."""


def model_work(spec: ModelSpec, sizes: ModelSizes | None, document_tokens: float = 0.0) -> Work:
    """Return the work of converting a model, or of training it from scratch.

    Args:
        spec: the model.
        sizes: None if they are not known: only its tokens are returned then.
        document_tokens: tokens of the mean document, of a model that is trained from scratch.
    """
    training = spec.pretraining
    tokens = training.steps * training.batch_size * document_tokens if training else 0.0
    if sizes is None:
        return Work(tokens, flop=None)
    parameters = sizes.architecture.parameters
    if training:
        state = parameters * PRETRAINING_BYTES
        return Work(
            tokens,
            {"train": PRETRAINING_FLOP * parameters * tokens},
            {"weights": parameters * sizes.stored_bytes},
            {"process": PROCESS_BYTES, "weights": state},
            # A checkpoint is deleted after the next one is complete.
            temporary_disk={"checkpoints": 2 * state},
            precision="float32",
        )
    disk = {"weights": parameters * sizes.stored_bytes}
    download = {"the hub's cache": parameters * sizes.stored_bytes} if spec.source == "hub" else {}
    # A GGUF file is unpacked to float32 before it is converted to bfloat16.
    in_memory = 6 if spec.source in ("gguf", "wheel") else sizes.stored_bytes
    memory = {"process": PROCESS_BYTES, "weights": parameters * in_memory}
    return Work(disk=disk, memory=memory, temporary_disk=download)


def dataset_work(tokens: float, bytes_per_token: float) -> Work:
    """Return the work of loading a dataset with so many tokens of text."""
    return Work(disk={"examples": bytes_per_token * tokens}, memory={"process": PROCESS_BYTES})
