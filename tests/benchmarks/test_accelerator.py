"""The accelerator benchmark: what it counts, that it can fail, and that its plain settings are the real ones."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.accelerator import inference, loss_checks, model_flops, specs, steps, study_keys, tasks
from benchmarks.accelerator.__main__ import Run, main
from benchmarks.accelerator.clock import Measured, StepClock, counted
from benchmarks.accelerator.machine import Machine
from benchmarks.accelerator.references import Case, relative_error
from benchmarks.accelerator.shapes import SHAPES, Setting, base_model
from benchmarks.accelerator.steps import unchanged_modules
from benchmarks.accelerator.tables import page, targets
from benchmarks.accelerator.tasks import Result
from tokenuq_ml.config import AblationSpec, LoraSpec, UncertaintySpec
from tokenuq_ml.costs.flops import PUBLISHED
from tokenuq_ml.scoring import mc_dropout

CPU = torch.device("cpu")
H100 = Machine(
    "NVIDIA H100", True, "3.12", {}, "triton", "bfloat16", 7e14, 989e12, "published dense peak of h100", 67e12
)


def assert_has(real, plain, path=""):
    """Check that each attribute of `plain` is that of `real`."""
    for name, value in vars(plain).items():
        found = getattr(real, name)
        if callable(value):
            for argument in (False, True) if name == "decides_together" else ("weight",):
                assert found(argument) == value(argument), f"{path}.{name}"
        elif hasattr(value, "__dict__"):
            assert_has(found, value, f"{path}.{name}")
        else:
            assert found == value, f"{path}.{name}"


@pytest.mark.parametrize(
    ("plain", "entry"),
    [
        (specs.paper(), {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}}),
        (specs.mle(), {"select": "all"}),
    ],
    ids=["paper", "mle"],
)
def test_plain_ablations_say_what_the_real_ones_say(plain, entry):
    assert_has(AblationSpec(name="x", **entry), plain)


def test_plain_settings_are_those_of_the_specs():
    assert_has(LoraSpec(rank=specs.RANK, alpha=specs.ALPHA, dropout=specs.DROPOUT), specs.LORA)
    assert_has(UncertaintySpec(samples=specs.SAMPLES), specs.UNCERTAINTY)
    assert inference.STATES_BYTES == mc_dropout.STATES_BYTES


def test_shapes_are_the_published_ones():
    llama = SHAPES["llama-3.2-1b"]
    assert llama.architecture == PUBLISHED["Llama-3.2-1B"]
    assert (llama.tokens, llama.response_tokens) == (8192, 4096)
    # google/gemma-2-2b has 2.61 billion weights; its four norms per layer are two here.
    assert SHAPES["gemma-2-2b"].architecture.parameters == pytest.approx(2.614e9, rel=1e-3)


def test_flops_are_those_of_the_formula(tmp_path):
    """4 P per token for LoRA and 6 P for full training, attention's causal half three times, and the head."""
    shape, setting = SHAPES["tiny-llama"], Setting(SHAPES["tiny-llama"], CPU, torch.float32, tmp_path)
    layers = base_model(setting).model.layers
    weights = sum(module.weight.numel() for module in layers.modules() if isinstance(module, nn.Linear))
    tokens, scored = 4 * 16, 4 * 8
    attention = 3 * 2 * (2 * 2 * (4 * 16**2 / 2) * 4 * 8)
    head = 2 * 32 * 97 * scored
    assert model_flops.step_flops(shape) == 4 * weights * tokens + attention + 2 * head
    assert model_flops.step_flops(shape, full=True) == 6 * weights * tokens + attention + 3 * head
    assert model_flops.pass_flops(shape) == 2 * weights * tokens + attention / 3 + head
    online = model_flops.step_flops(shape, online_teacher=True)
    assert online == model_flops.step_flops(shape) + model_flops.pass_flops(shape)


@pytest.mark.parametrize(
    ("name", "card"), [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA GeForce GTX 1080", None)]
)
def test_a_card_is_known_by_its_drivers_name(name, card):
    found = model_flops.card_of(name)
    assert (found and found.name) == card


def test_the_clock_times_the_steps_after_the_warm_up():
    clock, seen = StepClock(CPU, warm_up=2, timed=3), []
    clock.at_start, clock.at_end = (lambda: seen.append("start")), (lambda: seen.append("end"))
    measured = clock.run(lambda: seen.append("step"))
    assert seen == ["step"] * 2 + ["start"] + ["step"] * 3 + ["end"]
    assert measured.seconds > 0 and measured.peak_mib is None and measured.launches is None
    with pytest.raises(RuntimeError, match="0 of 5 steps"):
        StepClock(CPU, 2, 3).measured()


def event(key, count=1, on_device=False, micros=0.0, is_range=False):
    kind = torch.autograd.DeviceType.CUDA if on_device else torch.autograd.DeviceType.CPU
    return SimpleNamespace(
        key=key, count=count, device_type=kind, self_device_time_total=micros, is_user_annotation=is_range
    )


def test_launches_waits_and_busy_time_are_read_off_the_profiler():
    events = [
        event("cudaLaunchKernel", 70),
        event("cuLaunchKernelEx", 20),
        event("cudaGraphLaunch", 1),
        event("cudaMemcpyAsync", 9),
        event("cudaDeviceSynchronize", 2),
        event("aten::mm", 5),
        event("gemm", 5, on_device=True, micros=1500.0),
        event("Memcpy HtoD", 2, on_device=True, micros=500.0),
        event("Optimizer.step#AdamW.step", 1, on_device=True, micros=9000.0, is_range=True),
    ]
    profiler = SimpleNamespace(key_averages=lambda: events)
    assert counted(profiler) == (91, 2, 0.002)


def test_a_check_finds_a_wrong_kernel(monkeypatch):
    check = loss_checks.CHECKS["cross-entropy and forward KL"]
    assert max(check.errors(CPU, torch.float64).values()) < 1e-12
    real = loss_checks.training_loss

    def wrong(*args, **kwargs):
        out = real(*args, **kwargs)
        return out._replace(divergence_N=out.divergence_N * 1.01)

    monkeypatch.setattr(loss_checks, "training_loss", wrong)
    assert check.errors(CPU, torch.float64)["divergence"] == pytest.approx(0.01)


def test_values_that_are_not_finite_never_pass():
    assert relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert relative_error(torch.zeros(2), torch.ones(3)) == float("inf")


def test_the_same_case_is_drawn_in_every_dtype():
    exact, half = Case.draw(CPU, torch.float64), Case.draw(CPU, torch.bfloat16)
    torch.testing.assert_close(half.exact().hidden_ND, exact.hidden_ND, rtol=4e-3, atol=0)
    assert torch.equal(half.label_N, exact.label_N)


def row(part, name, seconds, peak=1000.0, **more):
    measured = Measured(seconds, peak, **{key: more.pop(key) for key in ("launches",) if key in more})
    return Result(part, "llama-3.2-1b", name, measured, tokens=8192, flops=4e13, **more)


def test_what_liger_puts_into_transformers_is_undone(tmp_path):
    """It replaces classes of the model's module, and forward passes of classes."""
    from transformers.models.llama import modeling_llama

    norm, forward = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP.forward
    with pytest.raises(OSError), unchanged_modules(Setting(SHAPES["tiny-llama"], CPU, torch.float32, tmp_path)):
        modeling_llama.LlamaRMSNorm = nn.LayerNorm
        modeling_llama.LlamaMLP.forward = nn.Identity.forward
        raise OSError
    assert modeling_llama.LlamaRMSNorm is norm and modeling_llama.LlamaMLP.forward is forward


def test_targets_compare_with_the_fastest_vanilla_step():
    results = [
        row("steps", tasks.OURS, 0.1),
        row("steps", tasks.OURS_LIGER, 0.12),
        row("steps", tasks.PLAIN, 0.2),
        row("steps", tasks.TRAINER, 0.08, peak=800.0),
        row("inference", tasks.SCORING, 0.05),
        row("inference", tasks.BALD, 2.0, in_float32=True),
        row("inference", tasks.BALD_RIVAL, 0.25, in_float32=True),
        row("kernels", "training loss: cross-entropy", 0.01, launches=201),
        row("kernels", "loss, entropy, rank", 0.01, launches=900),
    ]
    found = {target.what: (round(target.value, 3), target.met) for target in targets(results, H100)}
    assert found == {
        "model FLOPs utilisation of the student's step (ours, cached teacher)": (0.404, False),
        "student's step / the best vanilla step (transformers Trainer)": (1.25, False),
        "peak memory of the step / that of transformers Trainer": (1.25, False),
        "model FLOPs utilisation of scoring": (0.809, True),
        "BALD / 10 scorings in the same precision": (0.8, True),
        "launches of the head: training loss: cross-entropy": (201, False),
    }
    text = page(H100, results, ["skipped x: not installed: trl"])
    assert "| llama-3.2-1b | ours, cached teacher | 100.0 | 81,920 | 40.4% | 1,000 |" in text
    # 2 s for 8,192 tokens are 40 times the 0.05 s of scoring in bfloat16.
    assert "| 40.00 |" in text and "- skipped x: not installed: trl" in text
    assert targets(results, replace(H100, is_accelerator=False)) == []


def test_keys_of_a_study_reach_the_trainer(tmp_path, monkeypatch):
    """Recomputed layers run twice, and a table of their own shows the step."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, plain = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: calls.append(self) or plain(self, x))
    setting, counts = Setting(SHAPES["tiny-llama"], CPU, torch.float32, tmp_path), {}
    for step in (study_keys.KeyedStep("as it is"), *study_keys.KEYED_STEPS[:1]):
        calls.clear()
        task = tasks._keyed(step, setting, tasks.Clocks(CPU, timed=1, warm_up=1))
        (result,) = task.run()
        counts[step.name] = len(calls)
        assert result.measured.seconds > 0
        assert f"| tiny-llama | {step.name} |" in page(H100, [result], [])
    # Two layers, recomputed in each of two steps.
    assert counts["gradient_checkpointing"] == counts["as it is"] + 4


def test_a_compiled_trainer_leaves_the_next_one_as_it_is(tmp_path, monkeypatch):
    """A training leaves what accelerate reads when any later Trainer wraps its model."""

    def fails(setting, clock, torch_compile):
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR"
        raise OSError

    monkeypatch.setattr(steps, "trainer_step", fails)
    with pytest.raises(OSError):
        steps.compiled_trainer_step(Setting(SHAPES["tiny-llama"], CPU, torch.float32, tmp_path), StepClock(CPU, 1, 1))
    assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ


@pytest.mark.slow
def test_the_command_measures_and_keeps_results(tmp_path, capsys):
    output = tmp_path / "out.json"
    assert (
        main(
            [
                "--device",
                "cpu",
                "--shapes",
                "tiny-llama",
                "--steps",
                "1",
                "--parts",
                "inference,kernels",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    kept, shown = json.loads(output.read_text()), capsys.readouterr().out
    names = {result["name"] for result in kept["results"]}
    assert {tasks.SCORING, tasks.BALD, tasks.BALD_RIVAL, "training loss: cross-entropy"} <= names
    assert all(result["measured"]["seconds"] > 0 for result in kept["results"])
    assert "## Scoring and BALD" in shown and "## Targets" not in shown


def test_what_does_not_fit_the_time_is_named(tmp_path, capsys):
    output = tmp_path / "out.json"
    assert main(["--device", "cpu", "--shapes", "tiny-llama", "--minutes", "0", "--output", str(output)]) == 0
    kept = json.loads(output.read_text())
    assert kept["results"] == [] and any("the time was up" in note for note in kept["notes"])
    assert "skipped tiny-llama: ours, cached teacher: the time was up" in capsys.readouterr().out


def test_a_contestant_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def fails(setting, clock):
        raise ValueError("out of luck")

    monkeypatch.setattr(tasks.inference, "scoring", fails)
    output = tmp_path / "out.json"
    arguments = [
        "--device",
        "cpu",
        "--shapes",
        "tiny-llama",
        "--steps",
        "1",
        "--parts",
        "inference",
        "--output",
        str(output),
    ]
    assert main(arguments) == 1
    assert "FAILED tiny-llama: scoring: ValueError: out of luck" in capsys.readouterr().out
    assert [result["name"] for result in json.loads(output.read_text())["results"]] == [tasks.BALD, tasks.BALD_RIVAL]


def test_a_peer_may_lack_memory(tmp_path):
    def lacks_memory():
        raise torch.OutOfMemoryError("tried to allocate 90 GiB")

    run = Run(CPU, H100, tmp_path / "out.json", 3600)
    run.do(tasks.Task("steps", "llama-3.2-1b", tasks.TRAINER, lacks_memory, is_peer=True))
    assert run.passed and "tried to allocate 90 GiB" in run.notes[0]
    run.do(tasks.Task("steps", "llama-3.2-1b", tasks.OURS, lacks_memory))
    assert not run.passed


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_contestant_and_check_runs_on_a_cpu(tmp_path, dtype):
    output = tmp_path / "out.json"
    arguments = ["--device", "cpu", "--shapes", "tiny", "--steps", "1", "--dtype", dtype, "--output", str(output)]
    assert main(arguments) == 0
    kept = json.loads(output.read_text())
    assert {result["shape"] for result in kept["results"]} == {"", "tiny-llama", "tiny-gemma"}
    assert len([check for result in kept["results"] for check in result["checks"]]) > 100
