"""Sections of the report other than the comparison of families: losses, correlations, curricula, tokens, settings.

Each takes frames and specs, returns an HTML fragment, and writes its plots to `folder`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from tokenuq_ml.config import AblationSpec, Schedule, StudySpec
from tokenuq_ml.reports import html, plots
from tokenuq_ml.reports.canvas import SIDE_ENTRIES
from tokenuq_ml.reports.explorer import explorer
from tokenuq_ml.reports.explorer_data import ExplorerTables
from tokenuq_ml.reports.explorer_examples import most_uncertain, within_budget
from tokenuq_ml.reports.family_table import families_of
from tokenuq_ml.reports.settings import candidates_table
from tokenuq_ml.tables.bald_noise import noise_floor

CURRICULA_IN_FULL, CURRICULA_COLLAPSED = 8, 40
"""Ablations whose curricula are shown, and most of those that are collapsed."""
CATEGORY_NOTE = (
    "Colours are the categories of the tokens that were selected at each optimiser step. In the automatic curriculum "
    "of the paper, structure on the left gives way to content (numbers, words) on the right."
)
UNCERTAINTY_NOTE = (
    "Loss and BALD of a fixed validation sample. At 0% the output of the fresh adapter is zero, so that BALD is 0 by "
    "construction; compare the later points."
)


def shared_questions(examples: pl.DataFrame) -> str:
    """Return how close test is to train: shared questions, and shared question templates if the dataset names them."""
    examples = examples.with_columns(
        pl.col("split").cast(pl.String),
        template=pl.col("source").str.json_path_match("$.template"),
        prompt=pl.Series(
            [json.dumps([m for m in messages if m["role"] != "assistant"]) for messages in examples["messages"]],
            dtype=pl.String,
        ),
    )
    train, test = (examples.filter(pl.col("split") == split) for split in ("train", "test"))
    repeated = len(test.filter(pl.col("prompt").is_in(train["prompt"].to_list())))
    questions = f"{repeated} of {len(test)} test questions occur word for word in train."
    if test["template"].null_count() == len(test):
        return html.paragraph(
            f"The dataset does not say which question templates its examples come from. {questions}", "dim"
        )
    known = test.drop_nulls("template")
    seen = known.filter(pl.col("template").is_in(train["template"].drop_nulls().to_list()))
    return html.paragraph(
        f"{seen['template'].n_unique()} of the {known['template'].n_unique()} question templates in test also occur in "
        f"train ({len(seen)} of {len(known)} test examples). {questions}",
        "dim",
    )


def planes(families: Sequence[dict], logs: Mapping[str, pl.DataFrame], folder: Path) -> str:
    """Return losses of families in and out of distribution, if the latter was measured, and the training curves."""
    losses = pl.DataFrame(families, infer_schema_length=None).rename({"family": "model"})
    figures = []
    if len(losses.filter(split="ood", metric="loss")):
        plots.id_vs_ood(losses, folder / "id_vs_ood.png")
        figures.append(
            html.picture(
                folder / "id_vs_ood.png",
                "Held-out loss",
                "Left is better in distribution, down is better out of distribution. Distillation is meant to keep a "
                "student low while it moves left. Each point is a family; bars are intervals over examples and seeds, "
                "cut at the frame if there are many. Points on the Pareto front are ringed.",
            )
        )
    plots.training_curves(logs, folder / "training_curves.png")
    figures.append(
        html.picture(
            folder / "training_curves.png",
            "Training",
            "The objective of each family's first seed over steps. Ablations with different selections minimise "
            "different quantities, so compare shapes, not heights.",
        )
    )
    return html.pictures(figures, wide=len(logs) > SIDE_ENTRIES)


def correlations(
    analysis: pl.DataFrame,
    headlines: Iterable[tuple[str, str, str]],
    tokens: pl.LazyFrame,
    reference: pl.DataFrame,
    folder: Path,
) -> str:
    """Return loss against BALD: plot, the correlations `headlines` (x, y, method), and the noise floor of BALD."""
    points = tokens.select("category", "loss", "bald").collect(engine="streaming")
    plots.loss_vs_bald(points, analysis, folder / "loss_vs_bald.png")
    rows = [_correlation_row(analysis, *headline) for headline in headlines]
    return (
        html.pictures(
            [
                html.picture(
                    folder / "loss_vs_bald.png",
                    "Loss against BALD",
                    "All response tokens, and those of each category, on one scale. Above each panel: Spearman's rank "
                    "correlation, and the partial one given entropy. With a high rank correlation, the loss is a cheap "
                    "proxy of BALD.",
                )
            ]
        )
        + html.tables(
            [html.table(["pair", "correlation", "value", "interval", "tokens"], rows), _by_category(analysis)]
        )
        + html.paragraph(
            "The partial correlation removes what loss and BALD share through the entropy. The rest says how well the "
            "loss distinguishes epistemic from aleatoric uncertainty.",
            "dim",
        )
        + html.paragraph(_noise(tokens, reference), "dim")
    )


def _correlation_row(analysis: pl.DataFrame, x: str, y: str, method: str) -> list[str]:
    row = analysis.filter(split="all", category="all", x=x, y=y, method=method).row(0, named=True)
    given = " given entropy" if method.startswith("partial") else ""
    return [
        f"{x} and {y}{given}",
        method.replace("_", " "),
        _number(row["value"]),
        f"[{_number(row['ci_low'])}, {_number(row['ci_high'])}]",
        f"{row['n']:,}",
    ]


def _noise(tokens: pl.LazyFrame, reference: pl.DataFrame) -> str:
    figures = tokens.select(
        bald=pl.col("bald").mean(), error=pl.col("bald_std_error").mean(), k=pl.col("n_samples").max()
    )
    bald, error, samples = figures.collect(engine="streaming").row(0)
    floor = noise_floor(reference)
    share = f", {floor / bald:.2%} of it" if bald else ""
    return (
        f"Mean BALD is {bald:.3g} nats per token. Its noise floor, the mean difference from float64 with the same "
        f"masks on {len(reference):,} tokens, is {floor:.2g} nats{share}. The standard error of one token's BALD over "
        f"draws of its {samples} masks is {error:.2g} nats on average. BALD from {samples} samples is low by about the "
        f"factor {samples - 1}/{samples}; it is not corrected."
    )


def _by_category(analysis: pl.DataFrame) -> str:
    wanted = {"Spearman": "spearman", "given entropy": "partial_spearman"}
    pairs = analysis.filter((pl.col("split") == "all") & (pl.col("x") == "loss") & (pl.col("y") == "bald"))
    rows = []
    for category in plots.CATEGORY_COLOURS:
        values = {row["method"]: row for row in pairs.filter(pl.col("category") == category).iter_rows(named=True)}
        if values:
            numbers = [_number(values[method]["value"]) for method in wanted.values()]
            rows.append([category, *numbers, f"{values['spearman']['n']:,}"])
    return html.table(["loss and BALD in", *wanted, "tokens"], rows)


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def curricula(
    ablations: Mapping[str, AblationSpec],
    read: Callable[[str], pl.DataFrame],
    folder: Path,
) -> str:
    """Return selected categories and uncertainty over training: first families shown, all others collapsed."""
    firsts = [names[0] for names in families_of(ablations).values()]
    shown = firsts[:CURRICULA_IN_FULL]
    others = [name for name in ablations if name not in shown]
    hidden = others[:CURRICULA_COLLAPSED]
    body = html.paragraph(f"{CATEGORY_NOTE} {UNCERTAINTY_NOTE}", "dim")
    body += html.pictures([figure for name in shown for figure in _curriculum(name, ablations[name], read, folder)])
    if hidden:
        figures = [figure for name in hidden for figure in _curriculum(name, ablations[name], read, folder)]
        body += html.details(f"{len(hidden)} more ablations", html.pictures(figures))
    if len(others) > len(hidden):
        body += html.paragraph(f"{len(others) - len(hidden)} more would make the page too large; see the UI.", "dim")
    return body


def _curriculum(name: str, ablation: AblationSpec, read: Callable[[str], pl.DataFrame], folder: Path) -> list[str]:
    selected, uncertainty = folder / f"selected_categories_{name}.png", folder / f"uncertainty_{name}.png"
    plots.selected_categories(read(f"curriculum/{name}"), selected)
    plots.uncertainty_over_training(read(f"curriculum_uncertainty/{name}"), uncertainty)
    return [
        html.picture(selected, f"{name}: selected tokens", f"Selection: {ablation.selection_kind}."),
        html.picture(uncertainty, f"{name}: validation sample", ""),
    ]


def token_explorer(tables: ExplorerTables) -> str:
    """Return the explorer of the examples on which the teacher is most uncertain."""
    selections = tables.students.selections.values()
    alternatives = tables.alternatives.select(pl.col("choice").max() + 1).collect().item() or 0
    epochs = [log.select(pl.col("epoch").max()).collect().item() or 0 for log in selections]
    passes = math.ceil(max(epochs, default=0))
    shown = within_budget(most_uncertain(tables.tokens), len(tables.students.names), alternatives, passes)
    return html.paragraph(
        f"The {len(shown)} examples on which the teacher is most uncertain by mean BALD, taken from the splits in "
        "turn. Choose what response tokens are coloured by. Point at a token, or use the arrow keys, to see its "
        "numbers and the teacher's likeliest tokens. Difference compares the loss under two models: on held-out "
        "examples after training, on train examples at the last step that trained on them."
    ) + explorer(tables, shown)


def settings(study: StudySpec, ablations: Mapping[str, AblationSpec], candidates: pl.DataFrame | None = None) -> str:
    """Return the settings of the study, the definition of each family, and the teachers that were tried.

    Args:
        study: the study.
        ablations: its ablations, each family at the setting that it is compared at.
        candidates: the table `teacher_candidates`; None if the teacher was trained once.
    """
    train = study.train
    values = {
        "learning rate": train.learning_rate,
        "schedule": f"{train.lr_schedule}, warm-up {train.warmup_ratio:.0%}",
        "epochs": train.epochs,
        "batch size": train.batch_size,
        **train.adapter_settings,
        "max length": study.max_length,
        "precision": f"training {study.precision.training}, tables {study.precision.tables}, BALD float32",
        **({"quantization of the base": study.quantization} if study.quantization else {}),
        "teacher seed": study.teacher_seed,
        "teacher states": study.teacher_states,
        "MC samples K": study.uncertainty.samples,
        "MC dropout": study.uncertainty.dropout,
        "mask": f"one per {study.uncertainty.mask}",
        "bootstrap resamples": study.evaluation.bootstrap,
    }
    header = ["family", "select by", "keep", "selection", "selected", "rest", "distillation", "adapter", "training"]
    header.append("seeds")
    rows = [
        _definition(family, [ablations[name] for name in names]) for family, names in families_of(ablations).items()
    ]
    return (
        html.paragraph(
            "The paper leaves these settings open; they are choices of this study. The loss is a sum over response "
            "tokens, cross-entropy for the selected ones and weighted divergence for the others, divided by the "
            "number of response tokens in the optimiser batch."
        )
        + html.settings(values)
        + html.table(header, rows)
        + (
            ""
            if candidates is None
            else html.details(f"Teachers that were tried ({len(candidates)})", _tried(candidates))
        )
    )


def _tried(candidates: pl.DataFrame) -> str:
    return candidates_table(candidates) + html.paragraph(
        "The teacher with the lowest loss on the validation split is the study's; all students share it.", "dim"
    )


def _definition(family: str, seeds: Sequence[AblationSpec]) -> list[str]:
    ablation = seeds[0]
    select, takes_all = ablation.select, ablation.select.takes_all
    amount = select.quantile if select.by_quantile else select.threshold
    keep = f"{select.keep} {_amount(amount)}" + (" of examples" if select.unit == "document" else "")
    distil = ablation.distillation
    change, growth = ablation.lora.model_dump(exclude_none=True), ablation.rank_growth
    adapter = [f"{key} {value:g}" for key, value in change.items()] + (
        [f"rank from {growth.start} up"] if growth else []
    )
    return [
        family,
        select.by,
        "—" if takes_all else keep,
        "—" if takes_all else f"{ablation.selection_kind}, per {select.scope}",
        ablation.selected.text,
        "—" if takes_all else ablation.rest.text,
        "—"
        if distil is None
        else f"{distil.teacher}, {distil.divergence}, T={distil.temperature:g}, weight {distil.weight:g}"
        + (f", top {distil.top_k}" if distil.top_k else ""),
        ", ".join(adapter) or "the study's",
        _trained_with(ablation),
        ", ".join(str(one.seed) for one in seeds),
    ]


def _trained_with(ablation: AblationSpec) -> str:
    parts = [ablation.train.text] if ablation.train.values else []
    if ablation.budget != "equal_steps":
        parts.append(ablation.budget.replace("_", " "))
    return ", ".join(parts) or "the study's"


def _amount(value: float | Schedule | str | None) -> str:
    if isinstance(value, Schedule):
        return f"{value.start:g} → {value.end:g}"
    return f"{value:g}" if isinstance(value, int | float) else str(value).replace("_", " ")
