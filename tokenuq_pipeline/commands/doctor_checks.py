"""What `tokenuq doctor` looks at: one function per subject, each of which returns findings and raises nothing."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from tokenuq_ml.disk_space import in_words, space, temporary_folder
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.paths import config_folders, dagster_home, store_home, store_name

State = Literal["ok", "note", "problem"]
LEAST_FREE = 5 * 10**9
"""Bytes below which a disk is a problem: a model of 1 billion parameters takes 2 GB, and is written beside itself."""
DEVICE_S, HUB_S = 120, 10
SHOWN = 5


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    state: State
    found: str
    fix: str = ""
    """What to do, in one sentence; empty if nothing is to be done."""


def versions() -> Iterator[Finding]:
    """Compare the installed packages with what tokenuq needs."""
    from packaging.requirements import Requirement

    yield Finding("versions", "ok", f"tokenuq {importlib.metadata.version('tokenuq')}, Python {sys.version.split()[0]}")
    wrong, extras = list[str](), dict[str, set[str]]()
    for line in importlib.metadata.requires("tokenuq") or []:
        needed = Requirement(line)
        extra = _extra_of(needed)
        if extra is None and needed.marker is not None and not needed.marker.evaluate():
            continue
        try:
            installed = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            if extra is None:
                wrong.append(f"{needed.name} is missing")
            else:
                extras.setdefault(extra, set()).add(needed.name)
            continue
        if not needed.specifier.contains(installed, prereleases=True):
            wrong.append(f"{needed.name} is {installed}, needed is {needed.specifier}")
    if wrong:
        fix = "install them: pip install -c constraints.txt -e '.[quickstart]'"
        yield Finding("versions", "problem", "; ".join(wrong), fix)
    missing = sorted(name for name, packages in extras.items() if packages and name not in ("dev", "bench", "all"))
    if missing:
        yield Finding("versions", "note", f"extras that are not installed completely: {', '.join(missing)}")


def _extra_of(requirement: Any) -> str | None:
    """Return the extra that a requirement belongs to; None if tokenuq always needs it."""
    marker = str(requirement.marker or "")
    return marker.partition("extra == ")[2].strip("\"' )") or None if "extra ==" in marker else None


def device() -> Iterator[Finding]:
    """Say what stages compute on, in which precision, and whether a GPU is left unused."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "tokenuq_ml.models.this_device"], capture_output=True, text=True, timeout=DEVICE_S
        )
    except subprocess.TimeoutExpired:
        yield Finding("device", "problem", f"torch did not start within {DEVICE_S} s", "free some memory and try again")
        return
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        yield Finding("device", "problem", f"torch cannot be used: {last}", "install torch again, by its exact pin")
        return
    found = json.loads(child.stdout)
    memory = f"{in_words(found['free'])} of {in_words(found['memory'])} free"
    yield Finding(
        "device",
        "ok",
        f"{found['device']} ({found['name']}), {found['precision']} ({found['precision_reason']}), "
        f"{found['threads']} threads, {memory}, torch {found['torch']}",
    )
    if found["device"] == "cpu" and shutil.which("nvidia-smi"):
        why = "was built without CUDA" if found["cuda_build"] is None else f"was built for CUDA {found['cuda_build']}"
        yield Finding(
            "device",
            "problem",
            f"there is an NVIDIA driver, and torch, which {why}, sees no GPU",
            "install a build of torch for this driver's CUDA (docs/operations.md), or look at CUDA_VISIBLE_DEVICES",
        )


def disk() -> Iterator[Finding]:
    """Say how much space there is for results, records, temporary files and the hub's cache."""
    from huggingface_hub import constants

    places = {
        "results": store_home(),
        "Dagster's records": os.environ.get("DAGSTER_HOME") or store_home().parent,
        "temporary files": temporary_folder(),
        "the hub's cache": constants.HF_HUB_CACHE,
    }
    by_mount: dict[str, list[str]] = {}
    spaces = {}
    for what, path in places.items():
        found = space(path)
        by_mount.setdefault(str(found.mount), []).append(what)
        spaces[str(found.mount)] = found
    for mount, names in by_mount.items():
        found = spaces[mount]
        text = f"{in_words(found.free)} free at {mount} ({', '.join(names)})"
        is_full = found.free < LEAST_FREE or found.files == 0
        fix = "free some space (`tokenuq prune`), or move the store with TOKENUQ_HOME" if is_full else ""
        yield Finding("disk", "problem" if is_full else "ok", text, fix)


def hub() -> Iterator[Finding]:
    """Say whether the Hugging Face Hub answers."""
    from huggingface_hub import HfApi, constants, get_token

    from tokenuq_ml.hub_errors import first_line

    if constants.is_offline_mode():
        yield Finding(
            "hub", "note", "HF_HUB_OFFLINE is set: only what is in the cache, in packages or in files is read"
        )
        return
    token = get_token()
    try:
        if token is None:
            # A small model that has been public for years.
            HfApi().model_info("gpt2", timeout=HUB_S)
            yield Finding("hub", "ok", f"{constants.ENDPOINT} answers; no access token, so no gated models")
        else:
            name = HfApi().whoami(token=token).get("name", "unknown")
            yield Finding("hub", "ok", f"{constants.ENDPOINT} answers; logged in as {name}")
    except Exception as error:
        # Whatever the hub's library raises: this line is about nothing else.
        yield Finding(
            "hub",
            "note",
            f"{constants.ENDPOINT} cannot be used: {first_line(error)}",
            "check the network, its proxy and the token (`hf auth login`); models and data in files need no hub",
        )


def configuration() -> Iterator[Finding]:
    """Load the configuration, and count what it has."""
    from tokenuq_ml.config.load import load_config

    folders = config_folders(os.environ)
    config = load_config(*folders)
    enabled = [name for name, study in config.studies.items() if study.enabled]
    yield Finding(
        "configuration",
        "ok",
        f"{len(config.models)} models, {len(config.datasets)} datasets, {len(config.studies)} studies "
        f"({len(enabled)} enabled) from {', '.join(map(str, folders))}",
    )

    yield from _trackers(config)


def _trackers(config: Any) -> Iterator[Finding]:
    """Say which studies name a tracker that cannot be used."""
    from tokenuq_pipeline.commands.before_run import tracking_findings
    from tokenuq_pipeline.runtime.bucket_store import open_store

    for study in (study for study in config.studies.values() if study.report_to):
        for problem in tracking_findings(study, open_store()):
            found, _, fix = problem.partition("; ")
            yield Finding("configuration", "problem" if study.enabled else "note", found, fix)


def store() -> Iterator[Finding]:
    """Look at the store: whether it can be written, and what is left of processes that were killed."""
    from tokenuq_pipeline.runtime.bucket_store import open_store

    home, opened = store_home(), open_store()
    assets = opened.assets()
    yield Finding("store", "ok", f"{len(assets):,} assets in {store_name()}")
    if home.exists() and not os.access(home, os.W_OK):
        yield Finding("store", "problem", f"{home} cannot be written by this user", "change its owner, or TOKENUQ_HOME")
    damaged = [asset for asset in assets if opened.damaged_manifest(asset) is not None]
    if damaged:
        yield Finding(
            "store",
            "problem",
            f"{len(damaged):,} manifests are damaged, e.g. {', '.join(damaged[:SHOWN])}",
            "run `tokenuq verify --forget`, then the study again",
        )
    incomplete = {asset: why for asset in assets if (why := opened.incomplete_because(asset)) and asset not in damaged}
    if incomplete:
        first = next(iter(incomplete))
        yield Finding(
            "store",
            "problem",
            f"{len(incomplete):,} assets are incomplete, e.g. {first}: {incomplete[first]}",
            "run their studies again",
        )


def instance() -> Iterator[Finding]:
    """Open Dagster's records."""
    home = dagster_home()
    import dagster as dg

    with dg.DagsterInstance.get() as opened:
        runs = opened.get_runs_count()
        active = [
            run for run in opened.get_runs(limit=1000) if run.status in dg.DagsterRunStatus and not run.is_finished
        ]
    yield Finding("instance", "ok", f"{runs:,} runs in {home}")
    if active:
        yield Finding(
            "instance",
            "note",
            f"{len(active)} runs are not finished, e.g. {active[0].run_id[:8]}",
            "if nothing of them runs any more, the next `tokenuq run` or `tokenuq ui` marks them as ended",
        )


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": versions,
    "device": device,
    "disk": disk,
    "hub": hub,
    "configuration": configuration,
    "store": store,
    "instance": instance,
}


def examine(names: list[str]) -> Iterator[Finding]:
    """Yield the findings of some checks; an error is a finding too."""
    for name in names:
        found = CHECKS[name]()
        while True:
            try:
                finding = next(found, None)
            except InputError as error:
                yield Finding(name, "problem", str(error))
                break
            except OSError as error:
                yield Finding(
                    name, "problem", f"{error.filename or name}: {error.strerror or error}", "check its rights"
                )
                break
            if finding is None:
                break
            yield finding
        with contextlib.suppress(AttributeError):
            found.close()
