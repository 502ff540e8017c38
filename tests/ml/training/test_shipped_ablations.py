"""Every shipped ablation against plain PyTorch: the selected set and the loss of an optimiser batch."""

from math import ceil, log

import numpy as np
import polars as pl
import pytest
import torch

from tests.support.first_batch import FirstBatch, full_logits
from tests.support.paths import ROOT
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_peft
from tests.support.tiny_truth import truth_of
from tokenuq_ml.config import TrainSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.data.batching import collate
from tokenuq_ml.data.token_categories import CATEGORIES
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.teacher import OnlineTeacher
from tokenuq_ml.training.token_columns import TokenColumns
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow

ABLATIONS = load_config(ROOT / "config").ablations
STEPS = 3
ROWS = examples(8 * STEPS, seed=4)
TRUTH = truth_of(ROWS)
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def teacher_and_tables(tmp_path_factory):
    """A teacher's adapter on disk, and tables with its losses and random base losses, uncertainties and categories."""
    folder = tmp_path_factory.mktemp("teacher")
    teacher = tiny_peft(seed=5)
    teacher.save_pretrained(folder)
    draw, frames = np.random.default_rng(3), []
    for row in ROWS:
        batch = collate([row])
        with torch.no_grad():
            logp = full_logits(teacher, batch).log_softmax(-1)
        count = len(row.positions)
        frames.append(
            pl.DataFrame(
                {
                    "example_id": [row.example_id] * count,
                    "position": pl.Series(row.positions, dtype=pl.Int32),
                    "loss": -logp.gather(1, batch.label_N[:, None])[:, 0].numpy(),
                    "base_loss": draw.exponential(size=count).astype(np.float32),
                    "entropy": -(logp.exp() * logp).sum(1).numpy(),
                    "category": draw.choice(CATEGORIES, count).tolist(),
                    "bald": draw.random(count, dtype=np.float32),
                    "change": draw.random(count, dtype=np.float32),
                    "bald_adapter_ensemble": draw.random(count, dtype=np.float32),
                    "expected_entropy": draw.random(count, dtype=np.float32),
                    "mc_loss": draw.exponential(5, size=count).astype(np.float32),
                    "true_kl": draw.exponential(size=count),
                    "true_entropy": draw.exponential(size=count),
                }
            )
        )
    table = pl.concat(frames)
    names = ("token_losses", "token_uncertainty", "teacher_change", "uncertainty_estimates", "true_divergence")
    return folder, {name: table for name in (*names, "token_truth")}


def run(ablation, teacher_and_tables, tmp_path, batch_size=8, micro=8):
    folder, tables = teacher_and_tables
    spec = TrainSpec(
        epochs=1, batch_size=batch_size, micro_batch_size=micro, learning_rate=1e-3, lora=LORA, warmup_ratio=0.0
    )
    model = attach_adapter(tiny_peft(seed=2), folder, "teacher")
    setup = TrainingSetup(ROWS, spec, ablation, ablation.seed, FLOAT32, OnlineTeacher("teacher", FLOAT32))
    if ablation.columns_read:
        setup.columns = TokenColumns(ablation.columns_read, tables, ROWS)
    if ablation.student_columns_read:
        setup.truth = TokenTruth(TRUTH)
    growth = ablation.rank_growth
    if growth is not None:
        ablation = ablation.model_copy(update={"rank_growth": growth.model_copy(update={"start": 4})})
        setup.ablation = ablation
    return train(model, setup, tmp_path, RecordingReporter(), "x")


ALL = lambda w: torch.ones(len(w.loss), dtype=torch.bool)  # noqa: E731
MASKS = {
    "mle": ALL,
    "distill_all": ALL,
    "dft": ALL,
    "eaft": ALL,
    **{
        f"{name}_top{q}": (lambda w, q=q: w.top(w.loss, q / 100))
        for name in ("paper", "masked_mle")
        for q in (10, 25, 50, 75)
    },
    # As many more steps change no step.
    "masked_mle_top25_equal_tokens": lambda w: w.top(w.loss, 0.25),
    "masked_mle_bottom25": lambda w: w.top(w.loss, 0.25, largest=False),
    "document_top25": lambda w: w.documents(0.25),
    "bald_top25": lambda w: w.top(w.table["bald"], 0.25),
    "entropy_top25": lambda w: w.top(w.table["entropy"], 0.25),
    "aleatoric_top25": lambda w: w.top(w.table["expected_entropy"], 0.25),
    "global_top25": lambda w: w.dataset_top(0.25),
    "excess_top60": lambda w: w.top(w.loss - w.table["loss"], 0.6),
    "stm": lambda w: w.table["base_loss"] <= log(2.5),
    "complexity_curriculum": lambda w: torch.tensor(
        [c in ("special", "whitespace", "punctuation") for c in w.category]
    ),
    "quantile_anneal": lambda w: w.top(w.loss, 0.75),
    "quantile_adaptive": lambda w: w.loss > w.everything["loss"].mean(),
    "rank_growth": lambda w: w.top(w.loss, 0.25),
    "profit": lambda w: torch.exp(-w.loss) > 0.1,
    "token_cleaning": lambda w: w.dataset_top(0.6, "influence"),
    "forgetting": lambda w: w.dataset_top(0.6, "influence"),
    "sstoken_loss": lambda w: w.top(w.table["base_loss"] - w.loss, 0.6),
    "tip_entropy50": lambda w: w.top(w.entropy(), 0.5),
    "tip_divergence10": lambda w: w.top(w.kl, 0.1),
    "tip_either50": lambda w: w.top(either(w.entropy(), w.kl), 0.5),
    "student_entropy_top25": lambda w: w.top(w.entropy(), 0.25),
    "divergence_top25": lambda w: w.top(w.kl, 0.25),
    "anchored_top25": lambda w: w.top(w.loss, 0.25),
    "ensemble_bald_top25": lambda w: w.top(w.table["bald_adapter_ensemble"], 0.25),
    "change_top25": lambda w: w.top(w.table["change"], 0.25),
    "change_anchored25": lambda w: w.top(w.table["change"], 0.25),
    "oracle_kl_top25": lambda w: w.top(w.table["true_kl"], 0.25),
    "oracle_kl_student_top25": lambda w: w.top(w.true_kl(), 0.25),
    "oracle_entropy_top25": lambda w: w.top(w.table["true_entropy"], 0.25),
    **dict.fromkeys(
        (
            *("p_power_exponent0p5", "p_power_exponent2", "focal", "talr", "iw_sft"),
            *("asft", "anchored_mle", "distill_top8", "epistemic_share", "label_trust"),
        ),
        ALL,
    ),
}


def either(*scores):
    h, d = ((x - x.min()) / (x.max() - x.min()) for x in scores)
    return h + d - h * d


def talr(w):
    temperature = w.example_means(w.loss)[1].sort().values[3]  # the lower median of 8
    return (torch.exp(-w.loss / temperature)).clamp(min=0.01) * w.loss


def top8_kl(w):
    q = w.teacher.exp() * torch.zeros_like(w.teacher).scatter(1, w.teacher.topk(8, 1).indices, 1.0)
    q = q / q.sum(1, keepdim=True)
    return (torch.xlogy(q, q) - q * w.logits.log_softmax(-1)).sum(1)


def epistemic_share(w):
    b, a = w.table["bald"], w.table["expected_entropy"]
    share = b / (b + a * b.sum() / a.sum())
    return share * w.loss + (1 - share) * w.kl


def label_trust(w):
    q = torch.exp(-w.table["mc_loss"])
    return q / (q + 0.002) * w.loss + 0.002 / (q + 0.002) * w.kl


LOSSES = {
    "p_power_exponent0p5": lambda w: torch.exp(-0.5 * w.loss) * w.loss,
    "p_power_exponent2": lambda w: torch.exp(-2 * w.loss) * w.loss,
    "focal": lambda w: (1 - torch.exp(-w.loss)) ** 2 * w.loss,
    "talr": talr,
    "iw_sft": lambda w: torch.exp(w.example_means(w.table["base_loss"] - w.loss)[0]).clamp(max=16) * w.loss,
    "asft": lambda w: torch.exp(-w.loss) * w.loss + 0.1 * w.kl,
    "anchored_mle": lambda w: w.loss + 0.1 * w.kl,
    "distill_top8": top8_kl,
    "epistemic_share": epistemic_share,
    "label_trust": label_trust,
    **{name: (lambda w, name=name: MASKS[name](w) * w.kl) for name in MASKS if name.startswith("tip_")},
}
"""The loss of each token, of ablations that do more than to train the selected tokens and to distil the rest."""
FACTORS = {"dft": lambda w: torch.exp(-w.loss), "eaft": lambda w: w.top20_entropy() / 3}
DISTILS = (
    {"distill_all"}
    | {
        name
        for name in MASKS
        if name.startswith("paper")
        or name.split("_")[0] in ("bald", "ensemble", "entropy", "aleatoric", "global", "quantile", "rank", "oracle")
    }
    | {"student_entropy_top25", "divergence_top25", "anchored_top25", "change_top25", "change_anchored25"}
)
RANDOM = ("random25", "fixed_random25")
IN_HEAVY = [
    *(name for name in MASKS if name.startswith(("paper", "masked_mle")) and not name.endswith("25")),
    *("p_power_exponent0p5", "p_power_exponent2", "focal", "iw_sft", "anchored_mle", "epistemic_share"),
    *("profit", "token_cleaning", "sstoken_loss", "tip_entropy50", "tip_divergence10", "distill_top8"),
    *("student_entropy_top25", "divergence_top25", "anchored_top25", "change_anchored25"),
    *("ensemble_bald_top25", "oracle_kl_top25", "oracle_entropy_top25"),
]
"""What differs from another ablation by a number or a name, which tests of scores and weights cover."""


def objective(name, w, mask):
    if name in LOSSES:
        return LOSSES[name](w).mean()
    trained = FACTORS.get(name, lambda w: 1.0)(w) * w.loss
    if name == "distill_all":
        return w.kl.mean()
    return torch.where(mask, trained, w.kl if name in DISTILS else torch.zeros(())).sum() / len(mask)


def test_every_shipped_ablation_is_tested():
    assert {a.family for a in ABLATIONS.values()} == {*MASKS, *RANDOM}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy) if name in IN_HEAVY else name for name in MASKS]
)
def test_selected_set_and_loss_equal_plain_pytorch(name, teacher_and_tables, tmp_path):
    recorder = run(ABLATIONS[name], teacher_and_tables, tmp_path)
    w = FirstBatch(recorder, *teacher_and_tables, ROWS, TRUTH)
    mask = MASKS[name](w)
    assert 0 < mask.sum() and torch.equal(w.selected, mask)
    assert recorder.log_rows[0]["loss"] == pytest.approx(objective(name, w, mask).item(), rel=1e-4)
    # Every token's loss is recorded, trained or not.
    assert w.recorded == pytest.approx(w.loss.tolist(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_random_controls_select_as_many_tokens_as_the_paper(name, teacher_and_tables, tmp_path):
    recorder = run(ABLATIONS[name], teacher_and_tables, tmp_path / "a")
    w = FirstBatch(recorder, *teacher_and_tables, ROWS, TRUTH)
    assert w.selected.sum() == ceil(0.25 * len(w.loss))
    assert recorder.log_rows[0]["loss"] == pytest.approx(objective(name, w, w.selected).item(), rel=1e-4)
    # The same seed selects the same tokens, another seed others.
    again, other = (
        FirstBatch(
            run(ABLATIONS[name].model_copy(update={"seed": seed}), teacher_and_tables, tmp_path / str(seed)),
            *teacher_and_tables,
            ROWS,
            TRUTH,
        )
        for seed in (0, 1)
    )
    assert torch.equal(again.selected, w.selected)
    assert other.example != w.example or not torch.equal(other.selected, w.selected)


@pytest.mark.parametrize(
    "name", ["paper_top25", "document_top25", "bald_top25", "random25", "quantile_adaptive", "dft", "talr"]
)
def test_the_micro_batch_size_does_not_change_the_selection_and_the_loss(name, teacher_and_tables, tmp_path):
    """There is one selection over the optimiser batch, whatever its score and its unit."""
    whole = run(ABLATIONS[name], teacher_and_tables, tmp_path / "a")
    split = run(ABLATIONS[name], teacher_and_tables, tmp_path / "b", micro=2)
    same = lambda recorder: recorder.selections().filter(pl.col("step") == 1).sort("example_id", "position")  # noqa: E731
    assert same(whole)["selected"].to_list() == same(split)["selected"].to_list()
    assert split.log_rows[0]["loss"] == pytest.approx(whole.log_rows[0]["loss"], rel=1e-6)
    # A pass only to select is made if the student's losses decide, and not otherwise.
    assert split.costs.selection_passes == (1 if ABLATIONS[name].needs_student_losses else 0)


def test_ablations_with_the_same_seed_see_the_same_data_in_the_same_order(teacher_and_tables, tmp_path):
    """Only the objective differs: each step has the same tokens and examples."""
    runs = [
        run(ABLATIONS[name], teacher_and_tables, tmp_path / name).selections()
        for name in ("mle", "paper_top25", "random25")
    ]
    keys = ["step", "example_id", "position"]
    assert runs[0].select(keys).rows() == runs[1].select(keys).rows() == runs[2].select(keys).rows()
    counts = [r.group_by("step").agg(pl.col("selected").sum()).sort("step")["selected"].to_list() for r in runs[1:]]
    assert counts[0] == counts[1] and len(counts[0]) == STEPS


def test_a_schedule_moves_from_its_start_to_its_end(teacher_and_tables, tmp_path):
    annealed = run(ABLATIONS["quantile_anneal"], teacher_and_tables, tmp_path / "a").log_rows
    assert [round(row["selected_share"], 1) for row in annealed] == pytest.approx([0.8, 0.5, 0.3], abs=0.06)
    _, tables = teacher_and_tables
    rows = run(ABLATIONS["complexity_curriculum"], teacher_and_tables, tmp_path / "b").selections()
    rows = rows.join(tables["token_losses"].select("example_id", "position", "category"), on=["example_id", "position"])
    seen = [set(rows.filter(pl.col("step") == step, "selected")["category"]) for step in (1, 2, 3)]
    structure = {"special", "whitespace", "punctuation"}
    assert seen == [structure, structure | {"word", "subword"}, set(CATEGORIES)]
