"""`tokenuq run` on a terminal and with `--json`: what is drawn, what is printed, and what a stop leaves behind."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.processes import wait_until
from tests.support.screen import Screen
from tests.support.side_by_side import SideBySide, interrupt
from tests.support.toy_pipeline import STUDY, fake_environment, toy_config
from tokenuq_pipeline.commands.make_assets import Output
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.console import CONSOLE

pytestmark = pytest.mark.slow


@pytest.fixture
def screen(monkeypatch):
    """A terminal on which the console writes."""
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Screen(100, 30)
    yield screen
    screen.close()


@pytest.fixture
def console(screen, monkeypatch):
    monkeypatch.setattr(CONSOLE, "stream", screen.stream)
    return screen


@pytest.fixture
def toy(made_study, tmp_path):
    """The toy study, of which the analysis and the report are missing."""
    toy = made_study.copy(tmp_path / "toy")
    for asset in ("uncertainty_analysis", "ablation_report"):
        toy.store.forget(f"{STUDY}/{asset}")
    return toy


def run(toy, **output):
    made = Output(**output)
    with toy.instance() as instance:
        code = run_study(toy.defs(), toy_config(), STUDY, [], instance, toy.store, output=made)
    return code, made


def test_a_terminal_shows_the_assets_while_they_are_made_and_the_table_after_it(toy, console, capfd):
    code, _ = run(toy)
    out = capfd.readouterr().out
    assert code == 0 and "study/uncertainty_analysis  " in out and "total" in out
    # Lines before and between the runs stay; the table does not.
    left = "\n".join(console.lines)
    assert f"to rebuild: {STUDY}/ablation_report" in left and "waiting" not in left and not console.cursor_is_hidden
    drawn = console.raw.decode()
    assert "study/uncertainty_analysis" in drawn and "waiting" in drawn and f"study {STUDY} · " in drawn


def test_plain_lines_are_printed_where_they_are_asked_for(toy, console, capfd):
    assert run(toy, is_plain=True)[0] == 0
    shown = "\n".join(console.lines)
    assert f"[ 1/2] {STUDY}/uncertainty_analysis" in shown and f"[ 2/2] {STUDY}/ablation_report" in shown
    assert b"\x1b" not in console.raw


def test_a_failure_stays_on_the_screen(toy, console, monkeypatch, capfd):
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"bad_input": "uncertainty_analysis"}))
    assert run(toy)[0] == 1
    shown = "\n".join(console.lines)
    assert f"✗ {STUDY}/uncertainty_analysis" in shown and f"– {STUDY}/ablation_report" in shown
    assert "0 of 2 done · 1 failed" in shown and not console.cursor_is_hidden
    assert "holds no answer; add one" in capfd.readouterr().out


def test_with_json_standard_output_is_left_to_the_result(toy, capfd):
    code, output = run(toy, as_json=True)
    out, err = capfd.readouterr()
    assert code == 0 and out == "" and f"[ 1/2] {STUDY}/uncertainty_analysis" in err and "total" in err
    (result,) = output.results
    assert result["made"] == STUDY and result["exit_code"] == 0 and result["errors"] == []
    assert [one["asset"] for one in result["assets"]] == [
        f"{STUDY}/{name}" for name in ("uncertainty_analysis", "ablation_report")
    ]
    code, output = run(toy, as_json=True)
    assert code == 0 and output.results[0]["assets"] == [] and "nothing to recompute" in capfd.readouterr().err


def test_with_json_a_failure_is_in_the_result(toy, monkeypatch, capfd):
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"bad_input": "uncertainty_analysis"}))
    code, output = run(toy, as_json=True)
    assert code == output.results[0]["exit_code"] == 1 and capfd.readouterr().out == ""
    assert output.results[0]["errors"][0].startswith("failed: ") and "add one" in output.results[0]["errors"][0]


@pytest.mark.heavy
def test_ctrl_c_on_a_terminal_writes_checkpoints_and_gives_the_terminal_back(made_study, tmp_path, monkeypatch, screen):
    """Two steps at once, in processes of their own."""
    for name, value in fake_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    toy = made_study.copy(tmp_path / "toy")
    for ablation in ("mle", "top"):
        toy.store.forget(f"{STUDY}/{ablation}/student")
    (tmp_path / "behaviour.json").write_text(json.dumps({"hang": "student", "slow": "student"}))
    study = SideBySide(toy, tmp_path / "behaviour.json")
    try:
        started = study.start(stdout=screen.stream)
        wait_until(lambda: len(study.waiting()) == 2, 240)
        wait_until(lambda: sum(line.startswith("▸") for line in screen.lines) == 2, 20)
        assert screen.cursor_is_hidden
        interrupt(started)
        assert started.wait(120) == 130
        assert all((study.work_dir(name) / "checkpoint").read_text() == "step 7" for name in ("mle", "top"))
        assert screen.lines[-1].endswith("stopped; run the same command again to resume from the last checkpoint")
        assert not screen.cursor_is_hidden and sum("student" in line for line in screen.lines) >= 2
    finally:
        study.end()


def test_a_signal_that_ends_the_process_shows_the_cursor(screen):
    code = (
        "import os, signal, sys, time\n"
        "from tokenuq_pipeline.runtime.console import Console\n"
        "from tokenuq_pipeline.runtime.live_view import LiveView\n"
        "from tokenuq_pipeline.runtime.run_progress import RunProgress\n"
        "with LiveView(Console(), RunProgress('s'), sys.stdout) as view:\n"
        "    view.plan(['s/a'])\n"
        "    view._look()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=screen.stream, env=os.environ, timeout=60)
    assert done.returncode == -15 and screen.lines[0].startswith("· s/a") and not screen.cursor_is_hidden
