"""Remove keys, tokens and passwords from texts that leave the process: messages, logs, errors, metadata.

Hides what is known to be secret (values of environment variables such as `HF_TOKEN` or `OPENAI_API_KEY`, and values
given to `hide`) and what looks like it (tokens with their issuer's prefix, credentials in URLs and in HTTP headers).
Tables hold the user's data and are not altered.

detect-secrets and similar scanners look for secrets in files, by entropy too, and would hide hashes and data versions.
"""

import io
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

SHOWN = "***"
"""What is shown instead of a secret."""
MIN_CHARACTERS = 8
"""A shorter value of an environment variable may be an ordinary word, such as `false`."""

_SECRET_WORDS = frozenset(
    "KEY APIKEY TOKEN SECRET SECRETS PASSWORD PASSWD PASSPHRASE PWD PASS PAT CREDENTIAL CREDENTIALS".split()
)
_SECRET_ENDS = ("PASSWORD", "PASSWD", "APIKEY", "TOKEN", "SECRET")
_PLACE_WORDS = frozenset("PATH FILE DIR HOME SOCK URL HOST PORT NAME".split())
_NOT_SECRET = frozenset({"PWD", "OLDPWD"})

_ISSUED = (
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}",
    r"\b(?:sk|pk|rk)-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}",
    r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}",
    r"\bgh[oprsu]_[A-Za-z0-9]{20,}",
    r"\bgithub_pat_[A-Za-z0-9_]{20,}",
    r"\bglpat-[A-Za-z0-9_-]{16,}",
    r"\bgsk_[A-Za-z0-9]{16,}",
    r"\bxox[abposr]-[A-Za-z0-9-]{10,}",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\bAIza[0-9A-Za-z_-]{30,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
)
"""Tokens that their issuer marks by a prefix: Hugging Face, OpenAI and alike, Stripe, GitHub, GitLab, Groq, Slack, AWS,
Google, and JSON web tokens."""
_IN_URL = (
    # Greedy: a password may hold an `@` that nobody has escaped.
    r"(?<=://)[^\s/?#\"'<>\\]{1,512}(?=@)",
    r"(?i:(?<=[?&])(?:api[_-]?key|key|(?:access_|auth_|id_|refresh_)?token|auth|password|passwd|pwd|secret|client_secret"
    r"|sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token)=)(?P<query>[^\s&#\"'<>\\]{1,4096})",
)
_ELSEWHERE = (
    r"(?i:\b(?:bearer|basic)\s+)(?P<header>[A-Za-z0-9._~+/=-]{8,})",
    r"(?i:\b(?:x-)?(?:api[_-]?key|authorization|password|passwd|client_secret|secret_access_key|access_token)"
    r"\\?[\"']?\s*[:=]\s*\\?[\"']?)(?P<named>(?!None\b|null\b|\$|(?i:bearer|basic)\s)[^\s\"'&,;{}\[\]\\]{6,})",
    r"(?i:\bapi key provided:\s*)(?P<provided>[^\s\"',;\\]{2,}[^\s\"',;.\\])",
)
_LOOKS_SECRET = re.compile("|".join((*_ISSUED, *_IN_URL, *_ELSEWHERE)))
_WRITTEN = re.compile("|".join((*_ISSUED, *_IN_URL)))
_MARKS = (
    "hf_ api_org_ sk- pk- rk- sk_ rk_ gho_ ghp_ ghr_ ghs_ ghu_ github_pat_ glpat- gsk_ xox akia asia aiza eyj :// ? & "
    "bearer basic key authorization passw secret access_token"
).split()
"""A text without any of these, in lower case, holds nothing that looks secret: 30 times as fast to find out."""
_hidden: set[str] = set()


def hide(value: str | None) -> None:
    """Let `redacted` hide a value of this process that an environment variable of any name, or a file, holds."""
    if value and len(value) >= 4:
        _hidden.add(value)


def redacted(text: str) -> str:
    """Return `text` with every secret in it as `***`; the same object if there is none."""
    known = _known(tuple(sorted(_hidden | set(secret_values(os.environ)))))
    if known is not None:
        text = known.sub(SHOWN, text)
    lower = text.lower()
    return _LOOKS_SECRET.sub(_replace, text) if any(mark in lower for mark in _MARKS) else text


def redacted_values(value: Any) -> Any:
    """Return lists and mappings, as JSON has them, with every text redacted; numbers and names of keys stay."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: redacted_values(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_values(item) for item in value]
    return value


class RedactedStream(io.TextIOBase):
    """A stream of this process, such as `sys.stderr`, through which libraries write, with secrets hidden."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the redacted text; return the length of the given one, as the caller expects."""
        self._stream.write(redacted(text))
        return len(text)

    def __getattribute__(self, name: str) -> Any:
        """Return an attribute of the stream itself: its encoding, its descriptor, whether it is a terminal."""
        if name in ("write", "writelines", "_stream", "__class__"):
            return super().__getattribute__(name)
        return getattr(super().__getattribute__("_stream"), name)


def redact_output() -> None:
    """Hide secrets in all that this process prints from now on, tracebacks and logs of libraries included."""
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)


def redact_tracebacks() -> None:
    """Hide secrets in the traceback that Python prints if this process ends by an exception."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)

    sys.excepthook = show


def holds_secret(text: str) -> bool:
    """Return whether a configured text holds a credential: in a URL, or a token with its issuer's prefix."""
    return _WRITTEN.search(text) is not None


def secret_values(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of the environment variables whose names say that they are secret."""
    for name in environment:
        if _names_secret(name):
            value = environment.get(name, "").strip()
            if len(value) >= MIN_CHARACTERS:
                yield value


@lru_cache(maxsize=4096)
def _names_secret(name: str) -> bool:
    """Return whether a variable of this name holds a secret. Each redacted text asks for all variables."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    named = words & _SECRET_WORDS or any(word.endswith(_SECRET_ENDS) for word in words)
    return bool(named) and not words & _PLACE_WORDS and name not in _NOT_SECRET


@lru_cache(maxsize=8)
def _known(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return a pattern of the values as they are, and as URLs, JSON and `repr` write them; the longest first."""
    forms = {form for value in values for form in (value, quote(value, safe=""), quote_plus(value), repr(value)[1:-1])}
    forms |= {json.dumps(value)[1:-1] for value in values}
    return re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))) if forms else None


def _replace(found: re.Match[str]) -> str:
    for name in ("query", "header", "named", "provided"):
        if found[name] is not None:
            # The name of the parameter or header, which stands before the secret, stays.
            return found[0][: found.start(name) - found.start()] + SHOWN
    return SHOWN
