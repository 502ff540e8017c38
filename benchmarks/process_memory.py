"""Memory of this process on Linux. Imports no other library, because what is imported counts."""

import re
from pathlib import Path


def status_mib(field: str) -> float:
    """Return a field of /proc/self/status in MiB: `VmRSS` is the current resident size, `VmHWM` its peak."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status has no field {field}")
    return int(found[1]) / 1024


def reset_peak() -> None:
    """Set `VmHWM` to the current resident size."""
    Path("/proc/self/clear_refs").write_text("5")
