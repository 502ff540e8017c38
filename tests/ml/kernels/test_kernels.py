"""The kernels against plain PyTorch with whole logits, in float64 and float32."""

import dataclasses

import pytest
import torch

from tests.support.rules import RuleFromLosses
from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels import head as head_module
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.scores import monte_carlo_scores, token_losses, token_scores
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision, Weights

N, D, V = 13, 8, 31


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    # Products of a few rows in blocks of fewer, neither of which divides N.
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 40 * 4 * V)
    monkeypatch.setattr(head_module, "BLOCK_BYTES", 4 * 4 * V)


def make(dtype=torch.float64, softcap=None, bias=False, scale=1.0, rows=N, magnitude=1.0):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    head = Head(draw(V, D).to(dtype), draw(V).to(dtype) if bias else None, softcap=softcap, scale=scale)
    labels = torch.randint(0, V, (rows,), generator=generator)
    if rows > 1:
        labels[0], labels[1] = 0, V - 1
    return head, (draw(rows, D) * magnitude).to(dtype), labels, draw(rows, D).to(dtype)


def whole_logits(head, hidden):
    logits = hidden @ head.weight_VD.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


HEADS = [{}, {"softcap": 5.0}, {"bias": True}, {"softcap": 3.0, "scale": 0.5, "bias": True}]


@pytest.mark.parametrize("kwargs", HEADS)
def test_scores_equal_plain_pytorch(kwargs):
    head, hidden, labels, _ = make(**kwargs)
    logp = torch.log_softmax(whole_logits(head, hidden), -1)
    scores = token_scores(hidden, head, labels)
    label_logp = logp.gather(1, labels[:, None])
    torch.testing.assert_close(scores.loss_N, -label_logp[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.entropy_N, -(logp.exp() * logp).sum(1), rtol=0, atol=1e-9)
    assert scores.rank_N.tolist() == (logp > label_logp).sum(1).tolist()
    torch.testing.assert_close(token_losses(hidden, head, labels), scores.loss_N, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kwargs", HEADS)
def test_the_likeliest_tokens_equal_plain_pytorch(kwargs):
    head, hidden, labels, _ = make(**kwargs)
    wanted = torch.arange(N) % 5 != 1
    scores = token_scores(hidden, head, labels, 4, wanted)
    expected = torch.softmax(whole_logits(head, hidden), -1)[wanted].topk(4)
    assert scores.choice_MA.equal(expected.indices)
    torch.testing.assert_close(scores.probability_MA, expected.values, rtol=0, atol=1e-9)
    assert scores.loss_N.equal(token_scores(hidden, head, labels).loss_N)
    assert token_scores(hidden, head, labels, 4, wanted & False).choice_MA is None


def test_rank_is_zero_for_the_first_choice():
    head, hidden, _, _ = make()
    first = whole_logits(head, hidden).argmax(1)
    assert token_scores(hidden, head, first).rank_N.eq(0).all()


def plain_divergence(name, logits, teacher, temperature):
    """By the book, in plain PyTorch."""
    logp, logq = (torch.log_softmax(z / temperature, -1) for z in (logits, teacher))
    kl = lambda a, b: torch.nn.functional.kl_div(b, a, log_target=True, reduction="none").sum(-1)  # noqa: E731
    if name == "forward_kl":
        # Trap 9: the full KL, not its cross-entropy form, so that equal distributions give 0.
        return kl(logq, logp)
    if name == "reverse_kl":
        return kl(logp, logq)
    mean = ((logp.exp() + logq.exp()) / 2).log()
    return (kl(logp, mean) + kl(logq, mean)) / 2


def plain_objective(head, hidden, labels, weights, teacher, name="forward_kl", temperature=1.0):
    """`(total, ce_N, divergence_N)` with whole logits."""
    logits = whole_logits(head, hidden)
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    other = plain_divergence(name, logits, whole_logits(head, teacher).detach(), temperature)
    return (weights.mle_N * ce + weights.distill_N * other).sum(), ce.detach(), other.detach()


def decided(weights):
    return BatchDecision.of_weights(*weights)


def train_all(rows):
    return BatchDecision.of_weights(torch.ones(rows), torch.zeros(rows))


def distil_all(rows):
    return BatchDecision.of_weights(torch.zeros(rows), torch.ones(rows))


def some_of_each():
    mle = torch.arange(N) % 3 == 0
    distil = torch.arange(N) % 3 == 1
    return Weights(mle.double(), distil.double() * 0.7)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("kwargs", HEADS)
def test_training_loss_and_gradients_equal_autograd(kwargs, name, temperature, dtype, tolerance):
    """Values, and gradients with respect to hidden states, weight and bias, against float64 with whole logits."""
    head, hidden, labels, teacher = make(**kwargs)
    weights = some_of_each()
    theirs = [hidden.clone().requires_grad_(), head.weight_VD.requires_grad_()]
    if head.bias_V is not None:
        theirs.append(head.bias_V.requires_grad_())
    expected, ce, other = plain_objective(head, theirs[0], labels, weights, teacher, name, temperature)
    (expected * 3).backward()
    ours = [x.detach().to(dtype).requires_grad_() for x in theirs]
    own_head = dataclasses.replace(head, weight_VD=ours[1], bias_V=ours[2] if len(ours) > 2 else None)
    frozen = dataclasses.replace(
        own_head, weight_VD=ours[1].detach(), bias_V=ours[2].detach() if len(ours) > 2 else None
    )
    states = TeacherStates(teacher.to(dtype))
    term = TeacherTerm(states, name, temperature, frozen)
    out = training_loss(ours[0], own_head, labels, decided(weights), teacher=term)
    (out.total * 3).backward()
    close = lambda a, b: torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)  # noqa: E731
    close(out.total, expected)
    close(out.loss_N[weights.mle_N > 0], ce[weights.mle_N > 0])
    close(out.divergence_N[weights.distill_N > 0], other[weights.distill_N > 0])
    for mine, plain in zip(ours, theirs, strict=True):
        assert mine.grad.dtype == dtype
        close(mine.grad, plain.grad)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_gradcheck(name):
    head, hidden, labels, teacher = make(softcap=4.0, bias=True, rows=4)
    weights = Weights(torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64))

    def total(h, weight, bias):
        own = Head(weight, bias, softcap=4.0)
        term = TeacherTerm(TeacherStates(teacher), name, 1.5, head)
        return training_loss(h, own, labels, decided(weights), teacher=term).total

    leaves = hidden.requires_grad_(), head.weight_VD.clone().requires_grad_(), head.bias_V.clone().requires_grad_()
    assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_divergence_to_itself_is_zero(name):
    head, hidden, labels, _ = make()
    weights = Weights(torch.zeros(N), torch.ones(N))
    term = TeacherTerm(TeacherStates(hidden.detach()), name)
    out = training_loss(hidden.requires_grad_(), head, labels, decided(weights), teacher=term)
    out.total.backward()
    assert out.divergence_N.abs().max() < 1e-12 and hidden.grad.abs().max() < 1e-12


class TestMeanEmbeddings:
    """Forward KL as the Bregman divergence of log-sum-exp: two head products a token, the same numbers."""

    LINEAR = [kwargs for kwargs in HEADS if "softcap" not in kwargs] + [{"scale": 0.5, "bias": True}]

    @pytest.mark.parametrize("kwargs", LINEAR)
    def test_are_the_gradient_of_log_sum_exp(self, kwargs):
        head, hidden, labels, _ = make(**kwargs)
        hidden.requires_grad_()
        lse = whole_logits(head, hidden).logsumexp(-1)
        lse.sum().backward()
        means = mean_embeddings(hidden.detach(), head, labels)
        torch.testing.assert_close(means.lse_N, lse.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(means.mean_ND, hidden.grad, rtol=0, atol=1e-9)
        expected = torch.nn.functional.cross_entropy(whole_logits(head, hidden), labels, reduction="none")
        torch.testing.assert_close(means.loss_N, expected.detach(), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("known", [True, False], ids=["weights known", "weights from losses"])
    @pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
    @pytest.mark.parametrize("kwargs", LINEAR)
    def test_give_the_loss_and_gradient_of_hidden_states(self, kwargs, dtype, tolerance, known):
        head, hidden, labels, teacher = make(**kwargs)
        weights = some_of_each()
        theirs = hidden.clone().requires_grad_()
        expected, ce, other = plain_objective(head, theirs, labels, weights, teacher)
        expected.backward()
        bias = None if head.bias_V is None else head.bias_V.to(dtype)
        own = dataclasses.replace(head, weight_VD=head.weight_VD.to(dtype), bias_V=bias)
        ours, seen = hidden.to(dtype).requires_grad_(), []
        states = mean_embeddings(teacher.to(dtype), own).states(teacher.to(dtype))
        rule = RuleFromLosses(lambda loss_N: seen.append(loss_N.clone()) or decided(weights))
        out = training_loss(ours, own, labels, decided(weights) if known else rule, teacher=TeacherTerm(states))
        out.total.backward()
        close = lambda a, b: torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)  # noqa: E731
        close(out.total, expected)
        close(out.divergence_N[weights.distill_N > 0], other[weights.distill_N > 0])
        close(ours.grad, theirs.grad)
        if not known:
            close(seen[0], ce)
            close(out.loss_N, ce)

    def test_a_student_like_its_teacher_has_no_gradient_in_bfloat16_either(self):
        """What is cached was rounded as the student's own is, so that nothing of it remains."""
        head, hidden, labels, _ = make(dtype=torch.bfloat16)
        states = mean_embeddings(hidden, head).states(hidden)
        hidden.requires_grad_()
        out = training_loss(hidden, head, labels, distil_all(N), teacher=TeacherTerm(states))
        out.total.backward()
        assert out.divergence_N.abs().max() < 1e-5 and hidden.grad.abs().max() == 0

    def test_in_bfloat16_the_mean_is_right_and_gradients_are_those_of_hidden_states(self):
        """A small divergence beneath large logits, whose rounding is far above it token by token."""
        rows = 400
        head, hidden, labels, _ = make(rows=rows, magnitude=3.0)
        head = Head(head.weight_VD.bfloat16())
        teacher = hidden.bfloat16()
        student = (hidden + 0.1 * torch.randn(rows, D, generator=torch.Generator().manual_seed(1))).bfloat16()
        outcomes = {}
        means = mean_embeddings(teacher, head).states(teacher)
        exact_head = Head(head.weight_VD.double())
        for name, own, states in (
            ("exact", exact_head, TeacherStates(teacher.double())),
            ("hidden", head, TeacherStates(teacher)),
            ("means", head, means),
        ):
            leaf = student.to(own.weight_VD.dtype, copy=True).requires_grad_()
            out = training_loss(leaf, own, labels, distil_all(rows), teacher=TeacherTerm(states))
            out.total.backward()
            outcomes[name] = out.divergence_N.double(), leaf.grad.double()
        exact, exact_grad = outcomes["exact"]
        errors = {name: (grad - exact_grad).norm() / exact_grad.norm() for name, (_, grad) in outcomes.items()}
        assert outcomes["means"][0].min() < 0
        standard_error = (outcomes["means"][0] - exact).std() / rows**0.5
        assert abs(outcomes["means"][0].mean() - exact.mean()) < 4 * standard_error
        assert errors["means"] < 1.25 * errors["hidden"]

    @pytest.mark.parametrize("rows", [0, 1])
    def test_no_token_and_one_token(self, rows):
        head, hidden, labels, teacher = make(rows=rows)
        states = mean_embeddings(teacher, head).states(teacher)
        hidden.requires_grad_()
        rule = RuleFromLosses(lambda loss_N: BatchDecision.of_weights(torch.ones_like(loss_N), torch.ones_like(loss_N)))
        training_loss(hidden, head, labels, rule, teacher=TeacherTerm(states)).total.backward()
        assert hidden.grad.shape == (rows, D)

    @pytest.mark.parametrize(
        "head_kwargs, call", [({"softcap": 5.0}, {}), ({}, {"divergence": "jsd"}), ({}, {"temperature": 2.0})]
    )
    def test_what_they_cannot_give_is_refused(self, head_kwargs, call):
        head, hidden, labels, teacher = make(**head_kwargs)
        states = TeacherStates(mean_ND=teacher, offset_N=torch.zeros(N))
        with pytest.raises(ValueError, match="mean embeddings give only forward KL at temperature 1"):
            training_loss(hidden, head, labels, decided(some_of_each()), teacher=TeacherTerm(states, **call))


def head_products(monkeypatch, run):
    """Head products a token of N that `run` costs."""
    rows = []
    for name in ("product", "hidden_gradient"):
        original = getattr(Head, name)
        counted = lambda self, x, original=original: rows.append(len(x)) or original(self, x)  # noqa: E731
        monkeypatch.setattr(Head, name, counted)
    run()
    return sum(rows) / N


HALF_BY_LOSS = RuleFromLosses(
    lambda loss_N: BatchDecision.of_weights((loss_N >= loss_N.median()).double(), (loss_N < loss_N.median()).double())
)


@pytest.mark.parametrize(
    "case, products", [("mle", 2), ("means", 2), ("hidden", 1 + 7 / 13 * 2 + 6 / 13 * 3), ("scores", 1)]
)
def test_head_products_are_those_that_the_docstring_counts(case, products, monkeypatch):
    head, hidden, labels, teacher = make()
    hidden.requires_grad_()
    means = mean_embeddings(teacher, head).states(teacher)
    run = {
        "mle": lambda: training_loss(hidden, head, labels, train_all(N)),
        "means": lambda: training_loss(hidden, head, labels, HALF_BY_LOSS, teacher=TeacherTerm(means)),
        "hidden": lambda: training_loss(
            hidden, head, labels, HALF_BY_LOSS, teacher=TeacherTerm(TeacherStates(teacher))
        ),
        "scores": lambda: token_scores(hidden.detach(), head, labels),
    }[case]
    assert head_products(monkeypatch, run) == pytest.approx(products)


@pytest.mark.parametrize("kwargs", [{}, {"softcap": 3.0}, {"scale": 0.5}])
@pytest.mark.parametrize("name", ["probability_gain", "top_entropy_gain"])
def test_gains_are_factors_without_a_gradient_of_their_own(name, kwargs, monkeypatch):
    """DFT and EAFT by plain PyTorch with detach(), and no head product more than cross-entropy has."""
    head, hidden, labels, _ = make(**kwargs)
    theirs = hidden.clone().requires_grad_()
    logits = whole_logits(head, theirs)
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    if name == "probability_gain":
        factor = torch.exp(-ce)
    else:
        p = torch.softmax(torch.sort(logits, dim=1, descending=True).values[:, :20], -1)
        factor = torch.distributions.Categorical(p).entropy() / 3
    half = (torch.arange(N) % 2).double()
    expected = (half * factor.detach() * ce).sum()
    expected.backward()
    ours, formula = hidden.clone().requires_grad_(), getattr(formulas, name)
    weights = Weights(half, torch.zeros(N, dtype=torch.float64))
    outs = []
    run = lambda: outs.append(  # noqa: E731
        training_loss(ours, head, labels, decided(weights), gain=lambda z, loss, selected: formula(z, loss))
    )
    assert head_products(monkeypatch, run) == pytest.approx(2 * int(half.sum()) / N)
    outs[0].total.backward()
    torch.testing.assert_close(outs[0].total, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outs[0].weights.mle_N, half * torch.where(half > 0, factor.detach(), 1.0))


def test_a_gain_with_mean_embeddings_is_refused():
    head, hidden, labels, teacher = make()
    states = mean_embeddings(teacher, head).states(teacher)
    with pytest.raises(ValueError, match="without a gain"):
        training_loss(hidden, head, labels, decided(some_of_each()), teacher=TeacherTerm(states), gain=lambda *_: 1.0)


@pytest.mark.parametrize("divergence, form", [("jsd", "hidden"), ("forward_kl", "hidden"), ("forward_kl", "means")])
def test_every_loss_is_given_where_it_is_asked_for(divergence, form, monkeypatch):
    """A third each: trained, distilled, left alone, and only the last costs a product more."""
    head, hidden, labels, teacher = make()
    third = torch.arange(N) % 3
    weights = Weights((third == 0).double(), (third == 1).double())
    hidden_states = TeacherStates(teacher)
    states = hidden_states if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    term = TeacherTerm(states, divergence)
    expected = torch.nn.functional.cross_entropy(whole_logits(head, hidden), labels, reduction="none")
    outs, products = [], []
    for every in (True, False):
        run = lambda every=every: outs.append(  # noqa: E731
            training_loss(hidden, head, labels, decided(weights), teacher=term, every_loss=every)
        )
        with monkeypatch.context() as patch:
            products.append(head_products(patch, run))
    torch.testing.assert_close(outs[0].loss_N, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(outs[0].total, outs[1].total, rtol=0, atol=1e-9)
    assert products[0] - products[1] == pytest.approx(int((third == 2).sum()) / N)


def test_distilling_without_a_teacher_is_refused():
    head, hidden, labels, _ = make()
    with pytest.raises(ValueError, match="there is no teacher"):
        training_loss(hidden, head, labels, decided(some_of_each()))


@pytest.mark.parametrize("rows", [0, 1])
def test_no_token_and_one_token(rows):
    head, hidden, labels, teacher = make(rows=rows)
    assert len(token_scores(hidden, head, labels).loss_N) == rows
    hidden.requires_grad_()
    out = training_loss(hidden, head, labels, train_all(rows), teacher=TeacherTerm(TeacherStates(teacher)))
    out.total.backward()
    assert hidden.grad.shape == (rows, D)
    assert len(monte_carlo_scores(hidden.detach().expand(2, rows, D), head, labels).bald_N) == rows


def test_large_logits_stay_finite():
    head, hidden, labels, teacher = make(dtype=torch.float32, magnitude=1e4)
    scores = token_scores(hidden, head, labels)
    assert scores.loss_N.isfinite().all() and scores.entropy_N.isfinite().all()
    hidden.requires_grad_()
    for name in ("forward_kl", "reverse_kl", "jsd"):
        hidden.grad = None
        decision = BatchDecision.of_weights(torch.ones(N), torch.ones(N))
        term = TeacherTerm(TeacherStates(teacher * 1e4), name)
        out = training_loss(hidden, head, labels, decision, teacher=term)
        out.total.backward()
        assert out.total.isfinite() and hidden.grad.isfinite().all()


def test_bfloat16_head_still_reduces_in_float32():
    """Trap: a log-softmax in bfloat16 has three digits."""
    head, hidden, labels, _ = make(dtype=torch.bfloat16)
    scores = token_scores(hidden, head, labels)
    logits = (hidden @ head.weight_VD.T).float()
    assert scores.loss_N.dtype == torch.float32
    torch.testing.assert_close(scores.loss_N, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


class TestMonteCarlo:
    def test_equals_the_formulas_in_float64(self):
        head, hidden, labels, _ = make()
        samples = torch.stack([hidden + 0.3 * torch.randn_like(hidden) for _ in range(4)])
        p = torch.softmax(torch.stack([whole_logits(head, h) for h in samples]), -1)
        entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
        scores = monte_carlo_scores(samples, head, labels)
        mean = p.mean(0)
        torch.testing.assert_close(scores.predictive_entropy_N, entropy(mean), rtol=0, atol=1e-9)
        torch.testing.assert_close(scores.expected_entropy_N, entropy(p).mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(scores.bald_N, (p * (p / mean).log()).sum(-1).mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(scores.mc_loss_N, -mean.gather(1, labels[:, None])[:, 0].log(), rtol=0, atol=1e-9)

    def test_small_disagreement_does_not_cancel_in_float32(self):
        """Trap: the difference of entropies loses BALD's digits where samples nearly agree; the mean KL does not."""
        head, hidden, labels, _ = make()
        samples = torch.stack([hidden + 1e-4 * torch.randn_like(hidden) for _ in range(4)])
        exact = monte_carlo_scores(samples, head, labels).bald_N
        head32 = Head(head.weight_VD.float())
        single = monte_carlo_scores(samples.float(), head32, labels).bald_N
        p = torch.softmax(torch.stack([whole_logits(head32, h.float()) for h in samples]), -1)
        entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
        difference = entropy(p.mean(0)) - entropy(p).mean(0)
        assert (single - exact).abs().max() < (difference - exact).abs().max() / 3

    def test_equal_samples_have_no_bald(self):
        head, hidden, labels, _ = make(dtype=torch.float32)
        scores = monte_carlo_scores(hidden.expand(3, N, D), head, labels)
        assert scores.bald_N.max() < 1e-6 and scores.bald_N.min() >= 0
