"""Turn Hugging Face Hub errors into actionable messages."""

from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_LOG_IN = "run `hf auth login` or set HF_TOKEN"


def explain(error: BaseException, repo: str, kind: str = "model") -> str:
    """Return what failed and what to do, in one sentence.

    Args:
        error: of a request to the hub; may be wrapped in errors of other libraries.
        repo: the id of the model or dataset, which a configuration entry has as `id`.
        kind: `model` or `dataset`.
    """
    errors = list(_chain(error))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in errors)

    page = f"{constants.ENDPOINT}/{'' if kind == 'model' else kind + 's/'}{repo}"
    download = _download(repo, kind)
    if has(GatedRepoError):
        return f"{repo} is gated: accept its licence at {page}, then {_LOG_IN}; {download}"
    if has(RevisionNotFoundError):
        return f"{repo} has no such revision: correct `revision:`; {page} lists them"
    if has(RepositoryNotFoundError):
        return f"the hub has no {kind} {repo}, or it is private: correct `id:`, or {_LOG_IN} if it is yours"
    if has(HFValidationError):
        return f"{repo!r} is not a valid hub id: correct `id:`, which is owner/name; for a folder use `path:`"
    if constants.is_offline_mode() or has(OfflineModeIsEnabled):
        return (
            f"{repo} is not in the local cache, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set: unset it, "
            f"{download}"
        )
    status = _status(errors)
    if status in (401, 403):
        return f"the hub rejects the access token ({status}) for {repo}: {_LOG_IN} with a valid one; {download}"
    if status == 429:
        return f"the hub reports too many requests: wait, {_LOG_IN}, {download}"
    if has(EntryNotFoundError) and not has(LocalEntryNotFoundError):
        return (
            f"{repo} lacks a required file ({first_line(errors[0])}): correct `id:`; {page}/tree/main lists its files"
        )
    answer = f"answers {status}" if status else "cannot be reached"
    return f"{constants.ENDPOINT} {answer}: check the network and its proxy, {download}"


def is_hub_error(error: BaseException) -> bool:
    """Return whether a request to the hub failed, as opposed to reading the files that it returned."""
    kinds = (HfHubHTTPError, EntryNotFoundError, HFValidationError, OfflineModeIsEnabled)
    return any(isinstance(one, kinds) for one in _chain(error))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; its class if it has no message."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _download(repo: str, kind: str) -> str:
    flag = "" if kind == "model" else f" --repo-type {kind}"
    return f"or download it elsewhere (`hf download {repo}{flag} --local-dir DIR`) and name that folder as `path:`"


def _status(errors: list[BaseException]) -> int | None:
    """Return the HTTP status of the first answer of the hub; None if it did not answer."""
    answers = (one.response for one in errors if isinstance(one, HfHubHTTPError))
    return next((answer.status_code for answer in answers if answer is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
