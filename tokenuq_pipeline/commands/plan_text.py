"""A plan as text: one row per asset, totals, verdicts, sources and assumptions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenuq_pipeline.commands.disk_space import Need, shortages
from tokenuq_pipeline.commands.plan_device_text import device_lines
from tokenuq_pipeline.commands.units import disk, duration, memory

FRESH = "fresh"
HEADINGS = ("asset", "state", "tokens", "TFLOP", "time", "disk", "peak memory")


@dataclass
class Plan:
    """Everything that is printed; its fields are the keys of `--format json`.

    In a row of `stages`, `flop` and `seconds` are None if the model's sizes are not known. `passing_disk` is disk space
    that a stage needs while it runs.
    """

    study: str
    model: str
    parameters: int | None
    stages: list[dict]
    machine: dict | None
    sources: list[dict]
    assumptions: list[str]
    totals: dict = field(default_factory=dict)
    micro_batch: dict | None = None
    """The largest micro-batch that fits the device: the fields of `costs.micro_batch.MicroBatch`."""
    template: list[str] = field(default_factory=list)
    """What the chat template makes of the study's rows, if it is not as usual."""
    trackers: list[str] = field(default_factory=list)
    """Trackers that the study names and that cannot be used here."""

    @property
    def planned(self) -> list[dict]:
        """Return the rows of assets that are not fresh."""
        return [row for row in self.stages if row["state"] != FRESH]


def assumptions(planner, sizes: dict, spec) -> list[str]:
    """Return what the numbers are based on, one sentence each."""
    said = [f"sizes of {spec.model}: {sizes[spec.model].origin}" if sizes[spec.model] else _unknown(spec.model)]
    said += [_unknown(name) for name, found in sizes.items() if found is None and name != spec.model]
    said += _data_assumptions(planner, spec)
    if sizes[spec.model]:
        said += _cost_assumptions(planner)
        said += _refused_estimators(planner, spec)
    said.append(
        "an asset that may follow is counted, but it stays fresh if its inputs are rebuilt with the same content"
    )
    return said


def _data_assumptions(planner, spec) -> list[str]:
    data = [(f"{spec.dataset}, train", planner.train_data), (f"{spec.dataset}, test", planner.held_out[0])]
    data += list(zip(spec.ood, planner.held_out[1:], strict=False))
    said = [
        f"{name}: {lengths.rows:,} rows of {lengths.tokens:.0f} tokens, {lengths.response:.0f} scored; {lengths.origin}"
        for name, lengths in data
    ]
    said += [
        f"{one.name}: {one.prompts:,} prompts of {one.prompt_tokens:,.0f} tokens per model; "
        + (f"each answer has all of its {one.new_tokens:,} tokens" if one.new_tokens else "none has an answer")
        for one in planner.generated_evaluations
    ]
    alpaca = spec.evaluation.alpaca_eval
    if alpaca is not None and alpaca.judge is None:
        said.append("AlpacaEval: no judge is named, so nothing is generated")
    return [*said, *_judge_assumptions(planner, spec), *_lm_eval_assumptions(spec)]


def _judge_assumptions(planner, spec) -> list[str]:
    from tokenuq_ml.costs.generated import judge_requests

    answers = {one.name: one for one in planner.generated_evaluations}
    return [
        f"{name}: {requests:,.0f} requests to the judge, each with a prompt and two answers, up to "
        f"{answers[name].prompt_tokens + 2 * answers[name].new_tokens:,.0f} tokens; what the judge computes or costs "
        "is not counted"
        for name, requests in judge_requests(planner.config, spec).items()
    ]


def _lm_eval_assumptions(spec) -> list[str]:
    """Return whether lm-eval has the study's tasks, and which are not counted."""
    from tokenuq_ml.errors import InputError
    from tokenuq_ml.evaluation.lm_eval_data import overrides
    from tokenuq_ml.evaluation.lm_eval_index import resolve_all

    tasks = spec.evaluation.lm_eval
    if tasks is None:
        return []
    try:
        found = resolve_all(tasks.tasks)
        for one in (one for one in found if one.name in tasks.data):
            overrides(one, tasks.data[one.name], tasks.num_fewshot)
    except InputError as error:
        return [f"evaluations will be refused: {error}"]
    hub = [one.name for one in found if one.name not in tasks.data]
    said = [f"lm-eval: the data of {', '.join(hub)} come from the hub, unless they are in its cache"] if hub else []
    if tasks.limit is None:
        return [*said, "lm-eval: its tasks are not counted, since their samples are not read here; `limit` bounds them"]
    count = sum(len(one.tasks) for one in found)
    return [*said, f"lm-eval: {tasks.limit:,} samples of each of {count} tasks, with 4 choices where there are choices"]


def _refused_estimators(planner, spec) -> list[str]:
    """Return what `uncertainty_estimates` would refuse for the size of the model's output layer."""
    from tokenuq_ml.config.estimators import LAPLACE_ESTIMATORS, too_large

    model, samples = planner.architecture, spec.uncertainty.samples
    names = [name for name in spec.uncertainty.measured if name in LAPLACE_ESTIMATORS]
    problems = (too_large(name, model.vocabulary, model.hidden, samples) for name in names)
    return [f"uncertainty_estimates will be refused: {problem}" for problem in problems if problem]


def _cost_assumptions(planner) -> list[str]:
    from tokenuq_ml.costs.passes import PADDING
    from tokenuq_ml.costs.work import STARTUP_S

    teacher = (
        "the teacher's states are cached"
        if planner.online_reason is None
        else f"students run the teacher online: {planner.online_reason}"
    )
    rate = "rate of matrix products" if planner.machine.card is None else "card's peak"
    return [
        teacher,
        f"share of the {rate} that each kind of work reaches: {planner.machine.efficiency.text}",
        f"{STARTUP_S:g} s for each child process to start; batches padded by {PADDING - 1:.0%}; downloads take no time",
        "memory is for the longest texts that the study allows; formulas in docs/studies.md",
    ]


def _unknown(model: str) -> str:
    return f"sizes of {model}: not known until its config can be read, or its entry in models.yaml gives `config:`"


def as_text(plan: Plan, needs: Sequence[Need]) -> str:
    """Return the table, the verdicts, the sources and the assumptions.

    Args:
        plan: what to print.
        needs: what it takes of each disk, the store's first.
    """
    size = f"{plan.parameters / 1e6:,.0f} million parameters" if plan.parameters else "size not known"
    lines = [f"study {plan.study}: {plan.model}, {size}", "", *_table(plan), "", *_verdicts(plan, needs), "", "Sources"]
    width = max(len(source["name"]) for source in plan.sources)
    for source in plan.sources:
        ready = "ready" if source["ready"] else "missing"
        lines.append(f"  {source['kind']:<7}  {source['name']:<{width}}  {ready:<7}  {source['words']}")
    if plan.template:
        lines += ["", "Chat template", *(f"  - {one}" for one in plan.template)]
    if plan.trackers:
        lines += ["", "Trackers", *(f"  - {one}" for one in plan.trackers)]
    if plan.assumptions:
        lines += ["", "Assumptions", *(f"  - {one}" for one in plan.assumptions)]
    return "\n".join(lines)


def grid_as_text(name: str, plans: Sequence[Plan], needs: Sequence[Need]) -> str:
    """Return a line per study of a grid, their sum, and the plan of the one with most to make.

    Args:
        name: the entry with the `grid`.
        plans: of its studies; what they share counts in the first one.
        needs: what all of them take of each disk, the store's first.
    """
    about = "One of them asset by asset; the others differ from it in the data only, and what they share is here."
    return _several_as_text(f"{name}: {len(plans)} studies with one base model", plans, about, needs)


def comparison_as_text(name: str, plans: Sequence[Plan], needs: Sequence[Need]) -> str:
    """Return a line per study of a comparison, their sum, and the plan of the one with most to make.

    Args:
        name: of the comparison.
        plans: of its studies, with what it needs of them; what they share counts in the first one.
        needs: what all of them take of each disk, the store's first.
    """
    about = "The one with most to make, asset by asset; `tokenuq plan --study` shows the others."
    return _several_as_text(
        f"comparison {name}: what it needs of {len(plans)} {'study' if len(plans) == 1 else 'studies'}",
        plans,
        about,
        needs,
    )


def _several_as_text(title: str, plans: Sequence[Plan], about: str, needs: Sequence[Need]) -> str:
    rows = [{**plan.totals, "asset": plan.study, "state": _to_make(plan)} for plan in plans]
    known = all(row["flop"] is not None for row in rows)
    total = {key: sum(row[key] for row in rows) if known or key in ("tokens", "disk") else None for key in _SUMMED}
    largest = max((plan.totals["memory"] for plan in plans), key=lambda parts: sum(parts.values()))
    rows.append({**total, "asset": "total", "state": "", "memory": largest})
    lines = [title, ""]
    lines += _aligned([("study", *HEADINGS[1:]), *(_cells({**row, "disk": {"": row["disk"]}}) for row in rows)])
    return "\n".join([*lines, "", about, "", as_text(max(plans, key=lambda plan: plan.totals["stages"]), needs)])


_SUMMED = ("tokens", "flop", "seconds", "disk")


def _to_make(plan: Plan) -> str:
    return f"{plan.totals['stages']} to make" if plan.totals["stages"] else FRESH


def _table(plan: Plan) -> list[str]:
    cells = [HEADINGS, *(_cells(row) for row in plan.stages)]
    cells.append(_cells({**plan.totals, "asset": "total", "state": "", "disk": {"": plan.totals["disk"]}}))
    return _aligned(cells)


def _aligned(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows with columns of equal width: two to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    lines = []
    for row in cells:
        left = [f"{cell:<{width}}" for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return lines


def _verdicts(plan: Plan, needs: Sequence[Need]) -> list[str]:
    if not plan.totals["stages"]:
        return ["up to date: nothing to compute"]
    return [*device_lines(plan.machine, plan.totals, plan.micro_batch), *_disk_lines(plan, needs)]


def _disk_lines(plan: Plan, needs: Sequence[Need]) -> list[str]:
    stays, temporary = plan.totals["disk"], plan.totals["passing_disk"]
    free = needs[0].disk.free if needs else 0
    line = (
        f"Disk: {disk(stays)}, and {disk(temporary)} temporarily (checkpoints, the hub's cache); {disk(free)} are free"
    )
    return [line, *(f"Disk: {shortage}" for shortage in shortages(needs))]


def _cells(row: dict) -> tuple[str, ...]:
    if row["state"] == FRESH:
        return (row["asset"], FRESH, *[""] * 5)
    unknown = row["flop"] is None
    return (
        row["asset"],
        row["state"],
        f"{row['tokens']:,}" if row["tokens"] else "",
        "?" if unknown else f"{row['flop'] / 1e12:,.1f}" if row["flop"] else "",
        "?" if unknown else duration(row["seconds"]),
        ("?" if unknown and not row["disk"] else disk(sum(row["disk"].values()))) if row["disk"] or unknown else "",
        "?" if unknown and not row["memory"] else memory(sum(row["memory"].values())),
    )
