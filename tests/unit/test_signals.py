"""SIGTERM ends a command the way Ctrl-C does, also while an asyncio loop runs."""

import asyncio
import os
import signal

import pytest

from link.signals import raising


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
