"""Addresses without credentials, and environment variables that are set for a moment."""

import os

import pytest

from tokenuq_ml.tracking.tracker_run import variables, without_user


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("postgresql://me:p@ss@host/db", "postgresql://host/db"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_is_shown_without_its_user(address, shown):
    assert without_user(address) == shown


def test_variables_are_as_before_after_an_error(monkeypatch):
    monkeypatch.setenv("GIVEN", "1")
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(ValueError), variables(GIVEN=None, MISSING="2"):
        assert "GIVEN" not in os.environ and os.environ["MISSING"] == "2"
        raise ValueError
    assert os.environ["GIVEN"] == "1" and "MISSING" not in os.environ
