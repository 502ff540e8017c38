"""The code version and the data version of every asset, in Dagster's terms.

The rules (which fields a stage uses, what content is) are `tokenuq_ml.stages`'; this file
only hands them over. It also finds the commit that an asset was made at, for its record.
"""

import functools
import subprocess
from pathlib import Path

import dagster as dg

from tokenuq_ml.stages import AssetResult, code_version

__all__ = ["code_version", "data_version", "git_state"]

CHECKOUT = Path(__file__).resolve().parents[1]


def data_version(result: AssetResult) -> dg.DataVersion:
    """The content hash that the child found."""
    return dg.DataVersion(result.data_version)


@functools.cache
def git_state(folder: Path = CHECKOUT) -> dict[str, str | bool]:
    """`git_commit` and `git_dirty` of the code; empty where there is no git."""
    try:
        # -uno: files that git does not track cannot be named by a commit, and looking for them is what takes long.
        run = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, timeout=5, check=True)
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(run(["git", "status", "--porcelain", "-uno"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit, "git_dirty": dirty}
