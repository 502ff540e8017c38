"""Publish a model folder on the Hugging Face Hub.

Does not import torch.
"""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from tokenuq_ml.errors import InputError
from tokenuq_ml.hub_errors import first_line

LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may write"
OLD_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
"""Files of an earlier version that the new one may not have, such as shards.

With an adapter's config in the repository, transformers would load the model that it names, not this one.
"""


def check_repo(repo: str, public: bool) -> None:
    """Check, before a model is merged, that it can be published, and that it will be seen by whom it should.

    Args:
        repo: owner/name.
        public: whether everyone may see it.

    Raises:
        InputError: the id is not valid, there is no token, the hub does not answer or refuses, or the repository is
            public and was not asked to be.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--hub {repo}: is not an id of the hub, owner/name: {first_line(error)}") from None
    if repo.count("/") != 1:
        raise InputError(f"--hub {repo}: is not an id of the hub; name the owner too, owner/name")
    if get_token() is None:
        raise InputError(f"--hub {repo}: there is no access token; {LOG_IN}")
    try:
        found = HfApi().model_info(repo)
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise InputError(_sentence(error, repo)) from None
    if not found.private and not public:
        raise InputError(f"--hub {repo}: the repository is public; add --public to publish there, or name another one")
    if found.private and public:
        raise InputError(
            f"--hub {repo}: the repository is private, and --public does not change that; change its settings, or "
            "remove --public"
        )


def publish(folder: Path, repo: str, public: bool, message: str) -> str:
    """Create the repository if there is none, and commit the files of a folder; return the address of the commit.

    Raises:
        InputError: the hub does not answer, or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=list(OLD_WEIGHTS)
        )
    except Exception as error:
        raise InputError(_sentence(error, repo)) from None
    return str(commit.commit_url)


def _sentence(error: Exception, repo: str) -> str:
    """Return what failed and what to do, in one sentence; raise what is not the hub's."""
    where = f"--hub {repo}"
    if constants.is_offline_mode() or isinstance(error, OfflineModeIsEnabled):
        return f"{where}: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it to publish"
    if isinstance(error, HfHubHTTPError):
        status = None if error.response is None else error.response.status_code
        if status == 401:
            return f"{where}: the hub rejects the access token (401); {LOG_IN}"
        if status == 403:
            return f"{where}: the token may not write there ({first_line(error)}); {LOG_IN}, or name another owner"
        if status is not None:
            return f"{where}: {constants.ENDPOINT} answers {status}: {first_line(error)}"
    if isinstance(error, (OSError, TimeoutError)) or type(error).__module__.startswith(
        ("httpx", "httpcore", "requests")
    ):
        return f"{where}: {constants.ENDPOINT} cannot be reached ({first_line(error)}); check the network and its proxy"
    raise error
