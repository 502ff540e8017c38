"""Plans against what they estimate: PEFT's adapters, the cache's bytes, and sums over examples."""

import dataclasses
import subprocess
import sys

import pytest

from tests.support import tiny_models
from tests.support.paths import ROOT
from tests.support.tiny_plans import CONFIG, MACHINE, TINY, tiny_planner
from tokenuq_ml.config import (
    EvaluationSpec,
    LoraChange,
    LoraSpec,
    PrecisionSpec,
    TrainChange,
    TrainSpec,
    TrainSweep,
    UncertaintySpec,
)
from tokenuq_ml.config.load import load_ablations
from tokenuq_ml.costs import memory
from tokenuq_ml.costs.ablation_step import ablation_step
from tokenuq_ml.costs.flops import Step, flops
from tokenuq_ml.costs.lengths import Lengths
from tokenuq_ml.costs.passes import scoring_flops, total_tokens
from tokenuq_ml.costs.planner import Planner
from tokenuq_ml.costs.work import STARTUP_S, Work
from tokenuq_ml.kernels.head import CHUNK_BYTES
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.scoring import mc_dropout
from tokenuq_ml.training.teacher_cache import cache_bytes

PAPER = [f"{data}_{model}" for data in ("alpaca", "sharegpt", "gsm8k") for model in ("gemma_2_2b", "phi_2")]


def step_of(plan: Planner, ablation: str) -> dict:
    """The fields of a training step that an ablation of the shipped configuration decides."""
    cached = plan.online_reason is None
    return ablation_step(CONFIG.ablations[ablation], plan.study.train, cached, plan.only_states)


def test_memory_budgets_are_those_of_the_kernels():
    assert memory.CHUNK_BYTES == CHUNK_BYTES and memory.STATES_BYTES == mc_dropout.STATES_BYTES


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_adapter_weights_and_cache_have_their_real_sizes(kind):
    model = tiny_models.tiny_peft(kind)
    config = model.get_base_model().config.to_dict()
    train = TrainSpec(lora=LoraSpec(rank=4, alpha=8))
    data = Lengths(10, 30, 20, 900, "test")
    plan = tiny_planner(model_config=config, train=train, measured={("gsm_symbolic", "train"): data})
    real = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert plan.work("baseline_teacher").disk["adapter"] == 4 * real
    assert plan.work("baseline_teacher").memory["adapter, gradients, optimiser"] == 16 * real
    head = head_of(model)
    head = dataclasses.replace(head, weight_VD=head.weight_VD.bfloat16())
    assert plan.work("teacher_hidden").disk["teacher_hidden"] == cache_bytes(32 * 20, head)


def test_the_cache_of_a_teacher_without_an_adapter_has_its_head_and_no_mean_embeddings():
    model, data = tiny_models.tiny_model(), Lengths(10, 30, 20, 900, "test")
    plan = tiny_planner(
        model_config=model.config.to_dict(),
        train=TrainSpec(adapter="none"),
        measured={("gsm_symbolic", "train"): data},
    )
    head = head_of(model)
    head = dataclasses.replace(head, weight_VD=head.weight_VD.bfloat16())
    assert plan.work("teacher_hidden").disk["teacher_hidden"] == cache_bytes(32 * 20, head, shared_head=False)
    assert step_of(plan, "paper_top25")["teacher"] == "hidden_states"


def test_a_pass_is_the_sum_over_its_examples():
    made = tiny_models.examples(12)
    sizes = [(len(example.input_ids), len(example.positions)) for example in made]
    mean = lambda values: sum(values) / len(sizes)  # noqa: E731
    data = Lengths(12, mean([t for t, _ in sizes]), mean([n for _, n in sizes]), mean([t**2 for t, _ in sizes]), "")
    plan = tiny_planner()
    each = [Step(t, n, t**2 / 2, lora_rank=32) for t, n in sizes]
    real = sum(
        flops(plan.architecture, step).forward + step.response_tokens * plan.architecture.head_product for step in each
    )
    assert scoring_flops(plan.architecture, [data], 32) == pytest.approx(real, rel=1e-12)


def test_bald_takes_one_pass_per_sample():
    plan = tiny_planner(uncertainty=UncertaintySpec(samples=5))
    one = scoring_flops(plan.architecture, plan.data, 32)
    work = plan.work("token_uncertainty")
    assert work.flop == {"score": 5 * one}
    assert work.tokens == 5 * sum(part.rows * part.tokens for part in plan.data)
    assert plan.work("token_losses").flop == {"score": one + scoring_flops(plan.architecture, plan.data, 0)}


def test_epochs_multiply_the_work_of_training_only():
    once, twice = (
        tiny_planner(),
        tiny_planner(train=CONFIG.studies["quickstart"].train.model_copy(update={"epochs": 2})),
    )
    for stage, name in (("baseline_teacher", ""), ("student", "paper_top25")):
        first, second = once.work(stage, name), twice.work(stage, name)
        assert second.flop["train"] == pytest.approx(2 * first.flop["train"]) and second.tokens == 2 * first.tokens
    assert once.work("token_losses") == twice.work("token_losses")


@pytest.mark.parametrize("name", load_ablations(ROOT / "config"))
def test_an_ablations_step_agrees_with_its_spec(name):
    ablation = CONFIG.ablations[name]
    found = step_of(tiny_planner(), name)
    assert found["selection_needs_loss"] == ablation.needs_student_losses
    assert found["mle_share"] + found["distilled_share"] - found["summed_share"] <= 1 + 1e-12
    assert (found["summed_share"] > 0) == (ablation.selected.is_sum or ablation.rest.is_sum)
    assert (found["teacher"] != "none") == (ablation.distillation is not None)
    Step(1, 1, 1, **found)


def test_steps_of_the_papers_ablations():
    plan = tiny_planner()
    paper = step_of(plan, "paper_top25")
    assert (paper["mle_share"], paper["distilled_share"], paper["teacher"]) == (0.25, 0.75, "mean_embeddings")
    masked = step_of(plan, "masked_mle_top25")
    assert (masked["mle_share"], masked["distilled_share"], masked["teacher"]) == (0.25, 0, "none")
    capped = tiny_planner(model_config={**TINY, "final_logit_softcapping": 30.0})
    assert step_of(capped, "paper_top25")["teacher"] == "hidden_states"


def test_micro_batches_cost_a_selection_pass():
    train = CONFIG.studies["quickstart"].train.model_copy(update={"micro_batch_size": 4})
    whole, parts = tiny_planner(), tiny_planner(train=train)
    assert step_of(parts, "paper_top25")["selection_passes"] == 1
    assert step_of(parts, "mle")["selection_passes"] == 0
    halved = parts.work("student", "paper_top25").memory["activations"]
    assert 2 * halved == whole.work("student", "paper_top25").memory["activations"]


def test_above_the_cache_budget_the_teacher_runs_online():
    cached, online = tiny_planner(), tiny_planner(teacher_cache_gigabytes=1e-9)
    assert cached.online_reason is None and "budget" in online.online_reason
    assert online.work("teacher_hidden").disk == {}
    assert (
        online.work("student", "paper_top25").flop["train"] > 1.3 * cached.work("student", "paper_top25").flop["train"]
    )


def test_caching_states_takes_a_pass_if_losses_are_fresh():
    plan, alone = tiny_planner(), tiny_planner(fresh=frozenset({"token_losses"}))
    shared = plan.work("teacher_hidden").flop["score"]
    assert alone.work("teacher_hidden").flop["score"] == pytest.approx(
        shared + scoring_flops(plan.architecture, plan.data, 32)
    )


def test_generation_counts_prompts_and_longest_answers():
    plan = tiny_planner(evaluation=EvaluationSpec(ifeval={"dataset": "ifeval", "max_new_tokens": 48}))
    (one,) = plan.generated_evaluations
    assert (one.name, one.prompts, one.new_tokens) == ("IF-Eval", 12, 48)
    without = tiny_planner(evaluation=CONFIG.studies["ablation_matrix"].evaluation)
    more = plan.work("evaluation", "mle").tokens - without.work("evaluation", "mle").tokens
    assert without.generated_evaluations == [] and more == pytest.approx(12 * (one.prompt_tokens + 48))
    assert without.work("evaluation", "mle").flop["generate"] == 0 < plan.work("evaluation", "mle").flop["generate"]


def test_seconds_are_flops_over_rate_and_efficiency():
    work = Work(flop={"train": 57e11, "score": 68e10})
    assert work.seconds(MACHINE, starts=False) == pytest.approx(100 + 10)
    assert work.seconds(MACHINE, starts=True) == pytest.approx(110 + STARTUP_S)


def test_without_sizes_only_tokens_are_estimated():
    plan = tiny_planner(model_config=None, machine=None)
    work = plan.work("token_uncertainty")
    assert work.flop is None and work.seconds(None, starts=True) is None and work.memory == {}
    assert work.tokens == tiny_planner().work("token_uncertainty").tokens


def test_training_memory_agrees_with_a_measurement():
    """2,048 tokens of SmolLM2 in a step peaked at 3,337 MiB; the parts add up to that within 5%."""
    spec = CONFIG.studies["quickstart"]
    assert spec.max_length * spec.train.batch_size == 2048
    plan = tiny_planner(model_config=CONFIG.models["smollm2_135m"].config)
    assert sum(plan.work("baseline_teacher").memory.values()) / 2**20 == pytest.approx(3337, rel=0.05)


@pytest.mark.parametrize("study", CONFIG.studies)
def test_every_stage_of_every_shipped_study_has_an_estimate(study):
    spec = CONFIG.studies[study]
    # A model that is trained from scratch has the words of its language.
    plan = tiny_planner(study, model_config={"vocab_size": 256, **CONFIG.models[spec.model].config})
    stages = ["tokenized_dataset", "baseline_teacher", "token_losses", "teacher_hidden", "token_uncertainty"]
    works = [plan.work(stage) for stage in [*stages, "reference_evaluation", "ablation_report"]]
    works += [plan.work(s, name) for name in spec.ablations for s in ("student", "evaluation", "curriculum")]
    works += [plan.work("models", spec.model), plan.work("datasets", spec.dataset)]
    assert all(work.flop is not None and sum(work.memory.values()) > 2**28 for work in works)


@pytest.mark.parametrize("study", PAPER)
def test_the_papers_studies_are_configured_as_in_the_paper(study):
    spec = CONFIG.studies[study]
    assert not spec.enabled and (spec.train.lora.rank, spec.train.lora.alpha) == (32, 64)
    assert {"mle", "masked_mle_top25", "paper_top25"} < set(spec.ablations)
    trained_on_maths = spec.dataset == "gsm8k"
    assert spec.evaluation.gsm8k.split == ("test" if trained_on_maths else "ood")
    assert spec.evaluation.alpaca_eval.split == ("ood" if trained_on_maths else "test")


def test_shipped_studies_have_one_micro_batch_per_step():
    assert all(spec.train.micro_batch_size is None for spec in CONFIG.studies.values())


@pytest.mark.slow
def test_a_plan_imports_no_torch():
    code = (
        "import sys, tokenuq_ml.costs.planner, tokenuq_ml.costs.sources, tokenuq_pipeline.commands.plan; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_bald_is_planned_in_float32_and_the_rest_in_its_own_precision():
    slower = {"precision": "float32", "flop_per_second": MACHINE.flop_per_second / 2}
    machine = dataclasses.replace(MACHINE, others={"float32": slower})
    half, single = tiny_planner(), tiny_planner(machine=machine)
    for stage, factor in (("token_uncertainty", 2), ("token_losses", 1), ("reference_evaluation", 1)):
        before, after = half.work(stage), single.work(stage)
        assert after.seconds(machine, False) == pytest.approx(factor * before.seconds(MACHINE, False))
        assert after.memory["weights"] == factor * before.memory["weights"]
    tables = tiny_planner(machine=machine, precision=PrecisionSpec(tables="float32"))
    assert tables.work("token_losses").seconds(machine, False) == pytest.approx(
        2 * half.work("token_losses").seconds(MACHINE, False)
    )
    assert tables.work("baseline_teacher").seconds(machine, False) == pytest.approx(
        half.work("baseline_teacher").seconds(MACHINE, False)
    )


def test_candidates_for_the_teacher_take_a_training_and_a_pass_over_validation():
    sweep = TrainSweep(epochs=[1, 3])
    once, plan = tiny_planner(), tiny_planner(teacher_sweep=sweep)
    trained = once.work("baseline_teacher").flop["train"]
    for epochs in (1, 3):
        work = plan.work("candidate_teacher", f"teacher_epochs{epochs}")
        assert work.flop["train"] == pytest.approx(epochs * trained)
        assert work.flop["score"] == scoring_flops(plan.architecture, [plan.validation], plan.study.train.lora.rank)
    # The teacher is a copy of one of them.
    assert not plan.work("baseline_teacher").flop and plan.work("baseline_teacher").disk["adapter"] > 0
    assert not plan.work("teacher_sweep").flop


def test_estimators_take_passes_and_members_take_trainings():
    estimators = ["adapter_ensemble", "mc_dropout_20", "laplace"]
    plain = tiny_planner()
    plan = tiny_planner(uncertainty=UncertaintySpec(samples=4, estimators=estimators, members=3))
    trained = plain.work("baseline_teacher").flop["train"]
    assert plan.work("ensemble_teacher", "teacher_s1001").flop["train"] == pytest.approx(trained)
    train, every = (total_tokens(data) for data in ([plan.train_data], plan.data))
    work = plan.work("uncertainty_estimates")
    # Members, dropout samples, and Laplace: once over the train split to fit, once over all tokens.
    assert work.tokens == pytest.approx((3 + 4 + 1) * every + train)
    passes = work.tokens / every
    rank = plan.study.train.lora.rank
    assert work.flop["score"] == pytest.approx(passes * scoring_flops(plan.architecture, plan.data, rank))
    longest = tiny_planner(uncertainty=plan.study.uncertainty, teacher_sweep=TrainSweep(epochs=[1, 3]))
    assert longest.work("ensemble_teacher", "teacher_s1001").flop["train"] == pytest.approx(3 * trained)


def test_settings_and_budgets_of_an_ablation_are_planned():
    plan, name = tiny_planner(), "masked_mle_top25"
    made = {
        "longer": CONFIG.ablations["masked_mle_top25_equal_tokens"],
        "twice": CONFIG.ablations[name].model_copy(update={"name": "twice", "train": TrainChange(epochs=2)}),
        "small": CONFIG.ablations[name].model_copy(update={"train": TrainChange(lora=LoraChange(rank=8))}),
    }
    plan.config = dataclasses.replace(plan.config, ablations={**plan.config.ablations, **made})
    plain = plan.work("student", name)
    for longer, factor in (("longer", 4), ("twice", 2)):
        work = plan.work("student", longer)
        assert work.flop["train"] == pytest.approx(factor * plain.flop["train"])
        assert work.disk["selections"] == pytest.approx(factor * plain.disk["selections"])
    assert plan.work("student", "small").disk["adapter"] == pytest.approx(plain.disk["adapter"] / 4)


def test_an_evaluation_of_one_of_several_settings_measures_the_validation_split_too():
    plan, one = tiny_planner(), CONFIG.ablations["mle"]
    alone = plan.work("evaluation", "mle")
    other = one.model_copy(update={"name": "mle_epochs2", "train": TrainChange(epochs=2)})
    plan.config = dataclasses.replace(plan.config, ablations={"mle": one, "mle_epochs2": other})
    plan.study = plan.study.model_copy(update={"ablations": ("mle", "mle_epochs2")})
    more = scoring_flops(plan.architecture, [plan.validation], plan.study.train.lora.rank)
    assert plan.work("evaluation", "mle").flop["score"] == pytest.approx(alone.flop["score"] + more)
