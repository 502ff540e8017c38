"""What it means that the Hugging Face hub does not give something, in one sentence that says what to do.

Knows the hub's errors, under whatever they were wrapped in; does not know what is fetched, nor what for.
"""

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


def why(error: BaseException, repo: str, kind: str = "model") -> str:
    """What is wrong with `repo` (a `model` or a `dataset`) and the mend, for an entry with the keys `id` and `path`."""
    errors = list(_chain(error))
    first = lambda *kinds: next((e for e in errors if isinstance(e, kinds)), None)  # noqa: E731
    flag = "" if kind == "model" else f" --repo-type {kind}"
    page = f"{constants.ENDPOINT}/{'' if kind == 'model' else kind + 's/'}{repo}"
    elsewhere = f"or fetch it elsewhere (`hf download {repo}{flag} --local-dir DIR`) and name that folder as `path:`"
    token = "run `hf auth login` or set HF_TOKEN"
    if first(GatedRepoError):
        return f"{repo} is gated: accept its licence at {page}, then {token}; {elsewhere}"
    if first(RevisionNotFoundError):
        return f"{repo} has no such revision: mend `revision:`; {page} lists them"
    if first(RepositoryNotFoundError):
        return f"the hub has no {kind} {repo}, or it is private: mend `id:`, or {token} if it is yours"
    if first(HFValidationError):
        return f"{repo!r} is no id of the hub: mend `id:`, which is owner/name; a folder is a `path:`"
    if constants.is_offline_mode() or first(OfflineModeIsEnabled):
        return (
            f"{repo} is not in the local cache, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set: unset it, "
            f"{elsewhere}"
        )
    status = next(
        (e.response.status_code for e in errors if isinstance(e, HfHubHTTPError) and e.response is not None), None
    )
    if status in (401, 403):
        return f"the hub refuses the token that it was given ({status}) for {repo}: {token} anew; {elsewhere}"
    if status == 429:
        return f"the hub answers that there were too many requests: wait, {token}, {elsewhere}"
    if first(EntryNotFoundError) and not first(LocalEntryNotFoundError):
        return f"{repo} lacks a file that is needed ({first_line(errors[0])}): mend `id:`; {page}/tree/main lists them"
    answer = f"answers {status}" if status else "cannot be reached"
    return f"{constants.ENDPOINT} {answer}: check the network and its proxy, {elsewhere}"


def is_hub_error(error: BaseException) -> bool:
    """Whether a request to the hub failed, and not the reading of what it gave."""
    kinds = (HfHubHTTPError, EntryNotFoundError, HFValidationError, OfflineModeIsEnabled)
    return any(isinstance(e, kinds) for e in _chain(error))


def first_line(error: BaseException) -> str:
    """What an error says, in a line that fits into a sentence."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
