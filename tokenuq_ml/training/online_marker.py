"""Why there is no cache of the teacher's states, as a file in its place: students then run the teacher online.

Does not import torch.
"""

import json
from pathlib import Path

ONLINE_FILE = "online.json"


def write_online_marker(folder: str | Path, needed: int, budget: int) -> str:
    """Write, in place of a cache, why there is none: it would exceed its budget.

    Args:
        folder: where the cache would be.
        needed: bytes that the cache would take.
        budget: bytes that it may take.

    Returns:
        The reason, for messages.
    """
    reason = f"{needed / 1e9:.3g} GB is above the budget of {budget / 1e9:.3g} GB"
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, ONLINE_FILE).write_text(json.dumps({"bytes": needed, "budget_bytes": budget, "why": reason}))
    return reason


def read_online_reason(folder: str | Path) -> str | None:
    """Return why the folder holds no cache, so that students run the teacher online; None if it holds one."""
    path = Path(folder, ONLINE_FILE)
    return json.loads(path.read_text())["why"] if path.exists() else None
