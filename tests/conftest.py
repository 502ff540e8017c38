"""No network, quiet libraries, and a toy study whose stages are `fake_stage.py`."""

import os
import sys

# Before anything imports a Hugging Face library: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DAGSTER_DISABLE_TELEMETRY="1",
)
for name in ("DAGSTER_HOME", "TOKENUQ_HOME", "TOKENUQ_CONFIG"):
    os.environ.pop(name, None)


def pytest_collection_finish():
    """One thread for tensors of a few kilobytes: two would wait for each other, the longer the busier the machine."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
