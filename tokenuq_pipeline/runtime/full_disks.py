"""Full disks and files of other users as failures of steps: which one, and what to do, without a retry."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from tokenuq_ml.disk import full_disk
from tokenuq_ml.permissions import not_permitted


@contextlib.contextmanager
def full_disks_in_words(store: Path) -> Iterator[None]:
    """Turn errors of a full disk, or of missing rights, in the block, which is part of a step, into its failure.

    What the stage's own process writes is reported by its launcher. Here are staging folders, requests, messages,
    manifests, and what is published.

    Raises:
        dagster.Failure: without a retry, because the same disk would be met again.
    """
    try:
        yield
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as error:
        if (end := _generator_exit(error)) is not None:
            # The step is over, for the reason that it reports: nobody would hear of another one.
            raise end from None
        message = not_permitted(error, store) or full_disk_of_run(error, store)
        if message is None:
            raise
        raise dg.Failure(message, allow_retries=False) from error


def _generator_exit(error: BaseException) -> GeneratorExit | None:
    """Return the end of the generator during which the error was raised, if any."""
    context: BaseException | None = error
    while context is not None and not isinstance(context, GeneratorExit):
        context = context.__context__
    return context


def full_disk_of_run(error: BaseException | str, *paths: Path) -> str | None:
    """Return which disk of a run is full: that of `paths`, of Dagster's records, or of temporary files.

    Args:
        error: of a write, or its words.
        *paths: what the run writes to.
    """
    # SQLite names no file, and it is Dagster that uses it.
    return full_disk(error, *paths, *([home] if (home := os.environ.get("DAGSTER_HOME")) else []))
