"""Credentials for the bucket: those that a dataset at an `s3://` address is read with.

obstore reads the environment and the metadata of an instance, but no profile. botocore, which s3fs brings, reads all
that AWS's tools do: variables, profiles, single sign-on, containers, instances. obstore's own adapter needs boto3.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from tokenuq_ml.errors import InputError

ASK_AGAIN = timedelta(minutes=10)
"""botocore renews credentials that expire; obstore asks it this often."""


def credential_provider(address: object) -> Any:
    """Return what obstore calls for credentials; None where the environment holds them.

    Raises:
        InputError: there are no credentials.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return None
    missing = InputError(
        f"{address}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where an "
        "instance role gives them"
    )
    try:
        import botocore.exceptions
        import botocore.session
    except ImportError:
        raise missing from None
    try:
        found = botocore.session.get_session().get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise InputError(f"{address}: credentials cannot be read ({error})") from None
    if found is None:
        raise missing

    def provide() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        known = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "token": frozen.token}
        return {**known, "expires_at": datetime.now(UTC) + ASK_AGAIN}

    return provide
