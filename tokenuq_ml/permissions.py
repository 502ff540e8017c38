"""Errors of files that belong to another user, in words: whose they are, and how a store is shared.

except PermissionError as error:
    raise InputError(not_permitted(error))
"""

import errno
import grp
import os
import pwd
import re
import stat
from itertools import islice
from pathlib import Path

SHARED = "to share a store, give all its users one group: `chgrp -R GROUP`, `chmod -R g+rwX`, `umask 002`"
MOST_LOOKED_AT = 10_000
"""Files of a folder in which the cause is looked for."""
_WORDS = re.compile(r"permission denied|attempt to write a readonly database|os error 13\b", re.I)
_PATH = re.compile(r"""["'](/[^"']+)["']""")


def not_permitted(error: BaseException, *folders: str | Path) -> str | None:
    """Return a sentence for an error that means that this user may not read or write a file; None for other errors.

    Args:
        error: what was raised. SQLite and DuckDB have exceptions of their own, with the system's words in them.
        folders: where to look for the cause if the error names no file.
    """
    while True:
        if isinstance(error, OSError):
            if error.errno not in (errno.EACCES, errno.EPERM):
                return None
            found = [error.filename] if isinstance(error.filename, str) else []
            break
        if _WORDS.search(str(error)):
            found = _PATH.findall(str(error))
            break
        if error.__cause__ is None:
            return None
        error = error.__cause__
    places = [place for text in (*found, *folders) if (place := _closed(Path(text))) is not None]
    if not places:
        return f"{found[0]}: permission denied" if found else None
    return f"{_described(places[0])}; {SHARED}"


def _closed(path: Path) -> Path | None:
    """Return the file or folder that keeps this user out of `path`; None if none does."""
    path = Path(os.path.realpath(path))
    for folder in reversed(path.parents):
        if folder.is_dir() and not os.access(folder, os.X_OK):
            return folder
    while not os.path.lexists(path):
        path = path.parent
    if not os.access(path, os.R_OK | os.W_OK):
        return path
    # To make or delete a file is to write its folder.
    if path.is_dir():
        return next((entry for entry in islice(path.rglob("*"), MOST_LOOKED_AT) if not os.access(entry, os.W_OK)), None)
    return None if os.access(path.parent, os.W_OK) else path.parent


def _described(path: Path) -> str:
    status = path.lstat()
    mode = stat.filemode(status.st_mode)
    return f"{path} belongs to {_user(status.st_uid)}:{_group(status.st_gid)} ({mode}), not to {_user(os.geteuid())}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
