"""What a plan says of the machine that it is for: its rate, its memory, and the largest micro-batch that fits."""

import os

from tokenuq_pipeline.commands.units import duration, memory

ACCELERATOR_FLOPS = 400e12
"""What docs/costs.md assumes of one accelerator, in FLOP/s."""
ON_HOST = "process"
"""Part of a stage's memory that is not on an accelerator."""


def device_lines(machine: dict | None, totals: dict, micro_batch: dict | None) -> list[str]:
    """Return a line on each of them, as far as it is known; the arguments are fields of a `Plan`."""
    return [*_machine_lines(machine, totals), *_memory_lines(machine, totals), *_micro_batch_lines(micro_batch)]


def _machine_lines(machine: dict | None, totals: dict) -> list[str]:
    if not machine:
        return []
    if machine["card"] is not None:
        return [_card_line(machine)]
    lines = [
        f"This machine: {machine['device']}, {machine['threads']} threads, {machine['precision']} "
        f"({machine['precision_reason']}): {machine['flop_per_second'] / 1e9:,.0f} GFLOP/s of matrix products at the "
        "model's shapes, measured just now"
    ]
    others = {one["precision"]: one["flop_per_second"] for one in machine["others"].values()}
    others.pop(machine["precision"], None)
    lines += [f"In {name}, the precision of BALD: {rate / 1e9:,.0f} GFLOP/s" for name, rate in others.items()]
    if machine["device"] == "cpu" and totals["seconds"] is not None:
        lines.append(
            f"At {ACCELERATOR_FLOPS / 1e12:.0f} TFLOP/s, which docs/costs.md assumes of an accelerator, the FLOPs take "
            f"{duration(totals['flop'] / ACCELERATOR_FLOPS)}; generation takes longer than its FLOPs there"
        )
    return lines


def _card_line(machine: dict) -> str:
    kind = "measured" if machine["efficiency"]["is_measured"] else "assumed"
    rates = {one["precision"]: one["flop_per_second"] for one in machine["others"].values()}
    listed = ", ".join(f"{rate / 1e12:,.1f} TFLOP/s in {name}" for name, rate in rates.items())
    return (
        f"One {machine['card'].upper()} by its data sheet: {listed}; {memory(machine['memory'])} of memory; the share "
        f"of the peak that work reaches is {kind}"
    )


def _micro_batch_lines(found: dict | None) -> list[str]:
    """Return the largest micro-batch that fits, next to the study's own."""
    most = "with every text as long as max_length"
    if not found:
        return []
    fits = f"of {memory(found['usable'])} that are usable"
    if not found["examples"]:
        remedy = f"set {' and '.join(found['remedies'])}" if found["remedies"] else "lower max_length"
        return [f"Micro-batch: not even one example fits: {memory(found['needed'])} {fits}, {most}; {remedy}"]
    line = f"Largest micro-batch that fits: {found['examples']} examples, {memory(found['needed'])} {fits}, {most}"
    if found["asked"] > found["examples"]:
        return [f"{line}; the study has {found['asked']}, set train.micro_batch_size: {found['examples']}"]
    return [f"{line}; the study has {found['asked']}"]


def _memory_lines(machine: dict | None, totals: dict) -> list[str]:
    parts = totals["memory"]
    if not parts:
        return []
    needed, available = sum(parts.values()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    listed = ", ".join(f"{name} {memory(size)}" for name, size in parts.items())
    lines = [f"Largest process: {totals['largest']}, {memory(needed)}: {listed}"]
    if (machine is None or machine["device"] == "cpu") and needed > available:
        lines.append(
            f"This machine has {memory(available)} of memory: too little. A smaller micro_batch_size needs less for "
            "activations"
        )
    if machine is not None and machine["card"] is not None and needed - parts.get(ON_HOST, 0.0) > machine["memory"]:
        lines.append(f"A {machine['card'].upper()} has {memory(machine['memory'])} of memory: too little for it")
    return lines
