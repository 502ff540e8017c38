"""Measure what an accelerator gives: `PYTHONPATH=. python3 -m benchmarks.accelerator`.

Needs torch, transformers and peft; TRL, Liger and Triton are measured where they are installed. Makes random weights of
published shapes, so nothing is downloaded. Parts run in the order of importance until the time is up; the tables say
what was skipped. Writes one JSON file after each task, so that an interrupted run keeps its results.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.accelerator.clock import release
from benchmarks.accelerator.machine import Machine, machine
from benchmarks.accelerator.shapes import GROUPS, SHAPES, Setting
from benchmarks.accelerator.tables import page, targets
from benchmarks.accelerator.tasks import PARTS, Clocks, Result, Task, all_tasks

RESERVE_S = 30
"""No task begins in the last seconds of the time, since one takes up to this long."""


class Run:
    """The results of one call, and the file that keeps them.

    Args:
        device: what the tasks run on.
        about: its description.
        output: the JSON file.
        seconds: time for all tasks.
    """

    def __init__(self, device: torch.device, about: Machine, output: Path, seconds: float):
        self.device, self.about, self.output = device, about, output
        self.results: list[Result] = []
        self.notes: list[str] = []
        self.failed = False
        self._started, self._seconds = time.monotonic(), seconds

    def do(self, task: Task) -> None:
        """Run a task, or note why it was not run."""
        what = f"{task.shape}: {task.name}".removeprefix(": ")
        elapsed = time.monotonic() - self._started
        if task.missing is not None:
            self._note(f"skipped {what}: {task.missing}")
        elif elapsed > self._seconds - min(RESERVE_S, self._seconds / 2):
            self._note(f"skipped {what}: the time was up after {elapsed:,.0f} s")
        else:
            print(f"{elapsed:6.1f} s  {what}", file=sys.stderr, flush=True)
            self._try(task, what)
        self._write()

    def _try(self, task: Task, what: str) -> None:
        try:
            self.results += task.run()
        except Exception as error:  # One contestant that fails must not cost the others' results.
            lacks_memory = isinstance(error, torch.OutOfMemoryError)
            self.failed = self.failed or not (task.is_peer and lacks_memory)
            self._note(f"FAILED {what}: {type(error).__name__}: {str(error)[:400]}")
        release(self.device)

    def _note(self, note: str) -> None:
        self.notes.append(note)
        print(note, file=sys.stderr, flush=True)

    def _write(self) -> None:
        content = {
            "machine": self.about.fields(),
            "seconds": time.monotonic() - self._started,
            "results": [result.fields() for result in self.results],
            "targets": [target.fields() for target in targets(self.results, self.about)],
            "notes": self.notes,
        }
        self.output.write_text(json.dumps(content, indent=1))

    @property
    def passed(self) -> bool:
        """Whether nothing failed: no task, a peer's lack of memory aside, and no check of a kernel."""
        return not self.failed and all(check["passed"] for result in self.results for check in result.checks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 if a task or a check failed."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    about = machine(device, dtype)
    run = Run(device, about, options.output, options.minutes * 60)
    with tempfile.TemporaryDirectory() as folder:
        settings = [Setting(SHAPES[name], device, dtype, Path(folder)) for name in options.shapes]
        for task in all_tasks(settings, Clocks(device, options.steps)):
            if task.part in options.parts:
                run.do(task)
    print(page(about, run.results, run.notes))
    print(f"Written to {options.output}; {'nothing failed' if run.passed else 'something failed'}.")
    return 0 if run.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the base model; default: the device's")
    parser.add_argument(
        "--shapes", type=_shapes, default=GROUPS["published"], help=f"names of {', '.join((*GROUPS, *SHAPES))}"
    )
    parser.add_argument("--parts", type=_parts, default=PARTS, help=f"comma-separated names of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts (default %(default)g)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per contestant (default %(default)d)")
    parser.add_argument("--output", type=Path, default=Path("accelerator.json"), help="JSON file to write")
    return parser


def _shapes(text: str) -> tuple[str, ...]:
    names = tuple(name for part in text.split(",") for name in GROUPS.get(part, (part,)))
    return _known(names, SHAPES)


def _parts(text: str) -> tuple[str, ...]:
    return _known(tuple(text.split(",")), PARTS)


def _known(names: tuple[str, ...], allowed: Sequence[str] | dict) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in allowed]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return names


if __name__ == "__main__":
    # Trainers would spread over several GPUs.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    # Progress and warnings of the contestants would hide the tables.
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    sys.exit(main())
