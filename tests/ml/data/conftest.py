"""Fixtures of the tests of tokenisation."""

import pytest

from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer


@pytest.fixture(scope="module", params=[False, True], ids=["whole_offsets", "trimmed_offsets"])
def tokenizer(request):
    return tiny_tokenizer(trim_offsets=request.param)


@pytest.fixture
def restore_template(tokenizer):
    yield
    tokenizer.chat_template = CHATML
