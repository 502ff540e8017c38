"""A short form of `make survive`: every kind of damage, every wrong setting; heavy: kills at a publish, a full disk."""

import shutil
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tests.support.toy_pipeline import STUDY, fake_environment
from tests.survive.bad_input import BAD_INPUT
from tests.survive.damage import kinds
from tests.survive.full_disk import NOT_OURS, SAYS
from tests.survive.study import STUDY as REAL_STUDY
from tests.survive.study import Calm, TrialStudy
from tokenuq_pipeline import cli

pytestmark = pytest.mark.slow
FAKE_DAMAGE = kinds(STUDY, "mle", "tiny", "toy")
SETTINGS = [bad for bad in BAD_INPUT if bad.names not in ("sums", "sums.jsonl", "llama", "template", "SELECT")]


class FakeStudy(TrialStudy):
    """A trial of the toy study on fake stages."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | fake_environment(self.folder)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a run, whatever the arguments."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.survive.fake_run", str(self.folder)],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    study = FakeStudy(tmp_path_factory.mktemp("survive") / "calm")
    study.folder.mkdir()
    code, printed = study.run()
    assert code == 0, printed
    return study


@pytest.mark.heavy
def test_a_run_that_is_killed_at_a_publish_loses_nothing_and_is_completed(calm):
    study = FakeStudy(calm.folder.with_name("killed"))
    study.folder.mkdir()
    process = study.start()
    wait_until(lambda: any(study.store.home.glob(f".manifests/{STUDY}/*.json")))
    process.kill()
    process.wait()
    assert study.wait_for_orphans() == []
    undisturbed = Calm.of(calm)
    assert undisturbed.missing(study)
    assert undisturbed.wrong(study) == []
    code, printed = study.run()
    assert code == 0, printed
    assert undisturbed.wrong(study) + undisturbed.missing(study) == []


@pytest.mark.heavy
@pytest.mark.skipif(not shutil.which("cc"), reason="the shim that counts writes needs a C compiler")
def test_a_run_on_a_full_disk_says_so_and_is_completed_with_space(calm):
    from tests.survive.full_disk import counted_study

    study = counted_study(FakeStudy, calm.folder.with_name("full"), after=40)
    code, printed = study.run()
    assert code != 0
    assert SAYS.search(printed), printed
    assert not NOT_OURS.search(printed), printed
    undisturbed = Calm.of(calm)
    assert undisturbed.wrong(study) == []
    study.folder.joinpath("count.space").touch()
    code, printed = study.run()
    assert code == 0, printed
    assert undisturbed.wrong(study) + undisturbed.missing(study) == []


@pytest.mark.parametrize("damage", FAKE_DAMAGE, ids=lambda damage: damage.name)
def test_damage_is_named_and_forgotten(damage, calm, tmp_path, monkeypatch, capsys):
    home = tmp_path / "store"
    shutil.copytree(calm.store.home, home)
    path = home / damage.path
    if not path.exists():
        pytest.skip("fake stages write no such file; `make survive` damages a real one")
    damage.alter(path)
    monkeypatch.setenv("TOKENUQ_HOME", str(home))
    assert cli.main(["verify"]) == 1
    assert damage.asset in capsys.readouterr().out
    assert cli.main(["verify", "--forget"]) == 1
    assert cli.main(["verify"]) == 0


@pytest.mark.parametrize("bad", SETTINGS, ids=lambda bad: bad.name)
def test_a_wrong_setting_is_named(bad, calm, tmp_path, monkeypatch, capsys):
    shutil.copytree(calm.config, tmp_path / "config")
    bad.alter(tmp_path / "config")
    changes = {"TOKENUQ_CONFIG": str(tmp_path / "config"), "TOKENUQ_HOME": str(tmp_path / "store")}
    for name, value in (changes | {"DAGSTER_HOME": str(tmp_path / "dagster")} | bad.environment).items():
        monkeypatch.setenv(name, value)
    study = "surviv" if bad.names == "surviv" else REAL_STUDY
    command = ["run", "--study", study] if "SLOTS" in bad.names else ["plan", "--study", study]
    assert cli.main(command) != 0
    printed = capsys.readouterr()
    assert bad.names in printed.out + printed.err
