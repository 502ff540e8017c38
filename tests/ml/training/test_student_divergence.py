"""Selection by the student's entropy and its divergence to the teacher, against full logits in plain PyTorch."""

import pytest
import torch

from tests.support.kernels import N, V, full_logits, head_products, plain_divergence, random_inputs
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import examples, tiny_peft
from tests.support.training import setup_with_teacher, training_setup
from tokenuq_ml.config import AblationSpec, SelectSpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.batching import collate
from tokenuq_ml.kernels import head as head_module
from tokenuq_ml.kernels.block_divergence import BlockDivergence
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.kernels.training_loss import TeacherTerm
from tokenuq_ml.training.selection import select
from tokenuq_ml.training.selectors import SELECTORS
from tokenuq_ml.training.tokens import Tokens
from tokenuq_ml.training.trainer import train

EITHER = "entropy_or_divergence"


def ablation(by: str, **entry) -> AblationSpec:
    return AblationSpec(name="a", select={"by": by, "quantile": 0.25}, **{"rest": {"distill": {}}, **entry})


@pytest.mark.parametrize("form, products", [("hidden", 2), ("means", 1)])
@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
@pytest.mark.parametrize("chunk_bytes", [2**26, 4 * 31 * 8])
def test_divergences_of_blocks_equal_those_of_full_logits(form, products, name, chunk_bytes, monkeypatch):
    """In the pass that computes the losses: one product more for the teacher's logits, or none from mean embeddings."""
    if form == "means" and name != "forward_kl":
        pytest.skip("mean embeddings give only forward KL")
    monkeypatch.setattr(head_module, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(head_module, "BLOCK_BYTES", 4 * V * 2)
    head, hidden, labels, teacher = random_inputs()
    states = TeacherStates(teacher) if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    found = torch.empty(N, dtype=torch.float64)
    divergence = BlockDivergence(hidden, head, TeacherTerm(states, name))

    def observe(rows, logits_RV):
        found[rows] = divergence.of(rows, logits_RV)

    assert head_products(monkeypatch, lambda: token_losses(hidden, head, labels, observe)) == pytest.approx(products)
    torch.testing.assert_close(
        found, plain_divergence(name, full_logits(head, hidden), full_logits(head, teacher), 1.0)
    )


def plain_scores(model, row):
    """Entropy and forward KL to the model without its adapter, of a row's response tokens."""
    at = [position - 1 for position in row.positions]
    with torch.no_grad():
        logp = model(input_ids=collate([row]).input_ids_BT).logits[0, at].log_softmax(-1)
        with model.disable_adapter():
            logq = model(input_ids=collate([row]).input_ids_BT).logits[0, at].log_softmax(-1)
    return {"student_entropy": -(logp.exp() * logp).sum(1), "divergence": (logq.exp() * (logq - logp)).sum(1)}


@pytest.mark.parametrize(
    "by", [*(pytest.param(one, marks=pytest.mark.heavy) for one in ("student_entropy", "divergence")), EITHER]
)
def test_the_highest_scores_at_the_first_step_are_selected(by, tmp_path):
    rows = {row.example_id: row for row in examples(11)}
    whole, parts = (
        train(tiny_peft(), training_setup(ablation(by), micro), tmp_path / str(micro), RecordingReporter(), "x")
        for micro in (4, 1)
    )
    keys = ["step", "example_id", "position", "selected"]
    assert whole.selections().select(keys).equals(parts.selections().select(keys))
    assert parts.costs.selection_passes == 1 and whole.costs.selection_passes == 0
    first, model, scores = whole.selections().filter(step=1), tiny_peft(), []
    for name in first["example_id"].unique(maintain_order=True):
        found = plain_scores(model, rows[name])
        pairs = zip(found["student_entropy"].tolist(), found["divergence"].tolist(), strict=True)
        scores += [(h, d, name, at) for (h, d), at in zip(pairs, rows[name].positions, strict=True)]
    entropies, divergences = ([row[column] for row in scores] for column in (0, 1))
    unit = lambda x, all_of_them: (x - min(all_of_them)) / (max(all_of_them) - min(all_of_them))  # noqa: E731
    either = lambda h, d: h + d - h * d  # noqa: E731
    score = {
        "student_entropy": lambda h, d: h,
        "divergence": lambda h, d: d,
        "entropy_or_divergence": lambda h, d: either(unit(h, entropies), unit(d, divergences)),
    }[by]
    ranked = sorted(((score(h, d), name, at) for h, d, name, at in scores), reverse=True)
    expected = ranked[: count_selected(0.25, len(first))]
    selected = first.filter("selected").select("example_id", "position").rows()
    assert sorted(selected) == sorted((name, at) for _, name, at in expected)


@pytest.mark.parametrize("form", [pytest.param("hidden_states", marks=pytest.mark.heavy), "mean_embeddings"])
def test_the_stored_teacher_gives_the_same_selection(form, tmp_path):
    tiny_peft(seed=3).save_pretrained(tmp_path)
    selections = []
    for states in ("online", "cached"):
        student, setup = setup_with_teacher(tmp_path, states, form=form)
        setup.ablation = ablation("divergence")
        recorder = train(student, setup, tmp_path / states, RecordingReporter(), "x")
        selections.append(recorder.selections().filter(step=1).select("example_id", "position", "selected"))
    assert selections[0].equals(selections[1])


def test_the_teachers_forward_pass_is_made_once_per_micro_batch(tmp_path, monkeypatch):
    setup = training_setup(ablation("divergence"), micro=2, count=4, epochs=1)
    calls, states = [], setup.teacher.states
    monkeypatch.setattr(setup.teacher, "states", lambda *args: calls.append(1) or states(*args))
    train(tiny_peft(), setup, tmp_path, RecordingReporter(), "x")
    assert len(calls) == 2


@pytest.mark.slow
def test_a_users_selector_may_read_the_students_columns(tmp_path, monkeypatch):
    (tmp_path / "unsure.py").write_text("def score(tokens):\n    return tokens.column('student_entropy')\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = {"select": {"by": "unsure:score", "quantile": 0.25}, "columns": ["student_entropy"]}
    own = AblationSpec(name="a", rest={"distill": {}}, **entry)
    found = [
        train(tiny_peft(), training_setup(one, epochs=1), tmp_path / one.select.by, RecordingReporter(), "x")
        for one in (own, ablation("student_entropy"))
    ]
    assert found[0].selections()["selected"].equals(found[1].selections()["selected"])


COLUMNS = {"base_loss": torch.tensor([3.0, 1.0, 2.0]), "teacher_loss": torch.tensor([1.0, 0.9, 1.9])}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("influence", [2.0, 0.1, 0.1]),
        ("retrospective_loss", [2.5, -1.0, 1.75]),
        ("probability", [0.6065, 0.1353, 0.7788]),
    ],
)
def test_scores_of_losses_by_hand(by, expected):
    tokens = Tokens(torch.tensor([0.5, 2.0, 0.25]), torch.zeros(3).long(), columns=COLUMNS)
    torch.testing.assert_close(SELECTORS[by](tokens), torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_profit_keeps_tokens_above_a_probability():
    tokens = Tokens(torch.tensor([0.5, 3.0, 0.25]), torch.zeros(3).long())
    assert select(SelectSpec(by="probability", keep="above", threshold=0.1), tokens).tolist() == [True, False, True]


def test_of_equal_entropies_the_divergence_decides():
    same = torch.zeros(3, dtype=torch.float64)
    columns = {"student_entropy": same, "student_divergence": torch.tensor([0.0, 2.0, 1.0]).double()}
    tokens = Tokens(torch.zeros(3), torch.zeros(3).long(), columns=columns)
    assert SELECTORS["entropy_or_divergence"](tokens).tolist() == [0.0, 1.0, 0.5]
