"""The column lineage that the UI draws between assets.

The table is written by hand; a test compares it with the schemas and the graph.
"""

import dagster as dg

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.config.registry import COLUMNS
from tokenuq_ml.tables.estimate_schemas import BALD_COLUMNS
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.asset import StageAsset

TOKENS = (("tokenized_dataset", "input_ids"), ("tokenized_dataset", "response_mask"))
KEYS = {
    "example_id": (("tokenized_dataset", "example_id"),),
    "dataset": (("tokenized_dataset", "dataset"),),
    "split": (("tokenized_dataset", "split"),),
    "position": (("tokenized_dataset", "response_mask"),),
}
_VALUES = (*TOKENS, ("token_losses", "loss"), ("token_losses", "entropy"))
_CORRELATED = (
    ("token_losses", "loss"),
    ("token_losses", "entropy"),
    ("token_uncertainty", "predictive_entropy"),
    ("token_uncertainty", "expected_entropy"),
    ("token_uncertainty", "bald"),
)

_ROOTS = ("datasets", "curation", "files")
"""First parts of keys that name a kind of asset; other keys end in their stage."""
_CONVERSATION = tuple(("datasets", column) for column in ("messages", "turns", "template"))
_REVIEWED = {"example_id": "keep", "turn_weights": "weight", "untrained_spans": "mask"}
"""Column of the table `examples` -> the column of a reviewed file that decides it."""

SOURCES: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    # Of datasets that are made from others: mixed, or curated.
    "datasets": {
        column: (("datasets", column), *((("curation", _REVIEWED[column]),) if column in _REVIEWED else ()))
        for column in TABLES["examples"].columns
    },
    "tokenized_dataset": {
        "example_id": (("datasets", "example_id"),),
        "dataset": (("datasets", "example_id"),),
        "split": (("datasets", "split"),),
        "input_ids": _CONVERSATION,
        "response_mask": (*_CONVERSATION, ("datasets", "turn_weights"), ("datasets", "untrained_spans")),
        "token_weight": (("datasets", "turn_weights"), ("datasets", "untrained_spans")),
    },
    "baseline_teacher": {column: TOKENS for column in ("loss", "mle_loss", "tokens")},
    "candidate_teacher": {"example_id": KEYS["example_id"], "loss": TOKENS, "tokens": TOKENS[1:]},
    "teacher_sweep": {
        **{column: (("candidate_teacher", "loss"),) for column in ("loss", "ci_low", "ci_high", "chosen")},
        "n": (("candidate_teacher", "example_id"),),
    },
    "token_losses": {
        **KEYS,
        **{column: TOKENS[:1] for column in ("token_id", "token", "category")},
        **{column: TOKENS for column in ("loss", "entropy", "rank", "base_loss", "base_entropy")},
    },
    "token_uncertainty": {
        **{column: KEYS[column] for column in ("example_id", "position")},
        **{
            column: TOKENS for column in ("predictive_entropy", "expected_entropy", "bald", "bald_std_error", "mc_loss")
        },
    },
    "ensemble_teacher": {column: TOKENS for column in ("loss", "mle_loss", "tokens")},
    "uncertainty_estimates": {
        **{column: KEYS[column] for column in ("example_id", "position")},
        **{column: TOKENS for column in BALD_COLUMNS},
    },
    "teacher_change": {
        **{column: KEYS[column] for column in ("example_id", "position")},
        "change": TOKENS,
    },
    "true_divergence": {
        **{column: KEYS[column] for column in ("example_id", "position")},
        **{column: TOKENS for column in ("true_kl", "clean_kl", "base_true_kl", "base_clean_kl")},
    },
    "reference_evaluation": {
        **{column: KEYS[column] for column in ("dataset", "split")},
        **{column: _VALUES for column in ("value", "ci_low", "ci_high")},
        "n": KEYS["example_id"],
    },
    "uncertainty_analysis": {
        "split": (("token_losses", "split"),),
        "category": (("token_losses", "category"),),
        **{column: _CORRELATED for column in ("value", "ci_low", "ci_high")},
        "n": (("token_losses", "position"),),
    },
    "student": {column: TOKENS for column in ("loss", "mle_loss", "distill_loss", "selected_share", "tokens")},
    "evaluation": {
        **{column: KEYS[column] for column in ("dataset", "split")},
        **{column: _VALUES for column in ("value", "ci_low", "ci_high")},
        "n": KEYS["example_id"],
    },
    "curriculum": {
        "step": (("student", "step"),),
        "epoch": (("student", "epoch"),),
        "category": (("token_losses", "category"),),
        "n_tokens": (("student", "tokens"),),
        "n_selected": (("student", "selected_share"),),
        "mean_loss": (("student", "loss"),),
    },
}
"""Stage -> column of its main table -> the (stage, column) pairs that it is computed from."""


def column_lineage(asset: StageAsset) -> dg.TableColumnLineage | None:
    """Return the lineage of an asset's main table from what its stage reads; None if it has no input with columns."""
    above: dict[str, list[dg.AssetKey]] = {}
    for dep in (*asset.reads, *asset.observed):
        above.setdefault(dep[0] if dep[0] in _ROOTS else dep[-1], []).append(dg.AssetKey(dep))
    sources = SOURCES.get(asset.stage, {})
    if asset.stage == "student":
        read = tuple(COLUMNS[name] for name in AblationSpec(**asset.fields["ablation"]).columns_read)
        sources = {**sources, "selected_share": (*sources["selected_share"], *read)}
    deps = {
        column: [dg.TableColumnDep(key, name) for stage, name in origins for key in above.get(stage, ())]
        for column, origins in sources.items()
    }
    deps = {column: found for column, found in deps.items() if found}
    return dg.TableColumnLineage(deps) if deps else None
