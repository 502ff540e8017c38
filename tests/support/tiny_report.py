"""The report of a toy study of four ablations, built by the real stage from tiny tables."""

from tests.support import tiny_tables
from tests.support.reporter import RecordingReporter
from tokenuq_ml.config import AblationSpec, EvaluationSpec, StudySpec
from tokenuq_ml.scoring.correlations import correlation_table
from tokenuq_ml.stages import report
from tokenuq_ml.stages.correlate import joined_tokens
from tokenuq_ml.stages.request import AssetRequest, StageRequest

ABLATIONS = {
    "mle": AblationSpec(name="mle", select="all"),
    "mle_s1": AblationSpec(name="mle_s1", select="all", seed=1),
    "paper_top25": AblationSpec(name="paper_top25", select={"by": "loss", "quantile": 0.25}, rest="distill"),
    "paper_top50": AblationSpec(name="paper_top50", select={"by": "loss", "quantile": 0.5}, rest="distill"),
}
LOSSES = {"mle": 1.5, "mle_s1": 1.6, "paper_top25": 1.5, "paper_top50": 1.2}


def report_study(ablations) -> StudySpec:
    return StudySpec(name="toy", model="tiny", dataset="toy", ood=("far",), ablations=tuple(ablations))


def build_report(folder, ablations=ABLATIONS, **changed):
    """Run the report stage on tiny tables, some of them `changed`; return its result and the folder of the report."""
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    frames = {
        "token_losses": losses,
        "token_uncertainty": uncertainty,
        "bald_reference": tiny_tables.bald_reference(uncertainty),
        "uncertainty_analysis": correlation_table(joined_tokens(losses, uncertainty), EvaluationSpec(bootstrap=50)),
        "token_alternatives": tiny_tables.alternatives(losses),
        "examples/toy": tiny_tables.examples_table(),
        "examples/far": tiny_tables.examples_table().filter(split="test"),
        "training_log/teacher": tiny_tables.training_log(),
    }
    for name, loss in {"base": 3.0, "teacher": 2.0, **{name: LOSSES.get(name, 1.5) for name in ablations}}.items():
        frames[f"evaluations/{name}"] = tiny_tables.evaluations(loss, 0.3)
        frames[f"evaluation_examples/{name}"] = tiny_tables.evaluation_examples(loss)
    for name in ablations:
        frames[f"training_log/{name}"] = tiny_tables.training_log()
        frames[f"selections/{name}"] = tiny_tables.selections(0.25)
        frames[f"evaluation_tokens/{name}"] = tiny_tables.evaluation_tokens(losses, 0.1)
        frames[f"curriculum/{name}"] = tiny_tables.curriculum()
        frames[f"curriculum_uncertainty/{name}"] = tiny_tables.curriculum_uncertainty()
    out = folder / "report"
    out.mkdir(parents=True)
    fields = {
        "study": report_study(ablations).fields(),
        "ablations": {name: spec.fields() for name, spec in ablations.items()},
    }
    request = StageRequest(
        entrypoint="report",
        study="toy",
        assets={"ablation_report": AssetRequest(fields=fields, code_version="1-x", outputs={"report": str(out)})},
        inputs=tiny_tables.publish(folder / "store", frames | changed)
        | tiny_tables.publish_costs(folder / "costs", ablations),
        work_dir=str(folder / "work"),
    )
    reporter = RecordingReporter()
    report.run(request, reporter)
    (result,) = reporter.results
    return result, out
