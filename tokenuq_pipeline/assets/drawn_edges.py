"""Which of its inputs an asset is drawn from: those that do not arrive through a nearer input.

A stage reads the model and the tokenised dataset almost everywhere, so a graph of all that is read is a tangle. An edge
is left out where another input of the same asset has a data version that follows: whatever changes in the far input, as
far as the asset can see it, changes the near one too. Column lineage, manifests, and what is stale
(`automation/staleness.py`) are about everything that is read, so a leak in one of these arguments makes the picture in
the UI late, and nothing wrong.

- **Through `baseline_teacher`.** Its adapter is trained from the weights of the model, on every token of every train
  example, for at least one epoch. Other weights give another adapter, so the model is not drawn to what scores the
  teacher, and neither the model nor the tokenised dataset to a student that distils from it. The tokenised dataset is
  drawn to what scores the teacher, which reads the other splits too.
- **Through `teacher_hidden`.** Its data version hashes the teacher's states, and the content of the tokenised dataset.
  If there is no room for states, it hashes the adapter. So a student that reads it is not drawn from the model, the
  tokenised dataset or the teacher.
- **Through `token_losses`, `token_uncertainty`, `teacher_change` and `uncertainty_estimates`.** They hold a row per
  response token of every split: its id, and its loss under teacher and base model, or BALD, or their divergence. Other
  weights or tokens, of the prompt too, give other numbers. The factors of train tokens reach them through the teacher
  that is trained with them.
- **Through `true_divergence`.** It holds the divergence of teacher and base model from the truth of every token, which
  reaches the analysis of a synthetic language with it.
- **Through `uncertainty_analysis`.** It correlates the losses, entropies and BALD of all tokens, so it changes with the
  two token tables, and with the teacher and the tokens that are behind them.
- **Through `ablation_report`.** Its data version hashes the content of every table that it reads, so a comparison of
  studies that reads the report too is drawn from it alone.
- **Through `reference_evaluation`** and **`evaluation`.** They measure the teacher and the student on every held-out
  token, so they change with the adapter, and so with the training that its log and selections record. What a student
  cost is a timing, and part of no data version.

  An export reads them for its model card, so it is not drawn from the model or the tokenised dataset.

What is drawn although it may look redundant: the student to its export, which holds its weights; the datasets to the
report, which shows prompts as they were written and not as they were cut; `token_losses` to the evaluation of a student
that was selected by it, because other losses may select the same tokens; the model and the tokenised dataset to a
student that reads nothing of the teacher.

The one change of a model that these arguments miss: of the part of its chat template, or of its generation config, that
only generated answers see. Evaluations record the model that they were made with, so `tokenuq status` and every run
find it; Dagster's own mark appears once the next run has begun. So does that of other true probabilities
(`token_truth`) of the same tokens, for what is drawn from the tokenised dataset through another asset.
"""

from collections.abc import Iterable

from tokenuq_pipeline.assets.inputs import AssetPath, Input

_TOKEN_TABLES = ("token_losses", "token_uncertainty", "teacher_change", "uncertainty_estimates")
_TEACHER = ("teacher_hidden", "baseline_teacher")
_EVALUATIONS = ("evaluation", "reference_evaluation")

ARRIVES_THROUGH: dict[str, dict[str, tuple[str, ...]]] = {
    **{
        stage: {"models": ("baseline_teacher",)}
        for stage in ("token_losses", "teacher_hidden", "token_uncertainty", "reference_evaluation")
    },
    "student": {
        "models": (*_TOKEN_TABLES, *_TEACHER),
        "tokenized_dataset": (*_TOKEN_TABLES, *_TEACHER),
        "baseline_teacher": ("teacher_hidden",),
    },
    "true_divergence": {"models": ("baseline_teacher",)},
    "teacher_change": {"models": ("baseline_teacher",)},
    "uncertainty_estimates": {"models": ("baseline_teacher",)},
    "uncertainty_analysis": {"tokenized_dataset": ("true_divergence",)},
    "evaluation": {"models": ("token_losses",), "tokenized_dataset": ("token_losses",)},
    "curriculum": {"models": ("token_losses",), "tokenized_dataset": ("token_losses",)},
    "ablation_report": {
        "models": ("uncertainty_analysis",),
        "tokenized_dataset": ("uncertainty_analysis",),
        "token_losses": ("uncertainty_analysis",),
        "token_uncertainty": ("uncertainty_analysis",),
        "baseline_teacher": ("reference_evaluation",),
        "student": ("evaluation",),
    },
    "comparisons": {"evaluation": ("ablation_report",)},
    "export": {
        "models": _EVALUATIONS,
        "tokenized_dataset": _EVALUATIONS,
    },
}
"""Stage -> a kind of input -> the kinds of input that it arrives through; one of them suffices."""


def drawn(stage: str, inputs: Iterable[Input]) -> tuple[AssetPath, ...]:
    """Return the assets of `inputs` from which an edge is drawn, in order.

    Args:
        stage: the stage that reads the inputs.
        inputs: everything that it reads.
    """
    reads = tuple(dict.fromkeys(item.asset for item in inputs))
    # A judge's model is not the one that the other inputs were made with.
    judges = {item.asset for item in inputs if item.name in ("judge", "pairwise_judge")} - {
        item.asset for item in inputs if item.name == "model"
    }
    return tuple(path for path in reads if path in judges or not _arrives_through_another(stage, path, reads))


def kind_of(path: AssetPath) -> str:
    """Return the kind of asset that a key names: `models` of `models/tiny`, `student` of `study/top/student`."""
    return path[0] if len(path) == 2 and path[0] in ("models", "datasets") else path[-1]


def _arrives_through_another(stage: str, path: AssetPath, reads: Iterable[AssetPath]) -> bool:
    """Return whether another input carries `path`."""
    kinds = ARRIVES_THROUGH.get(stage, {}).get(kind_of(path), ())
    return any(kind_of(other) in kinds and _may_carry(other, path) for other in reads)


def _may_carry(other: AssetPath, path: AssetPath) -> bool:
    """Return whether `other` is of the same study as `path`, and if both are of an ablation, of the same one."""
    if path[0] in ("models", "datasets"):
        return True
    same = 2 if len(path) == len(other) == 3 else 1
    return path[:same] == other[:same]
