"""The cost table: what each ablation trained and cost, and predictions for models of 1B, 8B and 70B parameters.

Plain rows, and the report's section that shows them. Training measures the costs; `costs/flops.py` has the formulas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from tokenuq_ml.costs.flops import PUBLISHED, Architecture, Flops, Step, flops
from tokenuq_ml.costs.record import CostRecord, Seconds
from tokenuq_ml.reports import html

REFERENCE = "mle"
"""The family that others are compared with."""
RATE = 400e12
"""FLOP/s that predicted seconds assume: what one data-centre accelerator reaches in bfloat16 training."""
MOST_ROWS = 40
"""Ablations that the section lists; of more, it shows families, and collapses the single ablations."""

_FLOP_PARTS = [part.name for part in fields(Flops)]
_SECOND_PARTS = [name for name in Seconds.model_fields if name != "total"]
_SUMS = (
    *("steps", "sequences", "tokens", "padded_tokens", "attended"),
    *("response_tokens", "mle_tokens", "distilled_tokens", "summed_tokens"),
)


def cost_rows(
    records: Mapping[str, CostRecord], architecture: Architecture, families: Mapping[str, str] | None = None
) -> list[dict]:
    """Return one row per ablation: tokens trained, measured seconds, and FLOPs by the formulas of `costs/flops.py`.

    `*_ratio` compares with all seeds of the reference together, for the same number of input tokens without padding;
    None without a reference. `gflops_*` are those of the mean optimiser step, `flops_total` of all steps.
    """
    reference = _by_family(records, families).get(REFERENCE)
    return [_row(name, record, architecture, reference) for name, record in records.items()]


def _row(name: str, record: CostRecord, architecture: Architecture, reference: CostRecord | None) -> dict:
    steps, seconds = record.steps, record.seconds
    work = flops(architecture, record.step())
    return {
        "ablation": name,
        "selection": record.selection,
        "teacher": record.teacher,
        "lora_rank": record.lora_rank,
        "steps": steps,
        "tokens": record.tokens,
        "response_tokens": record.response_tokens,
        "mle_tokens": record.mle_tokens,
        "mle_share": _quotient(record.mle_tokens, record.response_tokens),
        "distilled_tokens": record.distilled_tokens,
        "distilled_share": _quotient(record.distilled_tokens, record.response_tokens),
        "tokens_per_second": _quotient(record.tokens, seconds.total),
        "response_tokens_per_second": _quotient(record.response_tokens, seconds.total),
        "seconds_total": seconds.total,
        "seconds_step": seconds.total / steps,
        **{f"seconds_step_{part}": getattr(seconds, part) / steps for part in _SECOND_PARTS},
        "flops_total": work.total * steps,
        "gflops_step": work.total / 1e9,
        **{f"gflops_step_{part}": getattr(work, part) / 1e9 for part in _FLOP_PARTS},
        "gflops_per_second": _quotient(work.total * steps / 1e9, seconds.total),
        "seconds_ratio": _quotient(_seconds_per_token(record), reference and _seconds_per_token(reference)),
        "flops_ratio": _quotient(
            _flops_per_token(record, architecture), reference and _flops_per_token(reference, architecture)
        ),
    }


def prediction_rows(
    records: Mapping[str, CostRecord], families: Mapping[str, str] | None = None, rate: float = RATE
) -> list[dict]:
    """Return one row per published model and family: a step with the reference's lengths and the family's own shares.

    Seconds assume `rate` FLOP/s. Lengths are in the study's tokens, which another tokenizer would count differently.
    """
    pooled = _by_family(records, families)
    rows = []
    for model, architecture in PUBLISHED.items():
        reference = flops(architecture, pooled[REFERENCE].step()).total if REFERENCE in pooled else None
        for family, record in pooled.items():
            work = flops(architecture, _with_lengths(record.step(), _typical(pooled).step()))
            rows.append(
                {
                    "ablation": family,
                    "model": model,
                    "flops_step": work.total,
                    **{f"flops_step_{part}": getattr(work, part) for part in _FLOP_PARTS},
                    "head_share": work.head_share,
                    "seconds_step": work.total / rate,
                    "flops_ratio": _quotient(work.total, reference),
                }
            )
    return rows


def costs_section(
    records: Mapping[str, CostRecord],
    architecture: Architecture,
    families: Mapping[str, str] | None = None,
    rate: float = RATE,
) -> tuple[str, dict[str, list[dict]]]:
    """Return the report's section as an HTML fragment, and its rows: `measured` and `predicted`.

    Args:
        records: ablation -> its costs, in the order of the table; without the students that have no record.
        architecture: the sizes of the study's model.
        families: ablation -> its name without the seed.
        rate: FLOP/s that predicted seconds assume.
    """
    if not records:
        missing = "No student of this study has a record of its costs. Train a student again to measure them."
        return html.paragraph(missing), {"measured": [], "predicted": []}
    pooled = _by_family(records, families)
    rows, predicted = cost_rows(records, architecture, families), prediction_rows(records, families, rate)
    content = [
        html.paragraph(
            "Sums over the steps of the process that finished the training. Seconds are measured; FLOPs are computed "
            "from the model's sizes (docs/costs.md) and count matrix products. Ratios compare with "
            f"{REFERENCE} for the same number of input tokens."
        ),
        _by_families(rows, cost_rows(pooled, architecture)) if len(rows) > MOST_ROWS else _measured(rows),
        html.paragraph(_prediction_text(pooled, rate)),
        html.table(
            ["ablation"]
            + [f"{model} {what}" for model in PUBLISHED for what in ("TFLOP", "ratio", "head share", "seconds")],
            [
                [family, *(cell for row in predicted if row["ablation"] == family for cell in _prediction(row))]
                for family in dict.fromkeys(row["ablation"] for row in predicted)
            ],
        ),
        html.paragraph(_bound_text(pooled, architecture)),
    ]
    return "\n".join(content), {"measured": rows, "predicted": predicted}


def _by_families(rows: Sequence[dict], families: Sequence[dict]) -> str:
    """Return the tables of families, and collapsed those of ablations; the latter alone if no family has two."""
    if len(families) == len(rows):
        return _measured(rows)
    note = html.paragraph("A row is a family: the sum over its seeds.", "dim")
    return note + _measured(families) + html.details(f"Each of the {len(rows)} ablations", _measured(rows))


def _measured(rows: Sequence[dict]) -> str:
    """Return the tables of what was measured, one row per ablation or family."""
    fragments = [
        html.table(
            ["ablation", "selection", "teacher", "steps", "response tokens", "by cross-entropy", "distilled"]
            + ["total TFLOP", "FLOPs ratio", "total seconds", "seconds ratio"],
            [_totals(row) for row in rows],
        ),
        html.paragraph("Seconds per optimiser step:"),
        html.table(
            ["ablation", *_SECOND_PARTS, "step", "response tokens/s", "tokens/s", "GFLOP/s"],
            [_seconds(row) for row in rows],
        ),
        html.paragraph("GFLOP per optimiser step:"),
        html.table(["ablation", *_FLOP_PARTS, "step", "head share"], [_flops(row) for row in rows]),
    ]
    return "\n".join(fragments)


def _totals(row: dict) -> list[str]:
    trained = [f"{row[f'{kind}_tokens']:,} ({_percent(row[f'{kind}_share'])})" for kind in ("mle", "distilled")]
    return [
        row["ablation"],
        row["selection"],
        row["teacher"].replace("_", " "),
        f"{row['steps']:,}",
        f"{row['response_tokens']:,}",
        *trained,
        _number(row["flops_total"] / 1e12),
        _ratio(row["flops_ratio"], 3),
        _number(row["seconds_total"]),
        _ratio(row["seconds_ratio"]),
    ]


def _seconds(row: dict) -> list[str]:
    parts = [_number(row[f"seconds_step_{part}"]) for part in _SECOND_PARTS]
    speeds = ("response_tokens_per_second", "tokens_per_second", "gflops_per_second")
    return [row["ablation"], *parts, _number(row["seconds_step"]), *(_number(row[speed]) for speed in speeds)]


def _flops(row: dict) -> list[str]:
    parts = [_number(row[f"gflops_step_{part}"]) for part in _FLOP_PARTS]
    share = row["gflops_step_head"] / row["gflops_step"]
    return [row["ablation"], *parts, _number(row["gflops_step"]), _percent(share)]


def _prediction(row: dict) -> list[str]:
    return [
        _number(row["flops_step"] / 1e12),
        _ratio(row["flops_ratio"], 3),
        _percent(row["head_share"]),
        _number(row["seconds_step"]),
    ]


def _prediction_text(pooled: Mapping[str, CostRecord], rate: float) -> str:
    record = _typical(pooled)
    step = record.step()
    return (
        f"The same step, predicted for published model sizes: {record.sequences / record.steps:,.0f} sequences, "
        f"{step.padded_tokens:,.0f} tokens with padding, {step.response_tokens:,.0f} response tokens, each ablation "
        f"with its own shares. Seconds assume {rate / 1e12:,.0f} TFLOP/s."
    )


def _bound_text(pooled: Mapping[str, CostRecord], architecture: Architecture) -> str:
    """Return the upper bound of what selection can save, and the measured ratios."""
    record = _typical(pooled)
    vanilla = _with_lengths(Step(0, 0, 0, lora_rank=record.lora_rank, trains_base=record.trains_base), record.step())
    bounds = [f"{_percent(flops(model, vanilla).head_share)} at {name}" for name, model in PUBLISHED.items()]
    text = (
        "A token that is not trained still needs its forward and backward pass, since later tokens attend to it and "
        "their gradients flow through it. Selection saves only head products, which are "
        f"{_percent(flops(architecture, vanilla).head_share)} of the FLOPs of a step that trains every token of "
        f"this study ({', '.join(bounds)}). No selection saves more."
    )
    if REFERENCE in pooled and len(pooled) > 1:
        reference = _seconds_per_token(pooled[REFERENCE])
        measured = ", ".join(
            f"{family} {_ratio(_quotient(_seconds_per_token(record), reference))}"
            for family, record in pooled.items()
            if family != REFERENCE
        )
        text += f" Measured seconds as a ratio to {REFERENCE}: {measured}."
    return text


def _typical(pooled: Mapping[str, CostRecord]) -> CostRecord:
    """Return the record whose lengths represent the study."""
    return pooled.get(REFERENCE) or next(iter(pooled.values()))


def _by_family(records: Mapping[str, CostRecord], families: Mapping[str, str] | None) -> dict[str, CostRecord]:
    """Return family -> the pooled record of its seeds."""
    grouped: dict[str, list[CostRecord]] = {}
    for name, record in records.items():
        grouped.setdefault((families or {}).get(name, name), []).append(record)
    return {family: _pooled(members) for family, members in grouped.items()}


def _pooled(records: Sequence[CostRecord]) -> CostRecord:
    """Add up the records of several seeds; what the ablation itself decides is the same in all of them."""
    sums = {name: sum(getattr(record, name) for record in records) for name in _SUMS}
    seconds = {name: sum(getattr(record.seconds, name) for record in records) for name in Seconds.model_fields}
    return records[0].model_copy(update={**sums, "seconds": Seconds(**seconds)})


def _with_lengths(step: Step, lengths: Step) -> Step:
    return replace(
        step,
        padded_tokens=lengths.padded_tokens,
        response_tokens=lengths.response_tokens,
        attended=lengths.attended,
    )


def _seconds_per_token(record: CostRecord) -> float | None:
    return _quotient(record.seconds.total, record.tokens)


def _flops_per_token(record: CostRecord, architecture: Architecture) -> float | None:
    return _quotient(flops(architecture, record.step()).total * record.steps, record.tokens)


def _quotient(a: float | None, b: float | None) -> float | None:
    """Return `a / b`; None if either is missing or `b` is 0."""
    return a / b if a is not None and b else None


def _number(value: float | None) -> str:
    """Format with three significant digits."""
    if value is None:
        return "—"
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _ratio(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.1%}"
