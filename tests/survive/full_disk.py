"""Full disks: every process of a run sees its disk full from a random write on, until space is made.

Even trials count writes with a shim (`full_disk_shim.c`), which needs a C compiler. Odd ones use a file system in
memory of a random size, which needs the right to mount one. Where one is refused, the other does all trials, and the
trial says so. In half of the trials Dagster's home is on the full disk too.
"""

import contextlib
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.survive.study import STUDY, Calm, TrialStudy
from tests.survive.trials import Record, Trial

PART = "full disk"
WRITES, SPACE_MIB = 2500, 64
"""Writes that a run of the study makes, at most; MiB that it takes, at least."""
SAYS = re.compile(r"full|no space left", re.IGNORECASE)
NOT_OURS = re.compile(r"Traceback|Exception (while|ignored)")
"""What Python and Dagster print of an error, before or after our sentence."""


def full_disks(folder: Path, calm: Calm, record: Record, count: int, seed: int, deadline: float) -> None:
    """Make the trials that the record lacks until `deadline`."""
    while (done := len(record.trials(PART))) < count and time.monotonic() < deadline:
        draw = random.Random(f"{seed}/{done}")
        record.add(_trial(folder / "full", calm, done + 1, draw))


class NotAvailable(Exception):
    """This machine cannot make such a disk."""


def _trial(folder: Path, calm: Calm, number: int, draw: random.Random) -> Trial:
    started, said = time.monotonic(), ""
    with_dagster = draw.random() < 0.5
    kinds = [_counted, _mounted] if number % 2 == 0 else [_mounted, _counted]
    for kind in kinds:
        try:
            with kind(folder, with_dagster, draw) as (study, what, make_space):
                found, wrong = _fill(study, calm, make_space)
                return Trial(PART, number, said + what, found, tuple(wrong), time.monotonic() - started)
        except NotAvailable as refused:
            said = f"({refused}) "
    return Trial(PART, number, said, "no trial made", ("neither a mount nor a compiler",))


def _fill(study: TrialStudy, calm: Calm, make_space) -> tuple[str, list[str]]:
    """Run on the disk until it is full, then with space."""
    # Otherwise the run would be refused at its start, because the disk has less than the estimate.
    code, printed = study.tokenuq("run", "--study", STUDY, "--ignore-disk-space")
    if code == 0:
        return "complete before the disk was full", calm.wrong(study) + calm.missing(study)
    complete = len(calm.versions) - len(calm.missing(study))
    wrong = calm.wrong(study)
    if not SAYS.search(printed):
        wrong.append(f"does not say that a disk is full: {printed[-600:]}")
    if NOT_OURS.search(printed):
        wrong.append(f"a traceback, or lines of Dagster: {printed[-600:]}")
    if (retries := printed.count("retries in")) > 0:
        wrong.append(f"retried {retries} times on a full disk")
    sentence = next((line.strip() for line in reversed(printed.splitlines()) if SAYS.search(line)), "")
    make_space()
    code, printed = study.run()
    wrong += [f"with space: exit code {code}: {printed[-600:]}"] if code else []
    wrong += calm.wrong(study) + [f"{name} is missing" for name in calm.missing(study)]
    return f"{complete} assets complete; “{sentence[:160]}”; with space: exit code {code}", wrong


@contextlib.contextmanager
def _mounted(folder: Path, with_dagster: bool, draw: random.Random) -> Iterator[tuple]:
    """A file system in memory, of 50 KiB to as much as a run needs."""
    shutil.rmtree(folder, ignore_errors=True)
    disk, kib = folder / "disk", int(50 * (1.12 ** draw.uniform(0, 45)))
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        raise NotAvailable("a mount is refused: counted instead")
    try:
        study = _study_on(folder, disk, with_dagster)

        def make_space() -> None:
            subprocess.run(["mount", "-o", f"remount,size={SPACE_MIB}m", disk], check=True)

        yield study, f"{kib} KiB of disk for {_what(with_dagster)}", make_space
    finally:
        study.wait_for_orphans()
        subprocess.run(["umount", "-l", disk], check=False)


@contextlib.contextmanager
def _counted(folder: Path, with_dagster: bool, draw: random.Random) -> Iterator[tuple]:
    """Writes that fail from a random one on."""
    if shutil.which("cc") is None:
        raise NotAvailable("no C compiler: mounted instead")
    shutil.rmtree(folder, ignore_errors=True)
    after = int(WRITES ** draw.uniform(0.2, 1))
    study = counted_study(TrialStudy, folder, after)
    if with_dagster:
        study.more_environment["DAGSTER_HOME"] = str(folder / "disk" / "dagster_home")
    yield study, f"disk full after {after} writes to {_what(with_dagster)}", (folder / "count.space").touch


def counted_study(kind: type[TrialStudy], folder: Path, after: int) -> TrialStudy:
    """Return a study whose writes below `folder/disk`, which holds its store, fail after a number of them.

    There is space again once the file `folder/count.space` exists.
    """
    disk, count, shim = folder / "disk", folder / "count", folder / "shim.so"
    disk.mkdir(parents=True)
    source = Path(__file__).with_name("full_disk_shim.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    count.write_bytes(bytes(8))
    variables = {
        "LD_PRELOAD": str(shim),
        "FULL_DISK_FOLDER": str(disk),
        "FULL_DISK_COUNT": str(count),
        "FULL_DISK_AFTER": str(after),
    }
    return kind(folder, disk / "store", variables)


def _study_on(folder: Path, disk: Path, with_dagster: bool) -> TrialStudy:
    """The study whose store is on the disk; its configuration is not."""
    study = TrialStudy(folder, disk / "store")
    if with_dagster:
        study.more_environment["DAGSTER_HOME"] = str(disk / "dagster_home")
    return study


def _what(with_dagster: bool) -> str:
    return "the store and Dagster's home" if with_dagster else "the store"
