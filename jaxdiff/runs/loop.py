"""Train a run; a run that was stopped goes on bit for bit."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxdiff as jd
from jaxdiff import models, training
from jaxdiff.runs import build, checks, datasets, diagnosis, folders, memory, sizes
from jaxdiff.runs.config import Config
from jaxdiff.runs.seeds import key_of

EVAL_EXAMPLES = 512


def prepare(config: Config) -> tuple[Config, datasets.Dataset, models.Model]:
    """Check a configuration; return it whole, with the data and the network that it asks for."""
    checks.check(config)
    dataset = datasets.of(config)
    if config.folder is not None:
        # The run finds its data again from any other folder.
        config = dataclasses.replace(config, folder=config.folder.expanduser().absolute())
    config = sizes.fill(config, dataset.event_shape)
    checks.check_network(config, dataset)
    return config, dataset, build.make_model(config, dataset)


def train(config: Config) -> int:
    """Train a run until its last step, or until the user stops it (Ctrl-C, SIGTERM).

    An existing run goes on from its last checkpoint, bit for bit as if it had never stopped. Only
    one process at a time trains in a folder.

    Args:
      config: the configuration of the run; config.run is its folder.
    Returns:
      The number of updates that the run has had.
    Raises:
      ValueError: the configuration is not valid, the run was begun with another one, or an update
        needs more memory than is left.
      FileNotFoundError: the data set is not prepared.
      BlockingIOError: another process trains in the folder.
      FloatingPointError: the loss is not finite.
    """
    config, dataset, model = prepare(config)
    with training.lock(config.run):
        return go_on(config, dataset, model)[1]


def go_on(config: Config, dataset: datasets.Dataset, model: models.Model) -> tuple[int, int]:
    """Train a run from its last checkpoint; return its first and its last step.

    The caller holds the lock of the folder.
    """
    folders.check_data(config.run, dataset.facts)
    before = folders.check_same(config)
    run = folders.of_run(config)
    with training.Checkpoints(config.run / "checkpoints", run=run) as checkpoints:
        state = checkpoints.restore(build.abstract_state(config, model, dataset.event_shape))
        if state is None:
            state = jax.jit(lambda: build.initial_state(config, model, dataset.event_shape))()
        first = int(state.step)
        if first < config.steps:
            if before is not None and (line := folders.what_changes(before, config, first)):
                print(line)
            state = loop(config, dataset, model, state, checkpoints=checkpoints)
    return first, int(state.step)


def loop(
    config: Config,
    dataset: datasets.Dataset,
    model: models.Model,
    state: training.TrainState,
    *,
    checkpoints: training.Checkpoints,
) -> training.TrainState:
    """Run the updates from the state's step on; log, evaluate and save; return the saved state."""
    devices, first = jax.devices(), int(state.step)
    batch = dataset.batches(config.batch_size, config.seed, flip=config.flip)
    at_once, example = config.at_once, batch(first)
    if at_once > 1:
        example = jax.tree.map(lambda leaf: np.stack([leaf] * at_once), example)
    # An uneven batch is refused before anything is written.
    example = training.shard(example, devices, stacked=at_once > 1)
    step = training.make_step(
        build.make_loss(config, model, dataset),
        build.make_optimizer(config),
        ema_decay=config.optimizer.ema_decay,
        remember=jd.losses.record_terms if build.remembers(config) else None,
        accumulate=config.accumulate,
    )
    replicated = training.replicate(state, devices, sharded=config.shard_state)
    evaluate = held_out_loss(config, dataset, model)
    with training.Watch() as watch:
        watch("the program of an update, which is compiled")
        mapped = [
            training.map_step(step, devices, sharded=config.shard_state, at_once=num)
            for num in (1, at_once)
        ]
        program = memory.fitting(mapped[1], replicated, example, devices=jax.local_devices())
    num = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"network: {sizes.describe(config, dataset.event_shape)}; {num:,} parameters; "
        f"{memory.in_use(program, jax.local_devices())}"
    )
    folders.save_facts(config.run, dataset.facts)
    folders.save(config)
    with training.stopping() as stop, training.Log(config.run, step=first) as log:
        explain = partial(explained, config, step, batch)
        keep = Keeper(config, log, checkpoints, evaluate, explain, step=first)
        training.run_updates(
            program if at_once == 1 else mapped[0],
            replicated,
            batch,
            range(first, config.steps),
            devices=devices,
            at_once=at_once,
            several=program,
            after=keep,
            stop=stop,
            name=config.run.name,
        )
    return keep.state


class Keeper:
    """Logs, evaluates and saves a run after its updates; `state` is the last one saved."""

    def __init__(
        self,
        config: Config,
        log: training.Log,
        checkpoints: training.Checkpoints,
        evaluate: Callable[[Any], float],
        explain: Callable[[Any], str],
        *,
        step: int,
    ) -> None:
        self.config, self.log, self.checkpoints = config, log, checkpoints
        self.evaluate, self.explain = evaluate, explain
        self.state: Any = None
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measure the rate from this step on."""
        self.began, self.since = time.monotonic(), step

    def __call__(self, progress: training.Progress) -> None:
        config = self.config
        if progress.due(config.log_every):
            scalars = progress.scalars()
            self.stop_if_lost(progress, scalars["in_a_row"])
            examples = (progress.step - self.since) * config.batch_size
            rate = examples / (time.monotonic() - self.began)
            news = {"loss": f"{scalars['loss']:.4f}", "examples_per_s": f"{rate:.0f}"}
            if scalars["skipped"]:
                news["skipped"] = f"{scalars['skipped']:.0f}"
            progress.bar.set_postfix(news)
            self.log.write(progress.step, **scalars, examples_per_second=rate)
            self.restart(progress.step)
        if progress.due(config.eval_every) or progress.stopped:
            self.save(progress)
            self.restart(progress.step)  # the rate counts training only

    def save(self, progress: training.Progress) -> None:
        """Evaluate the averaged parameters and write a checkpoint, unless the run has diverged."""
        self.stop_if_lost(progress, progress.scalars()["in_a_row"])
        progress.watch(f"the held-out loss and the checkpoint of step {progress.step}")
        state = progress.state()
        loss = float(self.evaluate(state.ema_params))
        require_finite(progress.step, loss)
        self.log.write(progress.step, held_out_loss=loss)
        self.checkpoints.save(progress.step, state, loss=loss)
        self.state = state

    def stop_if_lost(self, progress: training.Progress, in_a_row: float) -> None:
        """Stop a run whose updates are skipped, one after the other."""
        if in_a_row < self.config.most_skipped:
            return
        progress.watch("the reason for the skipped updates")
        raise FloatingPointError(
            f"the last {in_a_row:.0f} updates to step {progress.step} were skipped, because they "
            f"were not finite: {self.explain(progress.state())}; try a lower "
            "--optimizer.learning-rate"
        )


def explained(config: Config, step: training.Step, batch: Callable[[int], Any], state: Any) -> str:
    """What is not finite in the last update of a state."""
    return diagnosis.explain(config, step, state, batch(int(state.step) - 1))


def require_finite(step: int, loss: float) -> None:
    """Stop before a checkpoint keeps a run that has diverged."""
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"loss is {loss} at step {step}: try a lower --optimizer.learning-rate"
        )


def held_out_loss(
    config: Config, dataset: datasets.Dataset, model: models.Model
) -> Callable[[Any], float]:
    """The held-out loss of the averaged parameters, without dropout, with noise that never changes.

    The value is the mean over all rows, whatever the size of the chunks, because the time and noise
    of a row depend on its number only. A chunk is a device's part of a training batch.
    """
    loss = build.make_loss(config, model, dataset, training_time=False)
    num = min(EVAL_EXAMPLES, len(dataset.splits["test"].images))
    key = key_of(config.seed, "held out")
    keys, size = (
        jax.random.split(key, num),
        min(num, max(1, config.batch_size // jax.local_device_count())),
    )

    @jax.jit
    def losses(
        params: Any, first: Any, keys: jax.Array, batch: tuple[jax.Array, jax.Array | None]
    ) -> jax.Array:
        return loss(params, training.Rows(key, keys, first, num), batch)

    def evaluate(params: Any) -> float:
        def chunk(index: np.ndarray) -> jax.Array:
            return losses(params, index[0], keys[index], dataset.examples("test", index))

        return float(np.mean(memory.in_chunks(chunk, size, np.arange(num))))

    return evaluate
