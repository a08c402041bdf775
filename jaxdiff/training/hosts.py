"""Several processes, one program: the first process reads and writes, and the others follow it.

JAX runs one process a host (or more), and a mapped step runs on the devices of all of them. The
functions here are what the processes tell each other besides. With one process they do nothing.
"""

import io
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its barrier is the one that needs no collective of devices
from jax.experimental import multihost_utils

from jaxdiff.training import plain, watch
from jaxdiff.training.watch import Watch

T = TypeVar("T")


def is_first() -> bool:
    """Return whether this process is the first one, which alone writes.

    Returns:
      Whether.
    """
    return jax.process_index() == 0


def meet() -> None:
    """Wait until every process has come here.

    The collectives of CPUs (gloo) give up where a process is 30 s behind the others, as it is where
    it compiles, or saves a checkpoint. So processes with CPU devices meet before each of them.

    Raises:
      ConnectionError: a process does not come within `watch.patience`.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    with Watch("the other processes"):
        try:
            client.wait_at_barrier(f"jaxdiff-{next(_meetings)}", int(1000 * watch.patience))
        except jax.errors.JaxRuntimeError as error:
            raise ConnectionError(
                f"another process has ended or does not answer: {str(error).splitlines()[0]}"
            ) from error


_meetings = itertools.count()


def any_of(flag: bool) -> bool:
    """Return whether a flag is set on any process; every process has to ask.

    Args:
      flag: this process's.
    Returns:
      The same answer on every process.
    """
    return b"1" in gather(b"1" if flag else b"")


def gather(payload: bytes) -> list[bytes]:
    """Return what each process gives, in their order; every process has to call it.

    Args:
      payload: this process's, of any length.
    Returns:
      The same list on every process.
    """
    if jax.process_count() == 1:
        return [payload]
    meet()
    with Watch("the other processes"):
        own = np.asarray(len(payload), np.int32)
        sizes = np.atleast_1d(multihost_utils.process_allgather(own))
        padded = np.zeros(max(1, sizes.max()), np.uint8)
        padded[: len(payload)] = np.frombuffer(payload, np.uint8)
        rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def from_first(value: T) -> T:
    """Return the first process's value on every process, which has to call it.

    Args:
      value: this process's; anything that JSON can hold.
    Returns:
      The first one's.
    """
    if jax.process_count() == 1:
        return value
    return json.loads(gather(json.dumps(value).encode() if is_first() else b"")[0])


def tree_from_first(tree: Any, abstract: Any) -> Any:
    """Return the first process's arrays on every process, bit for bit.

    Args:
      tree: the first process's pytree of arrays and typed keys; not read elsewhere.
      abstract: what it looks like, a pytree of arrays or jax.ShapeDtypeStruct.
    Returns:
      The pytree, on the first device of each process.
    """
    if jax.process_count() == 1:
        return tree

    def send(leaf: Any, like: Any) -> jax.Array:
        shape, dtype = plain.like_plain(like).shape, plain.like_plain(like).dtype
        bits = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
        if is_first():
            bits = np.ascontiguousarray(plain.to_numpy(leaf)).reshape(-1).view(np.uint8)
        # The bits are sent, because a sum of floats would lose the sign of a zero.
        sent = np.asarray(multihost_utils.broadcast_one_to_all(bits), np.uint8)
        return plain.typed(sent.view(dtype).reshape(shape), like)

    meet()
    with Watch("the state that the first process has read"):
        return jax.tree.map(send, tree if is_first() else abstract, abstract)


def packed(parts: Sequence[dict[str, Any]]) -> bytes:
    """Return dicts of arrays, or of values that JSON can hold, as bytes.

    Args:
      parts: the dicts.
    Returns:
      Bytes for `unpacked`.
    """
    arrays: dict[str, np.ndarray] = {}
    texts = []
    for n, part in enumerate(parts):
        of_arrays = any(isinstance(value, np.ndarray | np.generic) for value in part.values())
        texts.append(None if of_arrays else part)
        if of_arrays:
            arrays |= {f"{n}/{name}": np.asarray(value) for name, value in part.items()}
    arrays["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    with io.BytesIO() as stream:
        np.savez(stream, allow_pickle=False, **arrays)
        return stream.getvalue()


def unpacked(payload: bytes) -> list[dict[str, Any]]:
    """Return the dicts that `packed` has made bytes of; nothing is unpickled.

    Args:
      payload: the bytes; b"" holds no dicts.
    Returns:
      The dicts.
    """
    if not payload:
        return []
    with np.load(io.BytesIO(payload), allow_pickle=False) as file:
        parts = json.loads(file["texts"].tobytes())
        found: list[dict[str, Any]] = [{} if part is None else part for part in parts]
        for name in file.files:
            if name != "texts":
                number, field = name.split("/", 1)
                found[int(number)][field] = file[name]
    return found
