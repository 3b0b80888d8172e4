"""Ctrl-C at a moment when it would leave something half done."""

import signal
import threading

import pytest

from tests.waiting import WAIT_S
from workbench.cluster.base.interrupts import deferred_interrupt


def test_ctrl_c_comes_when_the_block_ends():
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("the whole block")
    assert done and signal.getsignal(signal.SIGINT) is before


def test_an_error_of_the_block_goes_first():
    with pytest.raises(ValueError, match="first"), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("first")


def test_nothing_is_deferred_in_another_thread():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with deferred_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(WAIT_S)
    assert seen == [before]
