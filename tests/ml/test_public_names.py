"""The names that users import: documented with runnable examples, and imported without loading torch."""

import doctest
import inspect
import subprocess
import sys

import pytest

import tokenuq_ml

NAMES = ("AblationSpec", "OnlineTeacher", "SeparateTeacher", "TokenObjective", "measure_bald", "score_tokens")


def test_these_are_the_public_names():
    assert sorted(tokenuq_ml.__all__) == sorted(NAMES)
    assert {*NAMES, "__version__"} <= set(dir(tokenuq_ml))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_documents_its_use(name):
    public = getattr(tokenuq_ml, name)
    headings = {line.strip() for line in inspect.getdoc(public).splitlines()}
    needed = {"Args:", "Examples:"} if inspect.isclass(public) else {"Args:", "Returns:", "Raises:", "Examples:"}
    assert needed <= headings


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    public = getattr(tokenuq_ml, name)
    # The docstring alone: a class's methods have none that users must read.
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(public), {}, name, None, 0)
    assert example.examples
    failures: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=failures.append)
    assert not failures, "".join(failures)


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert tokenuq_ml.__version__ == version("tokenuq")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        tokenuq_ml.Nothing  # noqa: B018


@pytest.mark.slow
def test_importing_the_packages_does_not_load_torch():
    program = """
import sys
import tokenuq_ml, tokenuq_ml.config.load, tokenuq_ml.tables
from tokenuq_ml import AblationSpec
from tokenuq_ml.tables import connect, scan
heavy = {"torch", "transformers", "peft", "dagster"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)
