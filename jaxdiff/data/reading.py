"""Reading ahead: the batches of the next steps are made in threads while a step is computed."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, SupportsIndex, TypeVar

from jaxdiff import _checks

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `ahead` returns: the same function of the step, whose next values are on their way."""

    def __init__(self, batch: Callable[[int], T], depth: int, workers: int) -> None:
        self._batch, self._depth = batch, depth
        self._coming: dict[int, Future[T]] = {}
        self._lock = threading.Lock()
        self._closed = False
        # Idle threads end when nobody holds the executor any more, and at the program's end.
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="jaxdiff-ahead")

    def __call__(self, step: SupportsIndex) -> T:
        """Return the batch of a step, and begin with those of the next; any step may be asked."""
        step = step.__index__()
        with self._lock:
            here = self._move(range(step, step + 1 + self._depth))
        # What nobody makes yet is made here: the threads may be busy with other steps.
        return self._batch(step) if here is None or here.cancel() else here.result()

    def _move(self, wanted: range) -> "Future[T] | None":
        """Forget what is not wanted, begin with what is; return the first of it if it is made."""
        for step in [step for step in self._coming if step not in wanted]:
            self._coming.pop(step).cancel()
        first = self._coming.pop(wanted[0], None)
        for step in wanted[1:]:
            if step not in self._coming and not self._closed:
                self._coming[step] = self._workers.submit(self._batch, step)
        return first

    def close(self) -> None:
        """End the threads after the batches in hand; a later call makes its batch by itself."""
        with self._lock:
            self._closed = True
            self._coming.clear()
        self._workers.shutdown(cancel_futures=True)

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ahead(batch: Callable[[int], T], *, depth: int = 4, workers: int = 2) -> Ahead[T]:
    """Make the batches of the next steps in threads.

        ahead(batch)(step) = batch(step)

    for every step in any order, because the batch is a function of its step alone. At most `depth`
    batches beside the caller's are in memory. An error of batch(step) is raised where that step is
    asked for. The threads end with the object, or with the program. `close`, or a with statement,
    ends them at once.

    Args:
      batch: step -> batch; several threads call it at once, also for steps after the last.
      depth: how many steps are made ahead, at least 1.
      workers: number of threads, at least 1. Each makes a whole batch.
    Returns:
      Ahead: a function of the step.
    Raises:
      ValueError: depth or workers < 1.
      TypeError: depth or workers is not an int.
    """
    _checks.positive_int("depth", depth)
    _checks.positive_int("workers", workers)
    return Ahead(batch, depth, workers)
