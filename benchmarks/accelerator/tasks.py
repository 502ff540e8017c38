"""What is measured, in the order of importance; each task is short, so that a time limit ends between two of them."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from types import SimpleNamespace

import torch

from benchmarks.accelerator import correctness, head_kernels, inference, own_steps, peer_steps, specs, steps, study_keys
from benchmarks.accelerator.clock import Measured, StepClock
from benchmarks.accelerator.model_flops import pass_flops, step_flops
from benchmarks.accelerator.shapes import Setting
from benchmarks.accelerator.specs import SAMPLES

PARTS = ("checks", "steps", "inference", "kernels", "keys")

OURS, OURS_ONLINE, OURS_HIDDEN = "ours, cached teacher", "ours, online teacher", "ours, cached hidden states"
OURS_MLE = "ours, plain fine-tuning"
OURS_LIGER = "ours, cached teacher, Liger's layers"
OURS_COMPILED = study_keys.COMPILED.name
OWN = (OURS, OURS_LIGER, OURS_COMPILED)
"""Our fastest step is one of these."""
PLAIN, TRAINER, COMPILED, LIGER, TRL, TRL_STORED = (
    "plain loop",
    "transformers Trainer",
    "transformers Trainer, torch_compile",
    "Trainer with Liger's layers and loss",
    "TRL SFT, its defaults",
    "TRL SFT without checkpointing",
)
PLAIN_PAPER = "plain loop, paper objective, online teacher"
VANILLA = (PLAIN, TRAINER, COMPILED, LIGER, TRL, TRL_STORED)
"""Contestants that train by cross-entropy, with which the student's step is compared."""
SCORING, BALD, BALD_RIVAL = "scoring", f"BALD, K={SAMPLES}, float32", "scoring, float32"
CHECKED = "kernels against float64"


@dataclass(frozen=True)
class Result:
    """One row of a table."""

    part: str
    shape: str
    name: str
    measured: Measured | None = None
    tokens: int = 0
    """Tokens of the batch that a step or pass processes, prompts included."""
    flops: float = 0.0
    """What the computation must do; 0 where no utilisation is stated."""
    in_float32: bool = False
    shares: dict[str, float] = field(default_factory=dict)
    """Share of each phase in a step."""
    checks: list[dict] = field(default_factory=list)

    def fields(self) -> dict:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A measurement that gives one or several rows."""

    part: str
    shape: str
    name: str
    run: Callable[[], list[Result]]
    missing: str | None = None
    """Why it cannot run on this machine."""
    is_peer: bool = False
    """Whether it measures others' code alone."""


@dataclass(frozen=True)
class Clocks:
    """How many steps of each kind are made."""

    device: torch.device
    timed: int = 10
    warm_up: int = 3

    def __call__(self) -> StepClock:
        """Return a clock for steps and passes."""
        return StepClock(self.device, self.warm_up, self.timed)

    def short(self) -> StepClock:
        """Return a clock for what takes seconds."""
        return StepClock(self.device, 1, min(2, self.timed))


def all_tasks(settings: list[Setting], clocks: Clocks) -> Iterator[Task]:
    """Yield the tasks: checks, then of each shape steps and inference, then kernels, then further contestants."""
    yield Task("checks", "", CHECKED, partial(_checks, clocks.device))
    for setting in settings:
        yield from _main_steps(setting, clocks)
        yield from _inference(setting, clocks)
    for setting in settings:
        yield _kernels(setting, clocks)
    for setting in settings:
        yield from _further_steps(setting, clocks)
    for setting in settings:
        yield from (_keyed(step, setting, clocks) for step in study_keys.KEYED_STEPS)


def _checks(device: torch.device) -> list[Result]:
    return [Result("checks", "", CHECKED, checks=[checked.fields() for checked in correctness.checks(device)])]


def _main_steps(setting: Setting, clocks: Clocks) -> Iterator[Task]:
    cached = own_steps.cached_form(setting)
    yield _own(OURS, setting, clocks, specs.paper(), cached)
    yield _peer(PLAIN, setting, clocks, steps.plain_step)
    yield _peer(TRAINER, setting, clocks, steps.trainer_step)
    yield _own(OURS_LIGER, setting, clocks, specs.paper(), cached, liger=True)
    yield _peer(LIGER, setting, clocks, peer_steps.liger_step, peer_steps.LIGER)
    yield _peer(TRL, setting, clocks, peer_steps.trl_step, peer_steps.TRL)
    yield _own(OURS_ONLINE, setting, clocks, specs.paper(), "online")


def _further_steps(setting: Setting, clocks: Clocks) -> Iterator[Task]:
    if not setting.shape.soft_caps:
        yield _own(OURS_HIDDEN, setting, clocks, specs.paper(), "hidden_states")
    yield _own(OURS_MLE, setting, clocks, specs.mle())
    yield _keyed(study_keys.COMPILED, setting, clocks, "steps")
    yield _peer(COMPILED, setting, clocks, steps.compiled_trainer_step)
    yield _peer(PLAIN_PAPER, setting, clocks, steps.plain_paper_step, online_teacher=True)
    without = partial(peer_steps.trl_step, checkpointing=False)
    yield _peer(TRL_STORED, setting, clocks, without, peer_steps.TRL)


def _own(
    name: str,
    setting: Setting,
    clocks: Clocks,
    ablation: SimpleNamespace,
    form: own_steps.Form | None = None,
    liger: bool = False,
) -> Task:
    def run() -> list[Result]:
        measured, shares = own_steps.own_step(setting, clocks(), ablation, form, use_liger_kernel=liger)
        work = step_flops(setting.shape, online_teacher=form == "online")
        return [Result("steps", setting.shape.name, name, measured, setting.shape.tokens, work, shares=shares)]

    missing = peer_steps.unavailable(peer_steps.LIGER) if liger else None
    return Task("steps", setting.shape.name, name, run, missing)


def _keyed(step: study_keys.KeyedStep, setting: Setting, clocks: Clocks, part: str = "keys") -> Task:
    def run() -> list[Result]:
        measured, shares = step.measure(setting, clocks())
        work = step_flops(setting.shape, full=step.trains_all)
        return [Result(part, setting.shape.name, step.name, measured, setting.shape.tokens, work, shares=shares)]

    return Task(part, setting.shape.name, step.name, run, peer_steps.unavailable(step.packages))


def _peer(
    name: str,
    setting: Setting,
    clocks: Clocks,
    step: Callable[[Setting, StepClock], Measured],
    packages: tuple[str, ...] = (),
    online_teacher: bool = False,
) -> Task:
    def run() -> list[Result]:
        work = step_flops(setting.shape, online_teacher=online_teacher)
        return [Result("steps", setting.shape.name, name, step(setting, clocks()), setting.shape.tokens, work)]

    return Task("steps", setting.shape.name, name, run, peer_steps.unavailable(packages), is_peer=True)


def _inference(setting: Setting, clocks: Clocks) -> Iterator[Task]:
    shape, work = setting.shape, pass_flops(setting.shape)

    def score() -> list[Result]:
        return [Result("inference", shape.name, SCORING, inference.scoring(setting, clocks()), shape.tokens, work)]

    def sample() -> list[Result]:
        measured, once, sequences = inference.bald(setting, clocks.short(), clocks.short())
        part, tokens = sequences / shape.sequences, sequences * shape.length
        return [
            Result("inference", shape.name, BALD, measured, tokens, SAMPLES * work * part, in_float32=True),
            Result("inference", shape.name, BALD_RIVAL, once, tokens, work * part, in_float32=True),
        ]

    yield Task("inference", shape.name, SCORING, score)
    yield Task("inference", shape.name, BALD, sample)


def _kernels(setting: Setting, clocks: Clocks) -> Task:
    def run() -> list[Result]:
        return [
            Result("kernels", setting.shape.name, name, measured, setting.shape.response_tokens)
            for name, measured in head_kernels.measure(setting, clocks)
        ]

    return Task("kernels", setting.shape.name, "kernels of the head", run)
