"""The git commit of the code."""

import functools
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


@functools.cache
def git_state(folder: Path = CHECKOUT) -> dict[str, str | bool]:
    """Return `git_commit` and `git_dirty` of the code, or nothing if the code is not in a git checkout."""
    if not (folder / ".git").exists():
        # An installed package may lie inside the checkout of another project.
        return {}
    try:
        # -uno: files that git does not track cannot be named by a commit, and looking for them is what takes long.
        run = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, timeout=5, check=True)
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(run(["git", "status", "--porcelain", "-uno"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit, "git_dirty": dirty}
