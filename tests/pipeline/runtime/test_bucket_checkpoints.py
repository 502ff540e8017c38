"""Checkpoints in the bucket of a store: a stage resumes on another machine from what the first had completed."""

import contextlib
import hashlib
import json
import shutil

import polars as pl
import pytest

from tokenuq_ml.object_store.checkpoints import CheckpointCopies
from tokenuq_ml.tables.kept_parts import Keeper, KeptFrames
from tokenuq_pipeline.runtime.bucket_checkpoints import carried_checkpoints
from tokenuq_pipeline.runtime.bucket_pruning import removable, remove

pytestmark = pytest.mark.slow
ASSET, KEY = "s/a/student", "0123abcd"


def write_checkpoint(store, step: int, content: str | None = None) -> None:
    """Write a checkpoint as a training does: its marker last, then the earlier ones are deleted."""
    work_dir = store.work_dir(ASSET) / KEY
    files = {f"checkpoint-{step}/state.pt": f"state {step}", "snapshots/step-1/adapter": "snapshot"}
    if content:
        files[f"checkpoint-{step}/more"] = content
    for path, text in files.items():
        (work_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (work_dir / path).write_text(text)
    digests = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
    (work_dir / f"checkpoint-{step}" / "COMPLETE").write_text(json.dumps(digests))
    for old in work_dir.glob("checkpoint-*"):
        if old.name != f"checkpoint-{step}":
            shutil.rmtree(old)


def here(store) -> dict[str, str]:
    """Return path -> content of what a machine has of the checkpoints."""
    root = store.home / ".checkpoints" / ASSET
    paths = (path for path in root.rglob("*") if path.is_file() and path.name not in ("COMPLETE", ".lock"))
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


def objects(store) -> set[str]:
    store.mirror._listed_at = float("-inf")
    return {key.rpartition("/")[0] for key in store.mirror.objects() if key.startswith(".checkpoints/")}


def test_a_stage_resumes_on_another_machine(machine):
    one, two = machine("one"), machine("two")
    with one.leases.hold(ASSET, print) as lease, carried_checkpoints(one, lease, print):
        write_checkpoint(one, 2)
        (one.work_dir(ASSET) / KEY / "checkpoint-3").mkdir()
        (one.work_dir(ASSET) / "answers").mkdir()
        (one.work_dir(ASSET) / "answers" / "x.jsonl").write_text("{}\n")
    expected = {
        f"{KEY}/checkpoint-2/state.pt": "state 2",
        f"{KEY}/snapshots/step-1/adapter": "snapshot",
        "answers/x.jsonl": "{}\n",
    }
    assert here(two) == {}
    with two.leases.hold(ASSET, print) as lease, carried_checkpoints(two, lease, print):
        assert here(two) == expected
        write_checkpoint(two, 5)
    # What is superseded is deleted; the snapshot, which the new one lists too, stays.
    folder = f".checkpoints/{ASSET}"
    assert objects(one) == {
        f"{folder}/{KEY}/checkpoint-5",
        f"{folder}/{KEY}/checkpoint-5/state.pt",
        f"{folder}/{KEY}/snapshots/step-1/adapter",
        f"{folder}/answers",
    }
    with one.leases.hold(ASSET, print) as lease, carried_checkpoints(one, lease, print):
        assert here(one)[f"{KEY}/checkpoint-5/state.pt"] == "state 5"
        shutil.rmtree(one.work_dir(ASSET))
    assert objects(two) == set()


@pytest.mark.heavy
def test_finished_parts_of_a_scoring_are_carried_to_another_machine(machine):
    """Each machine is stopped after two more units; what it kept is in the bucket, and is gone once all is complete."""
    folder, asset = "token_uncertainty-0123", "s/token_losses"
    for number, name in enumerate(("one", "two", "one", "three")):
        store, rows = machine(name), []
        with (
            store.leases.hold(asset, print) as lease,
            carried_checkpoints(store, lease, print),
            contextlib.suppress(KeyboardInterrupt),
        ):
            kept = KeptFrames(store.work_dir(asset) / folder, lambda frames, rows=rows: rows.append(frames["rows"]))
            with Keeper([kept], print, "toy") as keeper:
                assert keeper.resume() == 2 * number
                assert sum((frame["x"].to_list() for frame in rows), []) == list(range(2 * number))
                for unit in (2 * number, 2 * number + 1):
                    keeper.put({"rows": pl.DataFrame({"x": [unit]})})
                raise KeyboardInterrupt
        found = {key.removeprefix(f".checkpoints/{asset}/{folder}/") for key in objects(store)}
        parts = {f"parts/{first:08d}-{first + 2:08d}/rows.parquet" for first in range(0, 2 * number + 2, 2)}
        assert found == {f"checkpoint-{2 * number + 2}", *parts}
    assert [item.name for item in removable(store, {asset: "1-s", "s/token_uncertainty": "1-s"})] == []
    with store.leases.hold(asset, print) as lease, carried_checkpoints(store, lease, print):
        shutil.rmtree(store.work_dir(asset) / folder)
    assert objects(store) == set()


@pytest.mark.heavy
def test_who_has_lost_the_lease_copies_nothing(machine):
    one = machine("one")
    with one.leases.hold(ASSET, print) as lease, carried_checkpoints(one, lease, print):
        write_checkpoint(one, 2)
        lease.lost = True
    assert objects(one) == set()


@pytest.mark.heavy
@pytest.mark.parametrize("marker", [b"", b"{}", b"no json", b'{"../../../escape": "00"}', b'["list"]'])
def test_a_marker_that_lists_no_files_of_its_folder_is_not_brought(machine, tmp_path, marker):
    one = machine("one")
    one.mirror.bucket.write(f".checkpoints/{ASSET}/{KEY}/checkpoint-2/COMPLETE", marker)
    CheckpointCopies(one.mirror, ASSET).bring()
    assert here(one) == {} and not list(tmp_path.rglob("escape"))


@pytest.mark.heavy
def test_a_checkpoint_of_which_a_file_is_damaged_is_not_brought(machine):
    one, two = machine("one"), machine("two")
    write_checkpoint(one, 2, content="more")
    CheckpointCopies(one.mirror, ASSET).send()
    key = next(info.key for info in one.mirror.bucket.objects(".checkpoints") if "/more/" in info.key)
    one.mirror.bucket.write(key, b"less")
    CheckpointCopies(two.mirror, ASSET).bring()
    assert not list(two.home.rglob("COMPLETE"))


@pytest.mark.heavy
def test_checkpoints_in_the_bucket_are_pruned(machine):
    one = machine("one")
    write_checkpoint(one, 2)
    CheckpointCopies(one.mirror, ASSET).send()
    assert [item.name for item in removable(one, {ASSET: "1-s"})] == []
    (item,) = [item for item in removable(one, {}) if item.reason.startswith("checkpoints in the bucket")]
    assert item.reason == "checkpoints in the bucket; the configuration has no study s"
    remove(one, item)
    assert objects(one) == set()
