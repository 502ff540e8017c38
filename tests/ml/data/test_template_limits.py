"""Chat templates that never end or build too much: one sentence that names the model, and nothing left behind."""

import resource
import signal
import sys
import threading
import time

import pytest

from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.data.chat_template import ChatTemplate, TemplateError, name_template
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.template_limits import LIMITS, SECONDS_VARIABLE, TemplateLimitError
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError

MESSAGES = [{"role": "user", "content": "hi"}]
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "text": "{% for a in range(99999) %}{% for b in range(99999) %}xy{% endfor %}{% endfor %}",
    "long steps": "{% for a in range(99999) %}{% set x = (range(99999)|list)|sort %}{% endfor %}",
}
LARGE = {
    "constant": ("{{ 'x' * 10 ** 10 }}", "builds a text or list of 10,000,000,000 items"),
    "variable": ("{% set n = 10 ** 10 %}{{ n * messages }}", "builds a text or list of 10,000,000,000 items"),
    "filter": ("{{ 'x'|center(10 ** 10) }}", "needs more than 1,024 MiB of memory"),
    "method": ("{{ 'x'.ljust(9999999999) }}", "needs more than 1,024 MiB of memory"),
    "format": ("{{ '%9999999999d' % 1 }}", "needs more than 1,024 MiB of memory"),
    "power": ("{% set n = 10 ** 10 %}{{ 3 ** n }}", "computes a number of more than 65,536 bits"),
    "squares": (
        "{% set n = namespace(n=3) %}{% for i in range(99) %}{% set n.n = n.n * n.n %}{% endfor %}",
        "computes a number of more than 65,536 bits",
    ),
    "output": ("{% set x = 'x' * 60000000 %}{{ x }}{{ x }}", "renders 120,000,000 characters"),
}


def rendered(template):
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.name_or_path = "models/odd"
    return ChatTemplate(tokenizer).render(MESSAGES)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv(SECONDS_VARIABLE, "0.05")
    monkeypatch.setattr("tokenuq_ml.data.template_limits.TICK_S", 0.02)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(quick, name):
    with pytest.raises(TemplateLimitError) as error:
        rendered(ENDLESS[name])
    assert str(error.value) == (
        "the chat template of models/odd takes more than 0.05 s for one conversation, as an endless loop does; correct "
        "it, or name another one as `chat_template:` of the model in models.yaml, or set TOKENUQ_TEMPLATE_SECONDS to "
        "more seconds"
    )


@pytest.mark.skipif(not hasattr(signal, "SIGVTALRM"), reason="limits are Linux's")
@pytest.mark.parametrize("name", LARGE)
def test_a_template_that_builds_too_much_is_stopped(name):
    template, words = LARGE[name]
    with pytest.raises(TemplateLimitError) as error:
        rendered(template)
    assert f"the chat template of models/odd {words} for one conversation" in str(error.value)


def test_a_text_that_doubles_is_stopped(monkeypatch):
    """By memory, in steps that each take a moment."""
    monkeypatch.setattr("tokenuq_ml.data.template_limits.MEMORY_BYTES", 2**26)
    for step in ("n.s ~ n.s", "n.s + n.s"):
        with pytest.raises(TemplateLimitError, match="needs more than 64 MiB of memory"):
            rendered("{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = " + step + " %}{% endfor %}")


def test_usual_products_and_powers_stay():
    assert rendered("{{ '-' * 3 }}{{ 2 ** 10 }}{{ 3 * 4 }}{{ ([1] * 2)|length }}") == "---1024122"
    with pytest.raises(TemplateError):
        rendered("{{ 'x' * none }}")


class Finalized:
    """Takes its time when it is dropped, and then fails."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __del__(self):
        until = time.process_time() + self.seconds
        while time.process_time() < until:
            pass
        raise ValueError("of a finalizer")


def test_the_limit_holds_and_is_not_printed_where_python_swallows_it(quick, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(unraisable.exc_type))

    def endless():
        Finalized(3600)
        while True:
            pass

    with pytest.raises(TemplateLimitError, match="takes more than 0.05 s"):
        LIMITS.run(endless, "of models/odd")
    assert printed == []
    LIMITS.run(lambda: str(Finalized(0)), "of models/odd")
    assert printed == [ValueError]


def test_the_limit_ends_the_dataset_and_not_an_example(quick):
    """An example that a template rejects is counted; ten seconds for each of a million examples would never end."""
    tokenizer = ConversationTokenizer(tiny_tokenizer(chat_template="{{ messages[0]['content'] }}" + ENDLESS["loops"]))
    with pytest.raises(TemplateLimitError):
        tokenizer.tokenize([Example("a", "", [*MESSAGES, {"role": "assistant", "content": "x"}])])


def test_nothing_is_left_behind(quick):
    def state():
        return (
            signal.getsignal(signal.SIGVTALRM),
            signal.getitimer(signal.ITIMER_VIRTUAL),
            sys.unraisablehook,
            resource.getrlimit(resource.RLIMIT_DATA),
        )

    before = state()
    for template in (ENDLESS["loops"], LARGE["constant"][0], "{{ none.x }}", "fine"):
        try:
            rendered(template)
        except InputError:
            pass
        assert state() == before


def test_many_renderings_have_the_time_of_one_each(monkeypatch):
    monkeypatch.setenv(SECONDS_VARIABLE, "0.2")
    monkeypatch.setattr("tokenuq_ml.data.template_limits.TICK_S", 0.02)

    def work():
        until = time.process_time() + 0.06
        while time.process_time() < until:
            pass
        return "x"

    with LIMITS:
        assert [LIMITS.run(work, "m") for _ in range(5)] == ["x"] * 5


def test_a_process_that_has_grown_may_render():
    """The limit is set once for many renderings; data that is read meanwhile does not count."""
    with LIMITS:
        resource.setrlimit(resource.RLIMIT_DATA, (2**20, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        LIMITS._size = 0
        length = len(LIMITS.run(lambda: "x" * 2**24, "m"))
    assert length == 2**24


def test_other_threads_render_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(rendered("fine")))
    thread.start()
    thread.join()
    assert found == ["fine"]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "ten", "inf"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(monkeypatch, value):
    monkeypatch.setenv(SECONDS_VARIABLE, value)
    with pytest.raises(
        InputError, match=f"TOKENUQ_TEMPLATE_SECONDS: must be a number of seconds above 0, is '{value}'"
    ):
        rendered("fine")


def test_a_template_of_a_file_is_named_by_the_file(quick):
    tokenizer = tiny_tokenizer(chat_template=ENDLESS["loops"])
    name_template(tokenizer, "/config/endless.jinja")
    with pytest.raises(TemplateLimitError, match="the chat template /config/endless.jinja takes more than 0.05 s"):
        ChatTemplate(tokenizer).render(MESSAGES)
    name_template(tokenizer, "{% for a in b %}")
    with pytest.raises(TemplateLimitError, match="the chat template `chat_template:` takes more than"):
        ChatTemplate(tokenizer).render(MESSAGES)
