"""Train a diffusion model; the same command again goes on with a run that was stopped.

A run whose updates take more memory than there is left is refused before its first step;
JAXDIFF_ANYWAY=1 insists on it.
"""

import _process

_process.configure()

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import _cli
import _config
import _datasets
import _memory
import _objective
import _pictures
import _sampling
import _watch
import jax
import numpy as np
from tqdm import tqdm

import jaxdiff as jd
from jaxdiff import models, training

EVAL_EXAMPLES = 512
PICTURES = ("loss.png", "forward.png", "samples.png", "reverse.gif")


class Stop:
    """Whether the user has asked to stop: Ctrl-C finishes the step in hand, a second one is an ordinary interrupt."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catch Ctrl-C and a scheduler's SIGTERM for the time of the loop."""
    stop = Stop()
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(config: _config.Config) -> bool:
    """Bring a run to its last step; False if it was stopped on the way."""
    _config.check(config)
    dataset = _datasets.load(config)
    _config.check_network(config, dataset)
    model = _config.make_model(config, dataset)
    with training.lock(config.run):
        return _train(config, dataset, model)


def _train(config: _config.Config, dataset: _datasets.Dataset, model: models.Model) -> bool:
    before = _config.check_same(config)
    with training.Checkpoints(config.run / "checkpoints") as checkpoints:
        state = checkpoints.restore(_config.abstract_state(config, model, dataset.event_shape))
        if state is None:
            state = jax.jit(lambda: _config.initial_state(config, model, dataset.event_shape))()
        step = int(state.step)
        if step < config.steps:
            if before is not None and (line := _config.what_changes(before, config, step)):
                print(line)
            state = loop(config, dataset, model, state, checkpoints)
            for name in PICTURES:  # of a run that has gone on for longer, they show what it was
                (config.run / name).unlink(missing_ok=True)
        else:
            print(f"{config.run} is trained already ({step} steps)")
    if int(state.step) < config.steps:
        command = shlex.join([sys.executable, *sys.argv])
        print(
            f"stopped at step {int(state.step)} of {config.steps}, saved; to go on, repeat:\n  {command}"
        )
        return False
    if not all((config.run / name).exists() for name in PICTURES):
        pictures(config, dataset)
    return True


def loop(
    config: _config.Config,
    dataset: _datasets.Dataset,
    model: models.Model,
    state: training.TrainState,
    checkpoints: training.Checkpoints,
) -> training.TrainState:
    """The updates from the state's step on, with log, evaluation and checkpoints; returns the last state saved."""
    devices = jax.local_devices()
    batches = dataset.batches(config.batch_size, config.seed)
    training.shard(
        batches(0), len(devices)
    )  # an uneven batch is refused before anything is written
    step = training.make_step(
        _objective.make_loss(config, model, dataset),
        _config.make_optimizer(config),
        ema_decay=config.optimizer.ema_decay,
        remember=jd.losses.record_terms if _config.remembers(config) else None,
    )
    first = int(state.step)
    replicated, evaluate = training.replicate(state, devices), held_out_loss(config, dataset, model)
    example = training.shard(batches(first), len(devices))
    with _watch.Watch() as watch:
        watch("the program of an update, which is compiled")
        update = _memory.fitting(
            training.pmap_step(step, devices), replicated, example, devices=devices
        )
    _config.save(config)
    bar = tqdm(total=config.steps, initial=first, unit="step", desc=config.run.name)
    began, examples = time.monotonic(), 0
    metrics: dict[str, jax.Array] = {}
    with (
        stopping() as stop,
        training.Log(config.run, step=first) as log,
        bar,
        _watch.Watch() as watch,
    ):
        for n in range(first, config.steps):
            batch = training.shard(batches(n), len(devices))
            # The next batch is made meanwhile, but no update is sent before the last is done: CPU
            # devices that wait for each other in many at once run out of threads.
            jax.block_until_ready(metrics)
            watch(f"step {n + 1} of {config.steps} on {len(devices)} devices")
            replicated, metrics = update(replicated, batch)
            done, examples = n + 1, examples + config.batch_size
            bar.update()
            if done % config.log_every == 0 or done == config.steps:
                scalars = {name: float(value) for name, value in metrics.items()}
                rate = examples / (time.monotonic() - began)
                bar.set_postfix(loss=f"{scalars['loss']:.4f}", examples_per_s=f"{rate:.0f}")
                log.write(done, **scalars, examples_per_second=rate)
                began, examples = time.monotonic(), 0
            stopped = stop.asked  # read once: a signal that comes later is the next step's
            if done % config.eval_every == 0 or done == config.steps or stopped:
                require_finite(done, float(metrics["loss"]))
                watch(f"the held-out loss and the checkpoint of step {done}")
                state = training.unreplicate(replicated)
                loss = float(evaluate(state.ema_params))
                require_finite(done, loss)
                log.write(done, held_out_loss=loss)
                checkpoints.save(done, state, loss=loss)
                began, examples = time.monotonic(), 0  # what this took is no training
            if stopped:
                break
    return state


def require_finite(step: int, loss: float) -> None:
    """Stop before a checkpoint keeps a run that has diverged."""
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"loss is {loss} at step {step}: try a lower --optimizer.learning-rate"
        )


def held_out_loss(
    config: _config.Config, dataset: _datasets.Dataset, model: models.Model
) -> Callable[[Any], float]:
    """The loss of the averaged parameters on held-out examples, whole (no dropout), with noise that never changes.

    A device's share of a batch at a time: the value is the mean over all rows, whatever the size of
    the chunks, since a row's time and noise depend on its number in the whole.
    """
    loss = _objective.make_loss(config, model, dataset, training_time=False)
    num = min(EVAL_EXAMPLES, len(dataset.splits["test"].images))
    key = _config.key_of(config.seed, "held out")
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

        return float(np.mean(_memory.in_chunks(chunk, size, np.arange(num))))

    return evaluate


def pictures(config: _config.Config, dataset: _datasets.Dataset) -> None:
    """Leave what a person looks at first."""
    _pictures.loss_curve(training.read_log(config.run), config.run / "loss.png")
    real, _ = dataset.head("train", 64)
    run = _sampling.load_run(config.run)
    _pictures.forward(run.schedule, dataset, real, config.run / "forward.png")
    labels = None if run.model.num_classes is None else np.arange(64) % run.model.num_classes
    samples = _sampling.generate(run, 64, labels=labels, save_every=2, batch_size=config.batch_size)
    _pictures.samples(dataset, samples.x, real, config.run / "samples.png")
    _pictures.reverse(dataset, samples.trajectory, config.run / "reverse.gif")


def main() -> None:
    config = _config.parse_config(__doc__ or "")
    sys.exit(0 if train(config) else 130)


if __name__ == "__main__":
    with _cli.one_line_errors():
        main()
