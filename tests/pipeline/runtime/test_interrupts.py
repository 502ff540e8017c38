"""A signal during a held block reaches its handler when the block ends."""

import os
import signal
import threading
import weakref

import pytest

from tokenuq_pipeline.runtime.interrupts import hold_interrupts


class Interrupted(BaseException):
    pass


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal whose handler raises, as Dagster's does."""

    def handler(number, frame):
        raise Interrupted

    previous = signal.signal(request.param, handler)
    yield request.param
    signal.signal(request.param, previous)


class Referent:
    pass


def send_in_a_weakref_callback(number) -> None:
    """Send ourselves the signal in a callback, whose exceptions Python drops."""
    referent = Referent()
    reference = weakref.ref(referent, lambda _: os.kill(os.getpid(), number))
    del referent
    assert reference() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_callback_is_lost_without_the_block_and_kept_with_it(number):
    send_in_a_weakref_callback(number)
    with pytest.raises(Interrupted), hold_interrupts():
        send_in_a_weakref_callback(number)


def test_the_block_is_not_interrupted_and_the_handler_is_put_back(number):
    handler, done = signal.getsignal(number), []
    with pytest.raises(Interrupted), hold_interrupts():
        os.kill(os.getpid(), number)
        done.append("rest of the block")
    assert done == ["rest of the block"] and signal.getsignal(number) is handler


def test_the_signal_wins_over_an_exception_of_the_block(number):
    with pytest.raises(Interrupted) as caught, hold_interrupts():
        os.kill(os.getpid(), number)
        raise ValueError("of the block")
    assert isinstance(caught.value.__context__, ValueError)


def test_an_ignored_signal_stays_ignored():
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with hold_interrupts():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_another_thread_can_enter_the_block():
    entered = []

    def enter():
        with hold_interrupts():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]
