"""Long waits: a line says what a program waits for, and every wait has an end."""

import os
import sys
import threading
import time

from tqdm import tqdm

NEWS = 60.0  # seconds after which a line says what is waited for
IDLE = 0.01  # a process that uses a smaller share of one processor computes nothing
STOPPED = 5  # a look that comes after more periods than this: the program was stopped meanwhile
GAVE_UP = 75  # exit status of a program that gave a wait up: the same command may go on later

# Seconds after which a wait is given up; `jaxdiff COMMAND --patience` sets it.
patience = 3600.0


class Watch:
    """Says what a program waits for, again and again, and ends the program after too long a wait.

        with Watch() as watch:
            watch("step 3")  # the program waits for this from now on

    It has its own thread, because the main thread may wait in a call that does not return. For the
    same reason the end is the process's: nothing else of it would run. Checkpoints that were saved
    are whole, so the run can go on. The time in which a program is stopped (Ctrl-Z) does not count.

    Args:
      what: what the program waits for at first.
      news: seconds between two lines; NEWS if None.
      limit: seconds of one wait after which the program ends with status GAVE_UP; `patience` if
        None.
      idle: whether to count only the time in which no thread of the process computes. Work may
        then take as long as it needs.
    """

    def __init__(
        self,
        what: str = "the start",
        *,
        news: float | None = None,
        limit: float | None = None,
        idle: bool = False,
    ) -> None:
        self._idle = idle
        self._news = NEWS if news is None else news
        self._limit = patience if limit is None else limit
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self(what)

    def __call__(self, what: str) -> None:
        """Wait for something else from now on."""
        self._what, self._since = what, time.monotonic()
        self._due = self._since + self._news

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        period = min(self._news, self._limit) / 10
        looked, used = time.monotonic(), time.process_time()
        while not self._over.wait(period):
            now, computed = time.monotonic(), time.process_time()
            passed = now - looked
            if passed > STOPPED * period:
                self._since, self._due = self._since + passed, self._due + passed
            if self._idle and computed - used > IDLE * passed:
                self(self._what)
            looked, used = now, computed
            waited = now - self._since
            if waited >= self._limit:
                line = f"error: gave up after {waited:.0f} s of waiting for {self._what}; "
                line += "what was saved is whole: repeat the command to go on (--patience)"
                os.write(2, f"\n{line}\n".encode())  # no lock of another thread is in the way
                os._exit(GAVE_UP)
            if now >= self._due:
                self._due = now + self._news
                tqdm.write(
                    f"still waiting for {self._what}: {waited:.0f} s so far", file=sys.stderr
                )
