"""Long waits: one line says what a program waits for."""

import sys
import threading
import time

from tqdm import tqdm

PATIENCE = 60.0  # seconds


class Watch:
    """Says what a program waits for, whenever a stated time has passed.

        with Watch() as watch:
            watch("step 3")  # the program waits for this from now on

    It has its own thread, because the main thread may wait in a call that does not return.

    Args:
      patience: seconds; PATIENCE if None.
    """

    def __init__(self, patience: float | None = None) -> None:
        self._patience = PATIENCE if patience is None else patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self("the start")

    def __call__(self, what: str) -> None:
        """Wait for something else from now on."""
        self._what, self._since = what, time.monotonic()
        self._due = self._since + self._patience

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._patience / 10):
            now = time.monotonic()
            if now >= self._due:
                self._due = now + self._patience
                tqdm.write(
                    f"still waiting for {self._what}: {now - self._since:.0f} s so far",
                    file=sys.stderr,
                )
