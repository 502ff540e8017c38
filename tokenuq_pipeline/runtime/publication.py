"""Publish an asset: after a crash at any moment, the store holds its old version or its new one, whole.

An asset has several folders and a manifest, which no file system replaces in one step. A journal makes one step of it:

    .publishing/<asset, dots for slashes>+<id>/
        new/<output>        the new folders; where two folders can be exchanged, then the old ones
        old/<output>.<id>   the old folders elsewhere
        previous.json       the old manifest: a copy, then the file itself
        manifest.json       the new manifest

1. The folders and the copy are put into the journal, and manifest.json is written last. Nothing else has changed yet.
2. The old manifest is moved into the journal. Readers see no asset from now on, so they see no mixture.
3. Each new folder is moved into its place.
4. manifest.json is moved to its place among the manifests. Readers see the new version, and the journal is deleted.

Each step is flushed to the disk before the next. A journal with a manifest.json is a publication that was interrupted.
`recover` completes it if all files of the new version have their recorded hashes, wherever the crash left them; else it
brings back the old version if those of it have; else the journal goes to the trash. While a file cannot be read,
nothing is decided. A journal without a manifest.json is deleted.

Whoever recovers a journal renames it first. Every later move of a publisher that was only suspended then fails, since
one of its paths is in the journal: recovery is safe where the file system has no `flock`, too.

Table formats (Delta Lake, Iceberg) write each version to paths of its own, and readers need their catalogue. Here every
version has the same paths, which any Parquet reader and `from_pretrained` open.
"""

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

from tokenuq_pipeline.runtime.folder_lock import store_lock
from tokenuq_pipeline.runtime.journal import Journal, Outcome, journals, new_path
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.manifest import Manifest

INTERRUPTED = "its publication was interrupted, and the next run completes it"


def publish(home: Path, manifest: Manifest, staged: Mapping[str, Path]) -> None:
    """Replace an asset, or publish its first version. The caller holds the asset's lease and the store's lock.

    Args:
        home: the store.
        manifest: of the new version, with its files.
        staged: output -> folder, on the store's file system, whose content has been flushed to the disk.

    Raises:
        InputError: a symbolic link leads to a place of the asset.
        OSError: the system does not allow a step. The old version stays, or `recover` completes the publication.
    """
    for journal in journals(home, [manifest.asset]):
        journal.recover()
    journal = Journal(home, manifest.asset, new_path(home, manifest.asset))
    try:
        journal.begin(manifest, staged)
        journal.complete(manifest, {output: journal.path / "new" / output for output in manifest.outputs})
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            journal.recover()
        raise


def recover(home: Path, held: Collection[str] = ()) -> dict[str, Outcome]:
    """Complete or undo the publications that were interrupted, and return what became of them, by asset.

    Those of assets that a run is making are left to it, and those that the system does not let this process change.

    Reads the files of both versions under the store's lock, so that other runs wait to publish for that time.

    Args:
        home: the store.
        held: assets whose lease the caller holds.
    """
    found: dict[str, Outcome] = {}
    if not journals(home):
        return found
    with contextlib.suppress(OSError), store_lock(home):
        found = recover_locked(home, {journal.asset for journal in journals(home)}, held)
    return found


def recover_locked(home: Path, assets: Collection[str], held: Collection[str] = ()) -> dict[str, Outcome]:
    """Return `recover` for some assets; the caller holds the store's lock."""
    found = {}
    for journal in journals(home, assets):
        if journal.asset not in held and Leases(home).holder(journal.asset) is not None:
            continue
        with contextlib.suppress(OSError, ValueError):
            if (outcome := journal.recover()) is not None:
                found[journal.asset] = outcome
    return found


def is_interrupted(home: Path, asset: str) -> bool:
    """Return whether a publication of an asset was interrupted, or is under way."""
    return any(journal.is_begun for journal in journals(home, [asset]))
