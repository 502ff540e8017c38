"""`make cluster-demo`: a tiny study on a local two-node Ray cluster, with the same data versions as on one machine.

    python -m tests.cluster [--failures] [--only WORD ...] [--page docs/results/cluster.md]

With `--failures`, parts of the cluster then fail while stages run. With `--only`, some of the failures are tried, and
the study as a whole is not run. `--page` writes what was seen as a page, and keeps its rows of what was not tried.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.failures import MADE_BEFORE, TRIALS, Trial, mounted_disk, store_away
from tests.cluster.page import page
from tests.cluster.study import STUDENTS, ClusterStudy
from tests.support.ray_clusters import TwoNodes, two_nodes

NOT_TRIED = "not tried"


def main() -> int:
    """Run the study and the trials; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster")
    parser.add_argument("--failures", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="failures with one of these words")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.only and not options.failures:
        parser.error("--only chooses among the --failures")
    folder = Path(tempfile.mkdtemp(prefix="tokenuq-cluster-"))
    trials = [trial for trial in TRIALS if options.failures and _is_meant(trial, options.only)]
    before = options.page.read_text() if options.page and options.page.exists() else ""
    rows: list[tuple[str, str, str, bool]] = []

    def note(*row) -> None:
        rows.append(row)
        print(row, flush=True)
        if options.page:
            options.page.write_text(page([row for row in rows if NOT_TRIED not in row[2]], before))

    try:
        local = ClusterStudy(folder / "local")
        began = time.monotonic()
        local.run(None, *({trial.asset for trial in trials} if options.only else ()))
        print(f"one machine: {len(local.versions())} assets in {time.monotonic() - began:.0f} s", flush=True)
        with two_nodes() as cluster:
            if not options.only:
                note(
                    "nothing", "the same data versions, two students at once", *demo(folder, cluster, local.versions())
                )
            for trial in trials:
                cluster.start()
                note(*run_trial(trial, folder, cluster, local))
    finally:
        subprocess.run(["umount", str(folder / "disk")], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(well for *_, well in rows) else 1


def _is_meant(trial: Trial, words: list[str]) -> bool:
    return not words or any(word in trial.what for word in words)


def demo(folder: Path, cluster: TwoNodes, expected: dict[str, str]) -> tuple[str, bool]:
    """Run the study on the cluster; return what was seen, and whether it is as expected."""
    study = ClusterStudy(folder / "cluster")
    began = time.monotonic()
    study.run(cluster.address)
    versions, seconds = study.versions(), time.monotonic() - began
    different = sorted(name for name in expected if versions.get(name) != expected[name])
    if different:
        return f"{len(different)} of {len(expected)} data versions differ: {', '.join(different)}", False
    jobs, overlap = study.said().count(": reserves "), study.overlap(*STUDENTS)
    seen = f"{len(versions)} assets by {jobs} jobs in {seconds:.0f} s, with the same data versions"
    return f"{seen}; two students were trained at once for {overlap:.0f} s", overlap > 0


def run_trial(trial: Trial, folder: Path, cluster: TwoNodes, local: ClusterStudy) -> tuple[str, str, str, bool]:
    """Run a trial in a store of its own, with what a run on one machine has made before; return its row."""
    store, expected = None, local.versions()
    if trial.act is store_away:
        store = mounted_disk(folder)
        if store is None:
            return trial.what, trial.expected, f"{NOT_TRIED}: no file system could be mounted", True
        store /= "store"
    study = ClusterStudy(folder / trial.act.__name__, store, local.inputs)
    study.take(local, [name for name in MADE_BEFORE[trial.asset] if name in expected])
    try:
        seen = trial.act(study, cluster)
        versions = study.versions()
        different = sorted(name for name in versions if versions[name] != expected[name])
        well = not different and trial.asset in versions
        return trial.what, trial.expected, seen + ("" if well else f"; other versions: {different}"), well
    except (AssertionError, subprocess.SubprocessError, OSError) as error:
        with contextlib.suppress(OSError):
            print(study.said()[-3000:])
        return trial.what, trial.expected, f"{type(error).__name__}: {str(error)[-500:]}", False


if __name__ == "__main__":
    sys.exit(main())
