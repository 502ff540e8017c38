"""Read JSON that may be damaged: whatever is wrong with the file, one sentence says it."""

import json
import os
from pathlib import Path
from typing import Any

from tokenuq_ml.errors import InputError
from tokenuq_ml.file_hashes import NotAFile, open_regular

_MAX_BYTES = 2**30
"""More than any JSON file of a store: a sparse file of terabytes must not be read."""


class DamagedFile(InputError):
    """A file that does not hold what it should; the message is one sentence with its path and what repairs it."""


def read_json(path: str | Path, remedy: str = "") -> Any:
    """Return the content of a JSON file.

    Stricter than the `json` module: keys are given once, and NaN and infinity, which JSON does not have, are refused.

    Args:
        path: the file.
        remedy: what repairs a damaged file; ends the message.

    Raises:
        FileNotFoundError: there is no such file. (NotADirectoryError counts as one.)
        DamagedFile: it is not a file, not readable, not UTF-8 or not JSON.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise damaged(path, "is too large for JSON", remedy)
            content = file.read()
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from None
    except FileNotFoundError:
        raise
    except NotAFile as error:
        raise damaged(path, str(error).removeprefix(f"{path} "), remedy) from None
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror or error})", remedy) from None
    if not content.strip():
        raise damaged(path, "is empty", remedy)
    try:
        text = content.decode()
        found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse)
        if "\\u" in text:
            # Half of a surrogate pair is no text: it could not be printed, and names no file.
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeEncodeError:
        raise damaged(path, "holds half of a surrogate pair, which is no text", remedy) from None
    except UnicodeDecodeError as error:
        raise damaged(path, f"is not UTF-8 (byte {error.start})", remedy) from None
    except RecursionError:
        raise damaged(path, "is nested too deeply for JSON of a store", remedy) from None
    except ValueError as error:
        raise damaged(path, f"is not JSON: {error}", remedy) from None


def damaged(path: str | Path, what: str, remedy: str = "") -> DamagedFile:
    """Return the error that a file is damaged."""
    return DamagedFile(f"{path}: {what}" + (f"; {remedy}" if remedy else ""))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in {name for name, _ in pairs[:number]})
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
