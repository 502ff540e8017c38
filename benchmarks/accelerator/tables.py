"""Results as tables for a terminal or a Markdown page, and the targets that they meet or miss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.accelerator.head_kernels import LAUNCH_BUDGET
from benchmarks.accelerator.machine import Machine
from benchmarks.accelerator.specs import SAMPLES
from benchmarks.accelerator.tasks import BALD, BALD_RIVAL, OWN, SCORING, VANILLA, Result

MISSING = "-"
BUDGETED = "training loss: "
"""Start of the names of kernels whose launches have a budget."""
MOST_STEP, LEAST_STEP_USE, LEAST_SCORING_USE, MOST_BALD, MOST_MEMORY = 1.05, 0.45, 0.55, 1.05, 1.1


@dataclass(frozen=True)
class Target:
    """A number that is required of a shape, and what was measured."""

    shape: str
    what: str
    value: float
    limit: float
    """Most, or least where `is_least`."""
    is_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the number is within the limit."""
        return self.value >= self.limit if self.is_least else self.value <= self.limit

    def fields(self) -> dict:
        """Return plain values."""
        return {**vars(self), "met": self.met}


def utilisation(result: Result, machine: Machine) -> float | None:
    """Return the share of the peak that a result's FLOPs reach; None if it has none."""
    peak = machine.float32_peak_flops if result.in_float32 else machine.peak_flops
    if result.measured is None or not result.flops or not peak:
        return None
    return result.flops / result.measured.seconds / peak


def targets(results: Sequence[Result], machine: Machine) -> list[Target]:
    """Return what is required of an accelerator, for each shape whose measurements are there; nothing on a CPU."""
    found: list[Target] = []
    if not machine.is_accelerator:
        return found
    for shape in dict.fromkeys(result.shape for result in results if result.shape):
        by_name = {result.name: result for result in results if result.shape == shape and result.measured}
        found += [*_of_steps(shape, by_name, machine), *_of_inference(shape, by_name, machine)]
        found += _of_kernels(shape, by_name)
    return found


def _of_steps(shape: str, by_name: dict[str, Result], machine: Machine) -> Iterable[Target]:
    own, vanilla = ([by_name[name] for name in names if name in by_name] for names in (OWN, VANILLA))
    if not own:
        return
    ours = min(own, key=lambda result: result.measured.seconds)
    use = utilisation(ours, machine)
    if use is not None:
        what = f"model FLOPs utilisation of the student's step ({ours.name})"
        yield Target(shape, what, use, LEAST_STEP_USE, True)
    if not vanilla:
        return
    best = min(vanilla, key=lambda result: result.measured.seconds)
    ratio = ours.measured.seconds / best.measured.seconds
    yield Target(shape, f"student's step / the best vanilla step ({best.name})", ratio, MOST_STEP)
    if ours.measured.peak_mib and best.measured.peak_mib:
        memory = ours.measured.peak_mib / best.measured.peak_mib
        yield Target(shape, f"peak memory of the step / that of {best.name}", memory, MOST_MEMORY)


def _of_inference(shape: str, by_name: dict[str, Result], machine: Machine) -> Iterable[Target]:
    use = utilisation(by_name[SCORING], machine) if SCORING in by_name else None
    if use is not None:
        yield Target(shape, "model FLOPs utilisation of scoring", use, LEAST_SCORING_USE, True)
    if BALD in by_name and BALD_RIVAL in by_name:
        ratio = by_name[BALD].measured.seconds / (SAMPLES * by_name[BALD_RIVAL].measured.seconds)
        yield Target(shape, f"BALD / {SAMPLES} scorings in the same precision", ratio, MOST_BALD)


def _of_kernels(shape: str, by_name: dict[str, Result]) -> Iterable[Target]:
    for name, result in by_name.items():
        if result.part == "kernels" and result.measured.launches is not None and name.startswith(BUDGETED):
            yield Target(shape, f"launches of the head: {name}", result.measured.launches, LAUNCH_BUDGET)


def page(machine: Machine, results: Sequence[Result], notes: Sequence[str]) -> str:
    """Return all tables; `notes` are what was skipped or failed."""
    use = "MFU" if machine.peak_is.startswith("published") else "of the measured product rate"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    parts = [
        f"{machine.device}; Python {machine.python}; {packages}; kernels: {machine.kernels}; {machine.dtype}. A large "
        f"product runs at {machine.product_flops / 1e12:,.3g} TFLOP/s; utilisation is a share of "
        f"{machine.peak_flops / 1e12:,.4g} TFLOP/s ({machine.peak_is}).",
        _section("Training step", _step_rows(results, machine), use),
        _section("The student's step with a key of a study", _step_rows(results, machine, "keys"), use),
        _section("Scoring and BALD", _inference_rows(results, machine), use),
        _section("Kernels of the head", _kernel_rows(results)),
        _section("Targets", _target_rows(targets(results, machine))),
        _check_text(results),
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


Rows = list[dict[str, str]]


def _section(title: str, rows: Rows, use: str = "MFU") -> str:
    """Return a table under a title; nothing without rows."""
    if not rows:
        return ""
    head = [use if name == "MFU" else name for name in rows[0]]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return f"## {title}\n\n" + "\n".join(lines)


def _step_rows(results: Sequence[Result], machine: Machine, part: str = "steps") -> Rows:
    return [
        {
            "model": result.shape,
            "step": result.name,
            "ms": f"{result.measured.seconds * 1e3:,.1f}",
            "tokens/s": f"{result.tokens / result.measured.seconds:,.0f}",
            "MFU": _percent(utilisation(result, machine)),
            "peak MiB": _count(result.measured.peak_mib),
            "head": _percent(result.shares.get("head")),
            "selection": _percent(result.shares.get("selection")),
            "teacher": _percent(result.shares.get("teacher")),
            "device idle": _percent(result.measured.idle),
            "launches": _count(result.measured.launches),
            "waits": _count(result.measured.waits),
        }
        for result in results
        if result.part == part and result.measured
    ]


def _inference_rows(results: Sequence[Result], machine: Machine) -> Rows:
    halves = {result.shape: result.measured.seconds / result.tokens for result in results if result.name == SCORING}
    rows = []
    for result in results:
        if result.part != "inference" or result.measured is None:
            continue
        once = halves.get(result.shape)
        ratio = result.measured.seconds / result.tokens / once if once and result.in_float32 else None
        rows.append(
            {
                "model": result.shape,
                "pass": result.name,
                "ms": f"{result.measured.seconds * 1e3:,.1f}",
                "tokens/s": f"{result.tokens / result.measured.seconds:,.0f}",
                "MFU": _percent(utilisation(result, machine)),
                f"time / {machine.dtype} scoring": MISSING if ratio is None else f"{ratio:.2f}",
                "peak MiB": _count(result.measured.peak_mib),
                "device idle": _percent(result.measured.idle),
                "launches": _count(result.measured.launches),
                "waits": _count(result.measured.waits),
            }
        )
    return rows


def _kernel_rows(results: Sequence[Result]) -> Rows:
    return [
        {
            "model": result.shape,
            "kernel": result.name,
            "ms": f"{result.measured.seconds * 1e3:,.2f}",
            "tokens/s": f"{result.tokens / result.measured.seconds:,.0f}",
            "peak MiB": _count(result.measured.peak_mib),
            "launches": _count(result.measured.launches),
            "waits": _count(result.measured.waits),
        }
        for result in results
        if result.part == "kernels" and result.measured
    ]


def _target_rows(found: Sequence[Target]) -> Rows:
    return [
        {
            "model": target.shape,
            "target": target.what,
            "measured": f"{target.value:,.3g}",
            "required": f"{'>=' if target.is_least else '<='} {target.limit:g}",
            "met": "yes" if target.met else "**no**",
        }
        for target in found
    ]


def _check_text(results: Sequence[Result]) -> str:
    """Return how many checks passed, the largest error by backend and dtype, and those that failed."""
    checks = [check for result in results for check in result.checks]
    if not checks:
        return ""
    lines = [f"## Kernels against float64\n\n{sum(c['passed'] for c in checks)} of {len(checks)} checks passed.", ""]
    for backend, dtype in dict.fromkeys((check["backend"], check["dtype"]) for check in checks):
        own = [check for check in checks if (check["backend"], check["dtype"]) == (backend, dtype)]
        worst = max(error for check in own for error in check["errors"].values())
        lines.append(f"- {backend}, {dtype}: largest relative error {worst:.1e}, allowed {own[0]['tolerance']:.0e}")
    for check in checks:
        if not check["passed"]:
            errors = ", ".join(f"{name} {error:.1e}" for name, error in check["errors"].items())
            lines.append(f"- **failed**: {check['check']} ({check['backend']}, {check['dtype']}): {errors}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"


def _count(number: float | None) -> str:
    return MISSING if number is None else f"{number:,.0f}"
