"""Verified checkpoints: a damaged one is passed over, and so is one of another model or run."""

import hashlib
import itertools
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from jaxdiff.training import hosts, plain
from jaxdiff.training.run import first_line
from jaxdiff.training.watch import Watch

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest two and the best kept.

    One program writes to a folder (`training.lock`); any number may read beside it. Of a program of
    several processes, the first one alone reads and writes, and sends what it has read to the
    others. So the number of processes and devices may change between a save and a restore.

    Args:
      folder: their folder; a writer makes it if it is missing.
      keep: how many of the newest to keep, besides the one of the lowest loss.
      read_only: whether to change nothing in the folder. Another process may write to it.
      run: settings of the run, fit for JSON. They are saved, and a checkpoint of other ones is
        passed over.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int = 2,
        read_only: bool = False,
        run: dict[str, Any] | None = None,
    ) -> None:
        self._kept = _Kept(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self._kept,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=not read_only,  # what a kill or a full disk has left
            read_only=read_only,
            create=False,
            save_interval_steps=0 if read_only else 1,
            multiprocessing_options=MultiprocessingOptions(primary_host=0, active_processes={0})
            if jax.process_count() > 1
            else MultiprocessingOptions(),
        )
        self._folder = Path(folder).absolute()
        self._read_only = read_only
        self._run = {} if run is None else run
        if not hosts.is_first():
            return
        if not read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
        logging.getLogger("absl").addFilter(_is_news)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        if not read_only:
            for step in self._manager.all_steps():
                self._kept.losses[step] = self._loss(step)

    def save(self, step: int, tree: Any, *, loss: float) -> None:
        """Copy a pytree of arrays and keys, and write it in the background.

        Args:
          step: the number to keep it under. An existing checkpoint of this number is kept, unless
            `restore` passed it over.
          tree: the pytree.
          loss: decides which checkpoint is the best one.
        Raises:
          OSError: this one, or the one before it, cannot be written, for example to a full disk.
            The earlier ones are whole.
        """
        if not hosts.is_first():
            return
        with self._writing(), Watch(f"the checkpoint of step {step}"):
            if step in self._kept.bad:
                self._manager.delete(step)
                self._kept.bad.remove(step)
            if step in self._manager.all_steps():
                return
            about = {"sha256": digest(tree), "structure": structure(tree), "loss": float(loss)}
            about["run"] = self._run
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.map(plain.to_numpy, tree)),
                about=ocp.args.JsonSave(about),
            )
            self._kept.losses[step] = float(loss)
            self._manager.save(step, args=items, force=True)

    def restore(self, abstract: Any, *, best: bool = False) -> Any | None:
        """Read the newest sound checkpoint, or the one of the lowest loss.

        Args:
          abstract: what it must look like: a pytree of arrays or jax.ShapeDtypeStruct.
          best: whether to begin with the lowest loss instead of the newest.
        Returns:
          The pytree; None if the folder holds no checkpoint. Damaged checkpoints and those of
          another model are passed over with a warning.
        Raises:
          ValueError: none is sound; if one is of another model, the message says how it differs.
        """
        tree = self._restore(abstract, best=best) if hosts.is_first() else None
        found = hosts.from_first(tree is not None)
        return hosts.tree_from_first(tree, abstract) if found else None

    def _restore(self, abstract: Any, *, best: bool) -> Any | None:
        steps, foreign = self.steps(best=best), None
        for step in steps:
            said = "is damaged"
            try:
                tree = self._sound(step, abstract)
            except _ForeignError as error:
                tree, said, foreign = None, str(error), foreign or error
            if tree is not None:
                return tree
            # A writer may have replaced this checkpoint by a newer one meanwhile.
            if self._read_only and self.steps(best=best) != steps:
                return self._restore(abstract, best=best)
            logger.warning("checkpoint %s %s: passed over", self._folder / str(step), said)
            self._kept.bad.add(step)
        if foreign is not None:
            raise ValueError(f"checkpoint {self._folder / str(steps[0])} {foreign}") from foreign
        if steps:
            raise ValueError(f"checkpoints: none of the steps {steps} in {self._folder} is sound")
        return None

    def steps(self, *, best: bool = False) -> list[int]:
        """Return the steps that are there, the newest first; for the first process.

        Args:
          best: whether to put the lowest loss first instead.
        Returns:
          Step numbers.
        """
        with self._writing(), Watch(f"the last checkpoint in {self._folder}"):
            self._manager.wait_until_finished()
        if self._read_only:
            self._manager.reload()
        steps = sorted(self._manager.all_steps(), reverse=True)
        return sorted(steps, key=self._loss) if best else steps

    def close(self) -> None:
        """Wait for the last write; raise OSError if it has failed."""
        if not hosts.is_first():
            return
        try:
            with self._writing(), Watch(f"the last checkpoint in {self._folder}"):
                self._manager.close()
        finally:
            logging.getLogger("absl").removeFilter(_is_news)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say in one line why a write failed; tensorstore's own message takes a page."""
        try:
            yield
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None and not isinstance(error, OSError):
                raise
            reason = first_line(error) if code is None else os.strerror(int(code[1]))
            raise OSError(
                f"checkpoint: {self._folder} cannot be written to: {reason}; the "
                "checkpoints in it are whole, and the run can go on from the newest"
            ) from error

    def _sound(self, step: int, abstract: Any) -> Any | None:
        """A checkpoint's pytree; None if it cannot be read or is not what was written."""
        about = self._about(step)
        if about is None:
            return None
        _check_structure(about["structure"], structure(abstract))
        _check_run(about.get("run"), self._run)
        values = self._read(step, state=ocp.args.StandardRestore(_abstract(abstract)))
        if values is None:
            return None
        tree = jax.tree.map(plain.typed, values, abstract)
        return tree if digest(tree) == about["sha256"] else None

    def _loss(self, step: int) -> float:
        about = self._about(step)
        return math.inf if about is None else about["loss"]

    def _about(self, step: int) -> dict[str, Any] | None:
        about = self._read(step, about=ocp.args.JsonRestore())
        whole = isinstance(about, dict) and {"sha256", "structure", "loss"} <= about.keys()
        return about if whole else None

    def _read(self, step: int, **item: Any) -> Any | None:
        """One item of a checkpoint; None if it cannot be read."""
        try:
            with Watch(f"reading the checkpoint of step {step}"):
                (value,) = self._manager.restore(step, args=ocp.args.Composite(**item)).values()
        except Exception as error:  # tensorstore and json raise many kinds for damaged files
            logger.warning("checkpoint %s: %s", self._folder / str(step), first_line(error))
            return None
        return value


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of absl's log is to be shown.

    Orbax writes pages on an error that `save` or `close` raises, and warns a reader that it reads.
    """
    if "orbax" not in record.pathname:
        return True
    return not record.exc_info and "is read only" not in str(record.msg)


def digest(tree: Any) -> str:
    """Return the SHA-256 of a pytree's leaves, with their places, shapes and dtypes.

    Args:
      tree: a pytree of arrays and typed keys.
    Returns:
      64 hexadecimal digits.
    """
    total = hashlib.sha256(repr(structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        total.update(np.ascontiguousarray(plain.to_numpy(leaf)).tobytes())
    return total.hexdigest()


def structure(tree: Any) -> list[list[str]]:
    """Return what a pytree looks like, without its values.

    Args:
      tree: a pytree of arrays or jax.ShapeDtypeStruct.
    Returns:
      A list of [place, shape and dtype], fit for JSON.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [[jax.tree_util.keystr(path), f"{leaf.dtype}{list(leaf.shape)}"] for path, leaf in paths]


def _abstract(tree: Any) -> Any:
    """Shapes and dtypes of the plain arrays, to be placed on this process's first device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        like = plain.like_plain(leaf)
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=here)

    return jax.tree.map(place, tree)


class _ForeignError(ValueError):
    """A sound checkpoint that belongs to something else. The message follows its name."""


class _Kept:
    """Which checkpoints Orbax keeps: the newest, the one of the lowest loss, and the bad ones.

    A bad one does not take the place of a sound one, and it is not ours to delete. Orbax's own
    policies forget the losses of an earlier session, and then they delete nothing of it.
    """

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.losses: dict[int, float] = {}
        self.bad: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], **_: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        sound = sorted(set(steps) - self.bad)
        kept = self.bad | set(sound[-self.newest :])
        if sound:
            kept.add(min(sound, key=lambda step: (self.losses.get(step, math.inf), -step)))
        return [step in kept for step in steps]


def _check_structure(found: list[list[str]], expected: list[list[str]]) -> None:
    if found == expected:
        return
    differing = [(a, b) for a, b in itertools.zip_longest(expected, found) if a != b]
    wanted, came = (" ".join(entry) if entry else "nothing" for entry in differing[0])
    raise _ForeignError(
        f"is of another model: {len(differing)} leaves differ, "
        f"the first: expected {wanted}, got {came}"
    )


def _check_run(found: Any, expected: dict[str, Any]) -> None:
    """Require the same settings, as far as both name them: an older version may know fewer."""
    found = found if isinstance(found, dict) else {}
    for name in expected.keys() & found.keys():
        if found[name] != expected[name]:
            raise _ForeignError(
                f"is of another run: expected {name} {expected[name]}, got {found[name]}"
            )
