"""Child process of `<study>/ablation_report`: puts the page together from the tables."""

import json
from pathlib import Path

import polars as pl

from tokenuq_ml.entrypoints import runner
from tokenuq_ml.entrypoints.analyse import HEADLINES, joined_tokens
from tokenuq_ml.reports import html, plots
from tokenuq_ml.reports.ablation_table import REFERENCES, table_rows, verdict
from tokenuq_ml.reports.heatmap import heatmap, most_uncertain
from tokenuq_ml.specs import AblationSpec, StudySpec
from tokenuq_ml.stages import AssetResult, Reporter, StageRequest
from tokenuq_ml.tables import content_of, read_table
from tokenuq_ml.tensors import joined_digest

HEATMAP_EXAMPLES = 6
CATEGORY_NOTE = (
    "Each bar is an optimiser step; colours are categories of the tokens that were selected. Structure giving "
    "way to content (numbers, words) from left to right is the automatic curriculum of the paper."
)
UNCERTAINTY_NOTE = (
    "Loss and BALD of a fixed validation sample. At 0% the fresh adapter is zero, so that dropout has "
    "nothing to drop and BALD is 0 by construction; compare the later points."
)


def run(request: StageRequest, reporter: Reporter) -> None:
    """Fills the output `report` with the page, the table as CSV and JSON, and the plots."""
    asset = request.assets["ablation_report"]
    study = StudySpec(**asset.fields["study"])
    ablations = {name: AblationSpec(**fields) for name, fields in asset.fields["ablations"].items()}
    folder = Path(asset.outputs["report"])
    tables = {name: read_table(path) for name, path in request.inputs.items()}
    evaluations = {name: tables[f"evaluations/{name}"] for name in (*REFERENCES, *ablations)}
    rows = table_rows(evaluations)
    tokens = joined_tokens(tables["token_losses"], tables["token_uncertainty"])
    sections = [
        (
            "Ablations",
            html.paragraph(verdict(rows), "verdict")
            + html.ablation_table(rows, REFERENCES)
            + html.paragraph(
                f"Each cell is a value with its {study.evaluation.confidence:.0%} bootstrap interval over examples; "
                "↓ lower is better, ↑ higher is better. A value is marked only where its interval overlaps no other.",
                "dim",
            )
            + _overlap(tables[f"examples/{study.dataset}"]),
        ),
        ("In distribution against out of distribution", _planes(study, ablations, tables, evaluations, folder)),
        (
            "Is the loss a proxy of epistemic uncertainty?",
            _correlations(tables["uncertainty_analysis"], tokens, folder),
        ),
        ("The curriculum that selection makes", _curricula(ablations, tables, folder)),
        ("Tokens", _tokens(tokens)),
        ("What was run", _settings(study, ablations)),
    ]
    (folder / "report.html").write_text(
        html.page(
            f"Ablation report: {study.name}",
            f"{study.model} on {study.dataset}, {len(ablations)} ablations; losses in nats",
            sections,
        ),
        encoding="utf-8",
    )
    (folder / "ablation_table.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    pl.DataFrame(rows).write_csv(folder / "ablation_table.csv")
    content = [content_of(path) for _, path in sorted(request.inputs.items())]
    reporter.info(f"{study.name}: {verdict(rows)}")
    reporter.done(
        AssetResult(
            stage="ablation_report",
            data_version=joined_digest(asset.spec_hash, *content),
            metrics={
                "models": len(evaluations),
                "metrics": len({(r["dataset"], r["metric"]) for r in rows}),
                "verdict": verdict(rows),
                "page_kilobytes": round((folder / "report.html").stat().st_size / 1e3),
            },
            plots={"In distribution against OOD": "report/id_vs_ood.png"},
        )
    )


def _overlap(examples: pl.DataFrame) -> str:
    """How close test is to train: shared question templates, where the dataset names them, and shared questions."""
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


def _planes(study: StudySpec, ablations: dict, tables: dict, evaluations: dict, folder: Path) -> str:
    everything = pl.concat([frame.with_columns(ablation=pl.lit(name)) for name, frame in evaluations.items()])
    plots.id_vs_ood(everything, folder / "id_vs_ood.png")
    logs = {"teacher": tables["training_log/teacher"], **{name: tables[f"training_log/{name}"] for name in ablations}}
    plots.training_curves(logs, folder / "training_curves.png")
    return html.pictures(
        [
            html.picture(
                folder / "id_vs_ood.png",
                "Held-out loss",
                "Left is better in distribution, down is better out of it. "
                "Distillation is meant to keep a student low while it moves left; bars are bootstrap intervals.",
            ),
            html.picture(
                folder / "training_curves.png",
                "Training",
                "The objective of each arm over steps. Arms with another "
                "selection minimise another quantity, so compare shapes rather than heights.",
            ),
        ]
    )


def _correlations(analysis: pl.DataFrame, tokens: pl.DataFrame, folder: Path) -> str:
    plots.loss_vs_bald(tokens, folder / "loss_vs_bald.png")
    overall = analysis.filter((pl.col("split") == "all") & (pl.col("category") == "all"))
    rows = []
    for x, y, method in HEADLINES.values():
        row = overall.filter((pl.col("x") == x) & (pl.col("y") == y) & (pl.col("method") == method)).row(0, named=True)
        given = " given entropy" if method.startswith("partial") else ""
        rows.append(
            [
                f"{x} and {y}{given}",
                method.replace("_", " "),
                _number(row["value"]),
                f"[{_number(row['ci_low'])}, {_number(row['ci_high'])}]",
                f"{row['n']:,}",
            ]
        )
    return (
        html.pictures(
            [
                html.picture(
                    folder / "loss_vs_bald.png",
                    "Loss against BALD",
                    "Left: every response token, loss against BALD. Right: BALD by "
                    "token category. A high rank correlation is what makes the loss a cheap stand-in for BALD.",
                )
            ]
        )
        + html.tables(
            [html.table(["pair", "correlation", "value", "interval", "tokens"], rows), _by_category(analysis)]
        )
        + html.paragraph(
            "The partial correlation takes out what loss and BALD share through the entropy: what is left is how far "
            "the loss tells epistemic from aleatoric uncertainty.",
            "dim",
        )
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


def _curricula(ablations: dict, tables: dict, folder: Path) -> str:
    figures = []
    for name in ablations:
        plots.selected_categories(tables[f"curriculum/{name}"], folder / f"selected_categories_{name}.png")
        figures.append(
            html.picture(folder / f"selected_categories_{name}.png", f"{name}: selected tokens", CATEGORY_NOTE)
        )
        plots.uncertainty_over_training(tables[f"curriculum_uncertainty/{name}"], folder / f"uncertainty_{name}.png")
        figures.append(html.picture(folder / f"uncertainty_{name}.png", f"{name}: validation sample", UNCERTAINTY_NOTE))
    return html.pictures(figures)


def _tokens(tokens: pl.DataFrame) -> str:
    buttons = "".join(
        f'<button data-by="{by}" aria-pressed="{"true" if by == "loss" else "false"}">{label}</button>'
        for by, label in (("loss", "loss"), ("entropy", "entropy"), ("bald", "BALD"))
    )
    return (
        html.paragraph(
            "The held-out examples of which the teacher is least sure, response tokens coloured by what "
            "you choose; full colour is the 95th percentile. Point at a token for its numbers."
        )
        + f'<p class="by">{buttons}</p>'
        + heatmap(tokens, most_uncertain(tokens, HEATMAP_EXAMPLES))
    )


def _settings(study: StudySpec, ablations: dict[str, AblationSpec]) -> str:
    train, lora = study.train, study.train.lora
    values = {
        "learning rate": train.learning_rate,
        "schedule": f"{train.lr_schedule}, warm-up {train.warmup_ratio:.0%}",
        "epochs": train.epochs,
        "batch size": train.batch_size,
        "LoRA rank, alpha": f"{lora.rank}, {lora.alpha}",
        "LoRA dropout": lora.dropout,
        "max length": study.max_length,
        "teacher seed": study.teacher_seed,
        "teacher states": study.teacher_states,
        "MC samples K": study.uncertainty.samples,
        "MC dropout": study.uncertainty.dropout,
        "mask": f"one a {study.uncertainty.mask}",
        "bootstrap resamples": study.evaluation.bootstrap,
    }
    arms = []
    for name, ablation in ablations.items():
        distil = next((o.distill for o in (ablation.selected, ablation.rest) if o.distill), None)
        arms.append(
            [
                name,
                ablation.select.by,
                f"{ablation.select.keep} {ablation.select.quantile:g}",
                "static" if ablation.select.scope == "dataset" else "dynamic" if ablation.select.by != "all" else "—",
                ablation.selected.kind,
                "—" if ablation.select.by == "all" else ablation.rest.kind,
                "—"
                if distil is None
                else f"{distil.teacher}, {distil.divergence}, T={distil.temperature:g}, weight {distil.weight:g}",
                str(ablation.seed),
            ]
        )
    return (
        html.paragraph(
            "The paper leaves these open; they are this study's choice. The loss is the sum over response "
            "tokens of the selected ones' cross-entropy and the others' weighted divergence, divided by the "
            "response tokens of the optimiser batch."
        )
        + html.settings(values)
        + html.table(["ablation", "select by", "keep", "selection", "selected", "rest", "distillation", "seed"], arms)
    )


if __name__ == "__main__":
    runner.main(run)
