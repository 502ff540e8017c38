"""A user's own selector and objective: found without an import, hashed, used in training, and named when wrong."""

import sys

import pytest

from tests.support.paths import CONFIG
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import training_setup
from tokenuq_ml.config import AblationSpec, user_code
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import ablation_fields, code_version
from tokenuq_ml.training.trainer import train

CODE = """
import torch

def early(tokens):
    '''Tokens that stand early in their example.'''
    starts = torch.searchsorted(tokens.example_N, tokens.example_N)
    return -(torch.arange(len(tokens.example_N)) - starts).float()

def half(tokens):
    return torch.full_like(tokens.loss_N, 0.5)

def wrong(tokens):
    return torch.ones(2)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of the user's, by TOKENUQ_CONFIG, with a module in it."""
    (tmp_path / "my_ideas.py").write_text(CODE)
    monkeypatch.setenv("TOKENUQ_CONFIG", str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_ideas", None)
    sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]


def test_a_function_is_found_without_being_imported(own):
    assert user_code.find("my_ideas:early") == own / "my_ideas.py"
    AblationSpec(name="a", select={"by": "my_ideas:early", "quantile": 0.5})
    assert "my_ideas" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no_such_module:f", "no module 'no_such_module'.*TOKENUQ_CONFIG"),
        ("my_ideas:lost", "defines no function 'lost'; it defines early, half, wrong"),
        ("torch:nothing_here", "defines no function"),
    ],
)
def test_a_missing_module_or_function_is_named(own, reference, said):
    with pytest.raises(ValueError, match=said):
        AblationSpec(name="a", select={"by": reference})


def test_its_code_but_not_its_comments_is_part_of_the_students_version(own):
    (own / "ablations.yaml").write_text("early_half: {select: {by: 'my_ideas:early', quantile: 0.5}}")
    config = load_config(CONFIG, own)

    def version():
        fields = ablation_fields(config, config.studies["quickstart"], config.ablations["early_half"], "student")
        return code_version("student", fields)

    before = version()
    (own / "my_ideas.py").write_text(CODE + "\n# a remark\n")
    assert version() == before
    (own / "my_ideas.py").write_text(CODE.replace("0.5", "0.6"))
    assert version() != before


def test_training_calls_the_function(own, tmp_path):
    ablation = AblationSpec(name="a", select={"by": "my_ideas:early", "quantile": 0.5}, selected="my_ideas:half")
    recorder = train(tiny_peft(), training_setup(ablation, epochs=1), tmp_path / "w", RecordingReporter(), "x")
    rows = recorder.selections()
    first = rows.group_by("step", "example_id").agg(first=rows["position"].min()).select("example_id")
    assert len(first) and rows["objective"].unique().sort().to_list() == ["my_ideas:half", "none"]
    for (_, _), example in rows.group_by("step", "example_id"):
        ordered = example.sort("position")["selected"].to_list()
        assert ordered == sorted(ordered, reverse=True)
    # Half of the cross-entropy of the selected tokens, over all tokens.
    step = rows.filter(rows["step"] == 1)
    expected = 0.5 * step.filter("selected")["loss"].sum() / len(step)
    assert recorder.log_rows[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_give_the_same_result(own, tmp_path):
    ablation = AblationSpec(name="a", select={"by": "my_ideas:early", "quantile": 0.5}, selected="my_ideas:half")
    runs = [
        train(tiny_peft(), training_setup(ablation, m, epochs=1), tmp_path / str(m), RecordingReporter(), "x")
        for m in (4, 2)
    ]
    assert runs[1].log_rows[0]["loss"] == pytest.approx(runs[0].log_rows[0]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    "ablation", [{"select": {"by": "my_ideas:wrong"}}, {"select": "all", "selected": "my_ideas:wrong"}]
)
def test_a_result_of_the_wrong_shape_is_refused(own, tmp_path, ablation):
    with pytest.raises(InputError, match="my_ideas:wrong must return"):
        train(
            tiny_peft(),
            training_setup(AblationSpec(name="a", **ablation), epochs=1),
            tmp_path / "w",
            RecordingReporter(),
            "x",
        )
