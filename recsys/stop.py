"""Stopping in time: SIGTERM, Ctrl-C and a deadline end a run within seconds, whatever library is computing."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from recsys.errors import DeadlineError, StoppedError

GRACE_S = 4.0  # a long call into C never sees the exception; after this the process ends, which publishing survives
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGALRM: DeadlineError.exit_code}
_PART_OVER = signal.SIGUSR1
_PASSED = "the deadline passed; finished work is kept, readers keep a whole release; run again to go on"


@contextmanager
def stoppable(deadline_s: float | None = None) -> Iterator[None]:
    """Raises in the main thread on a signal or past the deadline; ends the process when that is not heard.

    Args:
        deadline_s: seconds from now; none by default.

    Raises:
        StoppedError: on SIGTERM or SIGINT, exit code 143 or 130.
        DeadlineError: the deadline passed.
    """
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    ours.setblocking(True)
    before = {number: signal.signal(number, _raise) for number in _CODES}
    wakeup = signal.set_wakeup_fd(theirs.fileno())  # written to by the system even while C code computes
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ours, ended), daemon=True, name="stop").start()
    if deadline_s is not None:
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline_s))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        ended.set()
        theirs.close()


@contextmanager
def part_of_deadline(share: float) -> Iterator[None]:
    """Gives a block a share of the time that is left; without a deadline it may take what it wants.

    Unlike the deadline itself it waits for a long call into C to return: what comes after it still has its time.

    Raises:
        DeadlineError: the share is used up.
    """
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    if not left:
        yield
        return
    is_open = True

    def over(*_: object) -> None:
        if is_open:
            raise DeadlineError(_PASSED)

    def ring() -> None:
        wait_s = share * left
        while not ended.wait(wait_s):
            signal.pthread_kill(main, _PART_OVER)
            wait_s = GRACE_S  # again, as Python drops an error that comes up while it collects garbage

    # a signal of its own: the one of the deadline is watched, and ends the process where nobody hears it
    before = signal.signal(_PART_OVER, over)
    main, ended = threading.get_ident(), threading.Event()  # only the main thread may set what a signal does
    bell = threading.Thread(target=ring, daemon=True, name="part")
    bell.start()
    try:
        yield
    finally:
        is_open = False
        ended.set()
        bell.join()
        signal.signal(_PART_OVER, before)


def _raise(number: int, _: FrameType | None) -> NoReturn:
    if number == signal.SIGALRM:
        raise DeadlineError(_PASSED)
    raise StoppedError(_CODES[signal.Signals(number)])


def _watch(ours: socket.socket, ended: threading.Event) -> None:
    with ours:
        heard = b""
        while not any(byte in list(_CODES) for byte in heard):
            heard = ours.recv(1)
            if not heard:  # the run ended
                return
    if ended.wait(GRACE_S):
        return
    with suppress(OSError):
        os.write(2, b"recsys: stopped while computing; readers keep a whole release; run again to go on\n")
    os._exit(_CODES[signal.Signals(heard[0])])
