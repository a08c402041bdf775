"""The progress bar of a compiled scan: each step calls back to the host."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import jax

_bars: list[Any] = []
_lock = threading.Lock()


@contextlib.contextmanager
def bar(num_steps: int) -> Iterator[None]:
    """Show a bar of so many steps while a scan runs in this context."""
    from tqdm import tqdm

    with tqdm(total=num_steps, desc="sampling", unit="step") as shown:
        _bars.append(shown)
        try:
            yield
            jax.effects_barrier()  # the last steps have called back
        finally:
            _bars.remove(shown)


def reached(step: Any, _: Any) -> None:
    """Move the newest bar to a step; the calls may come in another order."""
    with _lock:
        if _bars and int(step) > _bars[-1].n:
            _bars[-1].update(int(step) - _bars[-1].n)
