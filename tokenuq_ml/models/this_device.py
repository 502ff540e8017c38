"""What this machine computes on. A program of its own, since it imports torch.

    python -m tokenuq_ml.models.this_device

Prints one JSON object: `device`, `precision`, `threads`, `precision_reason`, `torch`, `memory` and `free` (bytes of the
device), `name`, and `cuda_build` (the CUDA version that torch was built for; null for a build without).
"""

import json
import os
import sys
from typing import Any

import torch

from tokenuq_ml.models.numerics import resolve_numerics


def this_device() -> dict[str, Any]:
    """Return what a stage of precision `auto` would compute on."""
    numerics = resolve_numerics()
    if numerics.device == "cuda":
        free, memory = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
    else:
        free, memory, name = *_host_memory(), "this processor"
    return {
        **numerics.fields(),
        "torch": torch.__version__,
        "name": name,
        "memory": memory,
        "free": free,
        "cuda_build": torch.version.cuda,
    }


def _host_memory() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


if __name__ == "__main__":
    json.dump(this_device(), sys.stdout)
