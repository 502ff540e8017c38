"""What `tokenuq plan` says of a chat template and of the first rows, without weights."""

import pytest

from tests.support.chat_templates import OPENS_THINK
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tests.support.tokenizing import examples_of, turns
from tokenuq_ml.config import ModelSpec, StudySpec
from tokenuq_ml.costs.template_check import template_findings, tokenizer_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_tokenizer(path)
    return path


def findings(folder, examples, template=None, **keys):
    model = ModelSpec(name="m", source="path", path=str(folder), chat_template=template)
    study = StudySpec(name="s", model="m", dataset="d", ablations=("mle",), **keys)
    return list(template_findings(study, model, folder, {"d": examples}))


def test_nothing_is_said_of_rows_that_fit(folder):
    assert findings(folder, examples_of([turns("Q", "A")] * 3)) == []


def test_rows_that_the_template_does_not_render_are_named(folder, tmp_path):
    (tmp_path / "r1.jinja").write_text(OPENS_THINK)
    first, second = findings(folder, examples_of([turns("Q", "A")] * 3), str(tmp_path / "r1.jinja"))
    assert first.startswith("m: answers without a think block are not trained")
    assert second == (
        "d: 3 of its first 3 examples are not rendered as their rows say; the first: d/000000: turn 2: the generation "
        r"prompt ends in '<think>\n', which the rendered answer does not have (template_drops: refuse)"
    )


def test_a_template_that_conversion_rejects_is_named(folder, tmp_path):
    (tmp_path / "none.jinja").write_text("{{ bos_token }}")
    (rejected,) = findings(folder, examples_of([turns("Q", "A")]), str(tmp_path / "none.jinja"))
    assert rejected.startswith("m: rejected: the chat template leaves out the user's text")


def test_truncation_above_the_share_is_named(folder):
    rows = examples_of([turns("Q", "word " * (50 if n < 4 else 1)) for n in range(8)])
    (losing,) = findings(folder, rows, max_length=40)
    assert losing == (
        "d: 4 of its first 8 examples lose response tokens at max_length 40, more than max_truncated_share 0.05"
    )
    assert findings(folder, rows, max_length=40, max_truncated_share=0.5) == []


def test_the_tokenizer_is_that_of_the_converted_model_or_of_its_source(folder, tmp_path):
    spec = ModelSpec(name="m", source="path", path=str(folder), chat_template=None)
    assert tokenizer_folder(spec, tmp_path) == folder and tokenizer_folder(spec, folder) == folder
    hub = ModelSpec(name="m", source="hub", id="a/b")
    assert tokenizer_folder(hub, tmp_path) is None
    assert tiny_tokenizer().chat_template == CHATML


def test_prompts_of_evaluations_that_the_template_does_not_render_are_named(folder):
    """They would fail after the teacher is trained."""
    asked = examples_of([turns("Q", "A")] * 2, template={"tools": [{"type": "function", "function": {"name": "f"}}]})
    model = ModelSpec(name="m", source="path", path=str(folder))

    def said(**keys):
        study = StudySpec(name="s", model="m", dataset="d", ablations=("mle",), **keys)
        return list(template_findings(study, model, folder, {}, {"checks": asked}))

    assert said() == [
        "checks: evaluations cannot ask its questions: example d/000000: the chat template leaves out the tools f; "
        "correct the example, or use a chat template that renders it"
    ]
    assert said(template_drops="allow") == []
