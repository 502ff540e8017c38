"""`python -m tests.survive FOLDER [--part PART] [--minutes 55] [--page FILE]`: make the trials, write their table.

Trials are recorded in `FOLDER/trials.jsonl`. A second call makes those that are missing, so that all can be made in
parts of less than an hour.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.survive.bad_input import BAD_INPUT, bad_inputs, restore_config
from tests.survive.damage import DAMAGE, damages
from tests.survive.full_disk import PART as FULL_DISK
from tests.survive.full_disk import full_disks
from tests.survive.kills import PART as KILLS
from tests.survive.kills import kills
from tests.survive.page import page
from tests.survive.study import Calm, TrialStudy
from tests.survive.trials import Record

COUNTS = {KILLS: 100, FULL_DISK: 20}


def main() -> int:
    """Make the trials; return 1 if one did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=("bad input", "damage", FULL_DISK, KILLS), action="append", dest="parts")
    parser.add_argument("--minutes", type=float, default=55, help="begin no trial after this time")
    parser.add_argument("--kills", type=int, default=COUNTS[KILLS])
    parser.add_argument("--full-disks", type=int, default=COUNTS[FULL_DISK])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="write the table of all trials to this file")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    deadline, record = time.monotonic() + 60 * options.minutes, Record(folder / "trials.jsonl")
    restore_config(folder)
    study = TrialStudy(folder / "calm")
    code, printed = study.run()
    if code != 0:
        sys.exit(f"the undisturbed run failed:\n{printed[-3000:]}")
    calm = Calm.of(study)
    for part in options.parts or ["bad input", "damage", FULL_DISK, KILLS]:
        if part == KILLS:
            kills(folder, calm, record, options.kills, options.seed, deadline)
        elif part == FULL_DISK:
            full_disks(folder, calm, record, options.full_disks, options.seed, deadline)
        elif part == "damage":
            damages(folder, study, calm, record, deadline)
        else:
            bad_inputs(folder, study, calm, record, deadline)
    wanted = {KILLS: options.kills, FULL_DISK: options.full_disks, "damage": len(DAMAGE), "bad input": len(BAD_INPUT)}
    text = page(record, wanted)
    print(text)
    if options.page:
        options.page.write_text(text)
    return int(any(not trial.held for trial in record.trials()))


if __name__ == "__main__":
    sys.exit(main())
