"""How a command without a loop is ended by Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import socket
import threading

import pytest

from receiver.cli.signals import SIGNALS, Stop


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_heard_at_the_next_wait(number: signal.Signals) -> None:
    """Between two waits nothing is cut off; the next wait does not even begin."""
    reached = []
    with Stop() as stop:
        with stop.heard():
            reached.append("waited")
        signal.raise_signal(number)
        reached.append("went on")
        with pytest.raises(KeyboardInterrupt), stop.heard():
            reached.append("never")
    assert reached == ["waited", "went on"]


def test_a_signal_is_heard_at_once_while_waiting() -> None:
    """What is waited for is left."""
    with Stop() as stop, pytest.raises(KeyboardInterrupt), stop.heard():
        signal.raise_signal(signal.SIGINT)


def test_the_second_signal_is_heard_wherever_it_comes() -> None:
    """Whoever asks twice does not want to wait for the next wait."""
    with Stop():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_afterwards_signals_are_as_before() -> None:
    """Also where it ended by one."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), Stop() as stop, stop.heard():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_ends_no_wait_is_heard_all_the_same() -> None:
    """It came just before the wait began, or at another thread: the kernel ends nothing, and it is heard soon."""
    ours, theirs = socket.socketpair()
    late = threading.Timer(20, theirs.send, [b"late"])
    # Sent to another thread the signal is taken there, and the wait here goes on as if it had come before it.
    asking = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    with ours, theirs, Stop() as stop:
        late.start()
        asking.start()
        with pytest.raises(KeyboardInterrupt), stop.heard():
            ours.recv(4)
        assert late.is_alive(), "it was heard only once the wait was over"
        late.cancel()
