"""SIGTERM ends a command the way Ctrl-C does, also while an asyncio loop runs."""

import asyncio
import os
import signal

import pytest

from foundation.signals import ENDING, done, held, raising, waiting


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stopped])
def test_sigterm_raises(kind: type[KeyboardInterrupt]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(kind), raising(kind):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_raises_where_ctrl_c_is_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), raising():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_loop_ends_its_tasks_in_order() -> None:
    told: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt), raising(), asyncio.Runner() as runner:
        runner.run(work())
    assert told == ["cancelled"]


# --- the first one counts ---------------------------------------------------------------------------------------------


def kill(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_closed_terminal_raises_but_not_under_nohup() -> None:
    with pytest.raises(KeyboardInterrupt), raising():
        kill(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising():
            kill(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_only_the_first_signal_raises(second: signal.Signals) -> None:
    cleaned = []

    def work() -> None:
        try:
            kill()
        finally:
            kill(second)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt), raising(ctrl_c=KeyboardInterrupt):
        work()
    assert cleaned


def test_a_signal_that_the_inner_block_has_taken_is_over_for_the_outer_one() -> None:
    with raising():
        with pytest.raises(Stopped), raising(Stopped):
            kill()
        kill()
    with pytest.raises(KeyboardInterrupt), raising():
        kill()


def test_a_signal_waits_until_results_are_written() -> None:
    written = []

    def work() -> None:
        with held():
            with held():
                kill()
            assert waiting()
            written.append(1)
        written.append(2)

    with pytest.raises(Stopped), raising(Stopped):
        work()
    assert written == [1]
    assert not waiting()


def test_a_signal_that_comes_when_all_is_done_ends_nothing() -> None:
    with raising():
        with held():
            kill()
            done()
        kill()


def test_a_failure_while_a_signal_waits_is_what_is_told() -> None:
    def fail() -> None:
        kill()
        raise OSError("full")

    with pytest.raises(OSError, match="full"), raising(), held():
        fail()


def test_an_ending_process_ignores_all_of_them() -> None:
    before = [(number, signal.getsignal(number)) for number in ENDING]
    try:
        with pytest.raises(KeyboardInterrupt), raising(for_good=True):
            kill()
        for number in ENDING:
            kill(number)
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in ENDING)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
