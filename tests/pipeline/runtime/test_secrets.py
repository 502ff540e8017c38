"""No key, token or password reaches a file of the store or of Dagster, however a stage lets it out."""

import contextlib
import gzip
import os

import dagster as dg
import pytest

from tests.support import leaky_stage
from tests.support.fake_endpoint import endpoint
from tests.support.paths import ROOT
from tests.support.toy_pipeline import STUDY, Toy
from tokenuq_pipeline.runtime.launcher import StageLauncher

pytestmark = pytest.mark.slow
ASSETS = {"well": ["models", "tiny"], "bad input": ["datasets", "toy"], "bug": ["datasets", "extra"]}


def files_with(folder, secrets):
    """Files that hold one of the texts, as it is."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        with contextlib.suppress(OSError):
            content += gzip.decompress(content)
        found += [(path, secret) for secret in secrets if secret.encode() in content]
    return found


def test_no_file_of_a_run_holds_a_secret(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tokenuq_pipeline.assets.run_stage.RETRIES", 0)
    leaky_stage.write_package(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    for name, value in leaky_stage.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    toy = Toy(tmp_path / "toy")
    with endpoint(lambda _: {}) as judge, toy.instance() as instance:
        monkeypatch.setenv("JUDGE_URL", judge.url)
        job = toy.defs(launcher=StageLauncher(package=leaky_stage.PACKAGE)).resolve_job_def(STUDY)
        for ending, key in ASSETS.items():
            monkeypatch.setenv("LEAK", ending)
            result = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(key)], raise_on_error=False)
            assert result.success == (ending == "well")
        messages = [entry.message for entry in instance.all_logs(result.run_id)]
        # It was all said, without the secrets.
        assert any("401 for ***, https://***@host/v1" in message for message in messages)
        assert "***" in str(toy.store.read_manifest("models/tiny").metrics["note"])
    assert not files_with(toy.folder, leaky_stage.SECRETS)
    printed = "".join(capfd.readouterr())
    assert "401 for ***" in printed and not any(secret in printed for secret in leaky_stage.SECRETS)
