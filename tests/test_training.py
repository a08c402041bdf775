"""Training: the step on any number of devices, exact resume, verified checkpoints, the log."""

import contextlib
import errno
import gc
import json
import logging
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import filelock
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import rejects, slow
from tensorboardX.proto.event_pb2 import Event, SessionLog

import jaxdiff as jd
from jaxdiff import training

COSINE = jd.schedules.cosine()


def apply(
    params: Any, x: jax.Array, t: jax.Array, label: Any = None, *, dropout_key: Any = None
) -> jax.Array:
    """A linear network with a bias for each of three classes and the null class, and a dropout of its own."""
    h = x @ params["w"] + t[:, None] * params["b"][None]
    if label is not None:
        h = h + params["label"][label]
    return h * jax.vmap(lambda k: jax.random.bernoulli(k, 0.9, h.shape[1:]))(dropout_key)


def make_params() -> dict[str, jax.Array]:
    key = jax.random.key(5)
    return {"w": jax.random.normal(key, (4, 4)) / 2, "b": jnp.ones(4) / 10, "label": jnp.eye(4)}


OPTIMIZER = training.make_optimizer(1e-2, num_steps=20, warmup=3)
LOSS = training.denoising_loss(apply, COSINE, prediction="v", num_classes=3, label_drop=0.3)


def batch(step: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(step)
    return random.normal(size=(size, 4)).astype(np.float32), random.integers(0, 3, size).astype(
        np.int32
    )


def run(num_devices: int, steps: range, state: Any = None) -> tuple[Any, list[float]]:
    state = (
        training.init_state(jax.random.key(1), make_params(), OPTIMIZER) if state is None else state
    )
    update = training.map_step(training.make_step(LOSS, OPTIMIZER), jax.devices()[:num_devices])
    replicated, losses = training.replicate(state, jax.devices()[:num_devices]), []
    for n in steps:
        replicated, metrics = update(
            replicated, training.shard(batch(n), jax.devices()[:num_devices])
        )
        losses.append(float(metrics["loss"]))
    assert_same_on_every_device((replicated, metrics))
    return training.unreplicate(replicated), losses


def assert_same_on_every_device(tree: Any) -> None:
    for leaf in jax.tree.leaves(jax.tree.map(plain, tree)):
        for shard in leaf.addressable_shards[1:]:
            np.testing.assert_array_equal(shard.data, leaf.addressable_data(0))


def test_the_same_gradient_on_any_number_of_devices() -> None:
    """Noise, times, dropped labels and dropout belong to a row of the whole batch: only the order of sums differs."""
    results = {n: run(n, range(5)) for n in (1, 2, 4)}
    for n in (2, 4):
        np.testing.assert_allclose(results[n][1], results[1][1], rtol=1e-5)
        # Adam divides by the root of the second moment: a rounding of a gradient near zero can show more.
        chex.assert_trees_all_close(results[n][0].params, results[1][0].params, atol=1e-5)


def test_gradients_themselves_agree() -> None:
    state = training.init_state(jax.random.key(1), make_params(), optax.sgd(1.0))
    moved = []
    for n in (1, 2, 4):
        update = training.map_step(training.make_step(LOSS, optax.sgd(1.0)), jax.devices()[:n])
        after, _ = update(
            training.replicate(state, jax.devices()[:n]),
            training.shard(batch(0), jax.devices()[:n]),
        )
        moved.append(jax.tree.map(jnp.subtract, state.params, training.unreplicate(after).params))
    for other in moved[1:]:
        chex.assert_trees_all_close(
            other, moved[0], rtol=1e-5, atol=1e-6
        )  # the order of a sum of 8


@pytest.mark.parametrize("num_devices", [slow(1), 2])
def test_a_gradient_in_parts_is_the_whole_one(num_devices: int) -> None:
    """Noise, times, labels and dropout belong to a row of the whole batch, whatever part it is in."""
    devices, moved = jax.devices()[:num_devices], []
    state = training.init_state(jax.random.key(1), make_params(), optax.sgd(1.0))
    for parts in (1, 2, 4):
        step = training.make_step(LOSS, optax.sgd(1.0), accumulate=parts)
        update = training.map_step(step, devices)
        after, metrics = update(
            training.replicate(state, devices), training.shard(batch(0), devices)
        )
        params = training.unreplicate(after).params
        moved.append((jax.tree.map(jnp.subtract, state.params, params), metrics["loss"]))
    for other in moved[1:]:
        chex.assert_trees_all_close(other, moved[0], rtol=1e-5, atol=1e-6)  # the order of a sum


def test_a_divided_state_is_updated_like_a_whole_one() -> None:
    """Moments and averages over four devices: the same losses, and each device holds its part."""
    devices = jax.devices()
    step = training.make_step(LOSS, OPTIMIZER)
    state = training.init_state(jax.random.key(1), make_params(), OPTIMIZER)
    update = training.map_step(step, devices, sharded=True)
    divided = training.replicate(state, devices, sharded=True)
    whole, losses = run(4, range(5))
    for n in range(5):
        divided, metrics = update(divided, training.shard(batch(n), devices))
        np.testing.assert_allclose(metrics["loss"], losses[n], rtol=1e-6)
    moments = [leaf for leaf in jax.tree.leaves(divided.opt_state) if leaf.shape == (4, 4)]
    assert len(moments) == 4
    for leaf in (*moments, divided.ema_params["w"]):
        assert [part.data.size for part in leaf.addressable_shards] == [4] * 4
    assert divided.params["w"].is_fully_replicated
    after = training.unreplicate(divided)
    chex.assert_trees_all_close(after.params, whole.params, atol=1e-6)
    chex.assert_trees_all_close(after.ema_params, whole.ema_params, atol=1e-6)


def test_an_update_that_is_not_finite_is_skipped() -> None:
    """It changes the counts alone; the next one goes on; a row in the batch decides it on every device."""

    def loss(params: Any, rows: training.Rows, batch: jax.Array) -> jax.Array:
        return params["w"] * batch

    devices = jax.devices()[:2]
    update = training.map_step(training.make_step(loss, optax.adam(0.1)), devices)
    state = training.replicate(
        training.init_state(jax.random.key(1), {"w": jnp.ones(())}, optax.adam(0.1)), devices
    )
    seen = []
    for bad in (False, True, True, False):
        before = training.unreplicate(state)
        rows = np.array([1.0, 1.0, 1.0, np.inf if bad else 1.0], np.float32)
        state, metrics = update(state, training.shard(rows, devices))
        after = training.unreplicate(state)
        assert int(after.step) == int(before.step) + 1
        same = jax.tree.map(np.array_equal, after[1:4], before[1:4])
        assert all(jax.tree.leaves(same)) == bad
        seen.append((int(metrics["skipped"]), int(metrics["in_a_row"])))
    assert seen == [(0, 0), (1, 1), (2, 2), (2, 0)]


def test_rows_are_split_in_order() -> None:
    np.testing.assert_array_equal(training.split(np.arange(6), 3), [[0, 1], [2, 3], [4, 5]])


def test_training_lowers_the_loss() -> None:
    optimizer = training.make_optimizer(0.05, num_steps=100, warmup=3)
    state = training.init_state(jax.random.key(1), make_params(), optimizer)
    update = training.map_step(training.make_step(LOSS, optimizer), jax.devices()[:2])
    replicated, losses = training.replicate(state, jax.devices()[:2]), []
    for _ in range(100):
        replicated, metrics = update(replicated, training.shard(batch(0, 64), jax.devices()[:2]))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.slow
def test_memory_is_one_on_any_number_of_devices() -> None:
    """Steps are drawn by what they cost last, over the rows of the whole batch: the histories differ by rounding."""

    def make_chain(params: Any, *, label: Any, dropout_key: Any) -> jd.Chain:
        assert label is None  # an unconditional network's, whatever the batch
        assert dropout_key is None
        denoiser = jd.make_denoiser(lambda x, t: x @ params["w"], COSINE, "v")
        return jd.Chain(
            denoiser, COSINE, jnp.array([1.0, 0.6, 0.3, 0.0]), variance="large", ends_clean=True
        )

    loss = training.chain_loss(jd.losses.vlb, make_chain, time_sampling="loss_aware", dropout=False)
    step = training.make_step(loss, OPTIMIZER, remember=jd.losses.record_terms)
    histories = []
    for n in (1, 2, 4):
        memory = jd.losses.term_history(3, size=2)
        state = training.init_state(jax.random.key(1), make_params(), OPTIMIZER, memory)
        update, replicated = (
            training.map_step(step, jax.devices()[:n]),
            training.replicate(state, jax.devices()[:n]),
        )
        for k in range(4):
            replicated, _ = update(replicated, training.shard(batch(k), jax.devices()[:n]))
        assert_same_on_every_device(replicated.memory)
        histories.append(training.unreplicate(replicated).memory)
    assert int(histories[0].counts.sum()) == 4 * 8
    assert int(histories[0].counts.min()) >= 2  # full: the last steps were drawn by it
    for other in histories[1:]:
        np.testing.assert_array_equal(other.counts, histories[0].counts)
        np.testing.assert_allclose(
            other.losses, histories[0].losses, rtol=1e-4
        )  # the order of a sum, through Adam


def test_resume_is_exact(tmp_path: Path) -> None:
    """Killed at step 7 and resumed from the checkpoint of step 5: bit for bit the uninterrupted run."""
    whole, losses = run(2, range(12))
    state, _ = run(2, range(5))
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, loss=1.0)
    run(2, range(5, 7), state)  # what the kill loses
    with training.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
    resumed, rest = run(2, range(int(restored.step), 12), restored)
    assert rest == losses[5:]
    chex.assert_trees_all_equal(jax.tree.map(plain, resumed), jax.tree.map(plain, whole))


def test_the_loop_stops_after_the_step_in_hand_and_goes_on_bit_for_bit() -> None:
    """Ctrl-C or SIGTERM, on two devices; the handlers of before are there again afterwards."""
    step, devices = training.make_step(LOSS, OPTIMIZER), jax.devices()[:2]
    begin = training.init_state(jax.random.key(1), make_params(), OPTIMIZER)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    losses: list[float] = []

    def fit(state: Any, stop_at: int = 0, number: int = signal.SIGINT) -> Any:
        def after(progress: training.Progress) -> None:
            losses.append(float(progress.metrics["loss"]))
            assert progress.due(4) == (progress.step in (4, 6))
            assert int(progress.state().step) == progress.step
            if progress.step == stop_at:
                os.kill(os.getpid(), number)

        with training.stopping() as stop:
            return training.fit(step, state, batch, 6, devices=devices, after=after, stop=stop)

    whole, expected = run(2, range(6))
    parts = fit(begin, 2, signal.SIGINT)
    assert int(parts.step) == 3  # the signal came when step 2 was done with
    parts = fit(fit(parts, 4, signal.SIGTERM))
    chex.assert_trees_all_equal(jax.tree.map(plain, whole), jax.tree.map(plain, parts))
    assert losses == expected
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert fit(parts).step == 6  # nothing is left to do
    assert losses == expected


def plain(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_average_warms_up() -> None:
    """After one step the average is nearly the new parameters; the decay rises to its final value."""
    state = training.init_state(jax.random.key(1), {"w": jnp.zeros(())}, optax.sgd(1.0))
    step = training.make_step(
        lambda params, rows, batch: params["w"] * jnp.ones(len(batch)), optax.sgd(1.0)
    )
    update = training.map_step(step, jax.devices()[:1])
    replicated, expected = training.replicate(state, jax.devices()[:1]), 0.0
    for n in range(30):
        replicated, _ = update(replicated, jnp.zeros(2))
        decay = min(0.9995, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * -(n + 1)
        np.testing.assert_allclose(replicated.ema_params["w"], expected, rtol=1e-5)


def test_labels_are_dropped_at_the_rate_asked_for() -> None:
    seen = []

    def record(
        params: Any, x: jax.Array, t: jax.Array, label: Any = None, *, dropout_key: Any = None
    ) -> jax.Array:
        seen.append(label)
        return x

    loss = training.denoising_loss(record, COSINE, num_classes=3, label_drop=0.3)
    rows = training.Rows(
        jax.random.key(0), jax.random.split(jax.random.key(1), 5000), jnp.zeros((), int), 5000
    )
    loss({}, rows, (jnp.zeros((5000, 2)), jnp.ones(5000, int)))
    dropped = np.mean(np.asarray(seen[0]) == 3)
    assert abs(dropped - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 5000)
    assert set(np.unique(seen[0])) == {1, 3}


def test_held_out_losses_are_of_the_whole_network() -> None:
    given = []

    def record(
        params: Any, x: jax.Array, t: jax.Array, label: Any = None, *, dropout_key: Any = None
    ) -> jax.Array:
        given.append(dropout_key)
        return x

    rows = training.Rows(
        jax.random.key(0), jax.random.split(jax.random.key(1), 4), jnp.zeros((), int), 4
    )
    for dropout in (True, False):
        training.denoising_loss(record, COSINE, dropout=dropout)(
            {}, rows, (jnp.zeros((4, 2)), None)
        )
    assert given[0].shape == (4,)
    assert given[1] is None


def test_learning_rate_and_clipping() -> None:
    params = {"w": jnp.zeros(3)}
    optimizer = training.make_optimizer(
        0.1, num_steps=100, warmup=10, clip_norm=1.0, final_scale=0.1
    )
    state, sizes = optimizer.init(params), []
    for _ in range(100):
        updates, state = optimizer.update({"w": jnp.ones(3)}, state, params)
        sizes.append(
            float(jnp.max(jnp.abs(updates["w"])))
        )  # Adam on a constant gradient: the learning rate
    assert sizes[0] == 0
    np.testing.assert_allclose(sizes[10], 0.1, rtol=1e-3)
    np.testing.assert_allclose(sizes[-1], 0.01, rtol=0.05)
    constant = training.make_optimizer(0.1, num_steps=10, warmup=0)
    np.testing.assert_allclose(
        constant.update({"w": jnp.ones(3)}, constant.init(params), params)[0]["w"], -0.1, rtol=1e-3
    )


# --- checkpoints ---------------------------------------------------------------------------------------------------


def tree(value: float) -> dict[str, Any]:
    return {
        "a": jnp.full((3, 2), value),
        "key": jax.random.key(int(value)),
        "step": jnp.asarray(int(value), jnp.int32),
    }


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    with training.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(tree(0)) is None
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3), (5, 0.35)):
            checkpoints.save(step, tree(step), loss=loss)
        assert checkpoints.steps() == [5, 4, 2]
        assert checkpoints.steps(best=True) == [2, 4, 5]
        chex.assert_trees_all_equal(
            plain(checkpoints.restore(tree(0))["key"]), plain(tree(5)["key"])
        )
        assert int(checkpoints.restore(tree(0), best=True)["step"]) == 2


def test_the_next_session_makes_room_too(tmp_path: Path) -> None:
    """The number of checkpoints does not grow with the number of sessions, and the best one stays."""
    for first in (1, 4, 7):
        with training.Checkpoints(tmp_path) as checkpoints:
            for step in range(first, first + 3):
                checkpoints.save(step, tree(step), loss=0.1 if step == 2 else 1.0)
            assert checkpoints.steps() == sorted({first + 2, first + 1, 2}, reverse=True)
            assert checkpoints.steps(best=True)[0] == 2


@pytest.mark.parametrize("left", [None, "about", "state"])
def test_half_a_deletion_is_finished_by_the_next_session(tmp_path: Path, left: str | None) -> None:
    """A kill while an old checkpoint made room: it is passed by, and gone after the next save."""
    for folder, steps in (("run", (2, 3)), ("old", (1,))):
        with training.Checkpoints(tmp_path / folder) as checkpoints:
            for step in steps:
                checkpoints.save(step, tree(step), loss=1.0 / step)
    (tmp_path / "run" / "1").mkdir()
    if left is not None:
        shutil.copytree(tmp_path / "old" / "1" / left, tmp_path / "run" / "1" / left)
    with training.Checkpoints(tmp_path / "run") as checkpoints:
        assert int(checkpoints.restore(tree(0))["step"]) == 3
        checkpoints.save(4, tree(4), loss=0.9)
        assert checkpoints.steps() == [4, 3]


def test_a_foreign_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another model's or another run's: the warning says which and how; it takes nobody's place."""
    ours, theirs = {"seed": 0, "batch_size": 8}, {"seed": 1, "batch_size": 8}
    foreign = {4: ({"b": jnp.zeros(2)}, ours), 5: (tree(5), theirs)}
    for step, (state, run) in foreign.items():
        with training.Checkpoints(tmp_path / "other", run=run) as checkpoints:
            checkpoints.save(step, state, loss=0.0)
    with training.Checkpoints(tmp_path / "run", run=ours) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, tree(step), loss=1.0)
    for step in foreign:
        shutil.copytree(tmp_path / "other" / str(step), tmp_path / "run" / str(step))
    with training.Checkpoints(tmp_path / "run", run=ours) as checkpoints:
        assert int(checkpoints.restore(tree(0))["step"]) == 2
        assert "5 is of another run: expected seed 0, got 1: passed over" in caplog.text
        assert "4 is of another model: 3 leaves differ" in caplog.text
        checkpoints.save(3, tree(3), loss=1.0)
        checkpoints.save(4, tree(4), loss=1.0)  # done again
        assert checkpoints.steps() == [5, 4, 3]
        assert int(checkpoints.restore(tree(0))["step"]) == 4
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / str(step))
    with (
        training.Checkpoints(tmp_path / "run", run=ours) as checkpoints,
        pytest.raises(ValueError, match=r"5 is of another run: expected seed 0, got 1"),
    ):
        checkpoints.restore(tree(0))


# Where a read fails, orbax leaves its event loop to the garbage collector, whose warning is not about this code.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with training.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, tree(step), loss=1.0)
    data = max((tmp_path / "2" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        data.write_bytes(content[: len(content) // 2])
    else:
        data.unlink()
    with caplog.at_level(logging.WARNING), training.Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(tree(0))["step"]) == 1
        assert "2 is damaged: passed over" in caplog.text
        checkpoints.save(2, tree(2), loss=1.0)  # done again: it takes the damaged one's place
        assert int(checkpoints.restore(tree(0))["step"]) == 2
    for other in (path for step in "12" for path in (tmp_path / step / "state").rglob("d/*")):
        other.unlink()
    with (
        training.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"none of the steps .* is sound"),
    ):
        checkpoints.restore(tree(0))
    gc.collect()


def test_another_number_in_a_checkpoint_is_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that reads without an error and is not what was saved: only the digest tells."""
    changed = tree(2) | {"a": tree(2)["a"].at[1, 0].add(1)}
    for folder, last in (("whole", tree(2)), ("other", changed)):
        with training.Checkpoints(tmp_path / folder) as checkpoints:
            checkpoints.save(1, tree(1), loss=1.0)
            checkpoints.save(2, last, loss=1.0)
    shutil.rmtree(tmp_path / "whole" / "2" / "state")
    shutil.copytree(tmp_path / "other" / "2" / "state", tmp_path / "whole" / "2" / "state")
    with caplog.at_level(logging.WARNING), training.Checkpoints(tmp_path / "whole") as checkpoints:
        assert int(checkpoints.restore(tree(0))["step"]) == 1
    assert "2 is damaged: passed over" in caplog.text
    with training.Checkpoints(tmp_path / "other") as checkpoints:  # it is sound where it belongs
        assert int(checkpoints.restore(tree(0))["a"][1, 0]) == 3


def test_a_save_cut_short_is_not_a_checkpoint(tmp_path: Path) -> None:
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1), loss=1.0)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with training.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1), loss=1.0)
        for other in (
            tree(1) | {"a": jnp.zeros((3, 3))},
            tree(1) | {"b": jnp.zeros(1)},
            {"a": jnp.zeros((3, 2))},
        ):
            with pytest.raises(
                ValueError, match=r"is of another model: \d leaves differ, the first: expected"
            ):
                checkpoints.restore(other)


@pytest.mark.slow
def test_restores_on_any_number_of_devices(tmp_path: Path) -> None:
    state, _ = run(4, range(3))
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, loss=1.0)
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
    for n in (1, 2, 4):
        _, losses = run(n, range(3, 5), restored)
        np.testing.assert_allclose(
            losses, run(4, range(3, 5), state)[1], rtol=1e-5
        )  # the order of a sum


# --- the run's folder ----------------------------------------------------------------------------------------------


def test_log_goes_on_from_the_step_it_resumes(tmp_path: Path) -> None:
    with training.Log(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    with training.Log(tmp_path, step=2) as log:
        log.write(3, loss=30.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_atomic_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    training.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        training.write_json(path, {"a": object()})
    with contextlib.suppress(KeyboardInterrupt), training.atomic(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_drafts_of_killed_programs_do_not_pile_up(tmp_path: Path) -> None:
    """Days later they are gone; what is being written now, and other hidden files, stay."""
    with training.atomic(tmp_path / "young.npz") as young, training.atomic(tmp_path / "x") as old:
        for path in (young, old, tmp_path / ".hidden", tmp_path / "part.npz"):
            path.touch()
            if path != young:
                os.utime(path, (0, 0))
        with training.lock(tmp_path):
            assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
                [".hidden", ".lock", young.name, "part.npz"]
            )
        old.touch()


HOLDER = """
import os, sys, time
from pathlib import Path
from jaxdiff import training
with training.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_reader_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with training.Checkpoints(tmp_path) as writer:
        writer.save(1, {"a": jnp.ones(3)}, loss=1.0)
    capfd.readouterr()
    with training.Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.restore({"a": jnp.zeros(3)}) is not None
    assert capfd.readouterr() == ("", "")


def test_one_process_writes_to_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named; the lock ends with it, though it is killed; readers need none."""
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = rf"run is in use by process {holder.pid} on \S+ since 2\d{{3}}-\d\d-\d\d .*; wait for it or stop it"
        for _ in range(2):  # the one that came in vain changes nothing
            with pytest.raises(BlockingIOError, match=said), training.lock(folder):
                pass
        threading.Timer(0.3, holder.kill).start()
        with training.lock(folder, wait=True):
            assert f"waiting for process {holder.pid} on " in caplog.text
            assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    with (
        training.lock(folder),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()} "),
        training.lock(folder),
    ):
        pass
    monkeypatch.setattr(training.run, "LONGEST_WAIT", 0.2)
    with (
        training.lock(folder),
        pytest.raises(BlockingIOError, match="in use"),
        training.lock(folder, wait=True),
    ):
        pass
    with training.lock(folder):  # given back
        pass


def test_a_folder_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with training.lock(tmp_path):
        (tmp_path / "x").touch()
    assert "cannot be locked (No locks available)" in caplog.text


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk, to those who write: no file of this process grows beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def large(value: float) -> dict[str, Any]:
    return {
        "a": jax.random.normal(jax.random.key(int(value)), (500_000,)),
        "step": jnp.asarray(int(value), jnp.int32),
    }


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
@pytest.mark.parametrize("ends", ["save", slow("steps"), slow("close")])
def test_a_full_disk_is_one_line(tmp_path: Path, ends: str, capfd: pytest.CaptureFixture) -> None:
    """Whichever call learns of the failed write says so; what was there is whole, and the next start goes on from it."""
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, large(1), loss=1.0)
    checkpoints = training.Checkpoints(tmp_path)
    with files_of_at_most(1_000_000):
        checkpoints.save(2, large(2), loss=0.5)
        then = {
            "save": lambda: checkpoints.save(3, large(3), loss=0.4),
            "steps": checkpoints.steps,
            "close": lambda: None,
        }
        said = (
            "checkpoint: .* cannot be written to: File too large; the checkpoints in it are whole"
        )
        with pytest.raises(OSError, match=said), checkpoints:
            then[ends]()
    assert "Traceback" not in capfd.readouterr().err
    with training.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
        assert int(checkpoints.restore(large(0))["step"]) == 1
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, large(2), loss=0.5)
    assert not list(
        tmp_path.glob("*tmp*")
    )  # what the failed write has left does not fill the disk any longer
    with training.Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(large(0))["step"]) == 2
    gc.collect()


def test_a_log_on_a_full_disk_neither_waits_nor_tears(tmp_path: Path) -> None:
    log = training.Log(tmp_path)
    for step in range(1, 21):
        log.write(step, loss=1.0)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with files_of_at_most(size + 10):  # part of a line
        for step in (21, 22, 23):
            with pytest.raises(OSError, match=r"File too large: '.*metrics.jsonl'"):
                log.write(step, loss=1.0)
        with pytest.raises(OSError, match="File too large"), files_of_at_most(10):
            training.write_json(tmp_path / "x.json", list(range(100)))
    with contextlib.suppress(OSError):
        log.__exit__()
    assert [line["step"] for line in training.read_log(tmp_path)] == list(range(1, 21))
    assert not list(tmp_path.glob("*x*"))
    with training.Log(tmp_path, step=20) as log:
        log.write(21, loss=1.0)
    assert [line["step"] for line in training.read_log(tmp_path)] == list(range(1, 22))


def test_events_are_read_by_tensorboards_rules(tmp_path: Path) -> None:
    """A file a session: its version, where it starts, and a scalar a step."""
    for first in (0, 2):
        with training.Log(tmp_path / str(first), step=first) as log:
            for step in (1, 2, 3):
                log.write(first + step, loss=first + step / 2, rate=1.0)
        (path,) = (tmp_path / str(first)).glob("events.out.tfevents.*")
        content, events = path.read_bytes(), []
        while content:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
        assert events[0].file_version == "brain.Event:2"
        assert (events[1].step, events[1].session_log.status) == (first + 1, SessionLog.START)
        scalars = [
            (event.step, v.tag, v.simple_value) for event in events[2:] for v in event.summary.value
        ]
        assert scalars == [
            (first + n, *pair)
            for n in (1, 2, 3)
            for pair in (("loss", first + n / 2), ("rate", 1.0))
        ]


@pytest.mark.parametrize("line", ["3", "[]", '{"loss": 1}', '{"step": "1"}', "\udcff"])
def test_a_damaged_log_ends_where_it_is_damaged(tmp_path: Path, line: str) -> None:
    text = '{"step": 1, "loss": 2.0}\n' + line + '\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    assert training.read_log(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_readers_beside_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that made room while it was read is no damaged one: the newest of now is read."""
    with training.Checkpoints(tmp_path / "none", read_only=True) as nothing:
        assert nothing.restore(tree(0)) is None
    assert not (tmp_path / "none").exists()  # a reader makes nothing
    with (
        training.Checkpoints(tmp_path) as writer,
        training.Checkpoints(tmp_path, read_only=True) as reader,
    ):
        writer.save(1, tree(1), loss=1.0)
        assert writer.steps() == reader.steps() == [1]
        sound, calls = reader._sound, []

        def meanwhile(step: int, abstract: Any) -> Any:
            calls.append(step)
            if len(calls) == 1:
                for n in (2, 3, 4):
                    writer.save(n, tree(n), loss=1.0 / n)
                assert writer.steps() == [4, 3]
            return sound(step, abstract)

        monkeypatch.setattr(reader, "_sound", meanwhile)
        assert int(reader.restore(tree(0))["step"]) == 4
        assert calls == [1, 4]
        before = sorted(tmp_path.rglob("*"))
        assert int(reader.restore(tree(0), best=True)["step"]) == 4
        assert sorted(tmp_path.rglob("*")) == before


def test_an_error_without_a_message_is_passed_over_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1), loss=1.0)
        checkpoints.steps()

        def fail(*_: Any, **__: Any) -> None:
            raise NotImplementedError

        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(ValueError, match="none of the steps"):
            checkpoints.restore(tree(0))
    assert "NotImplementedError" in caplog.text


def run_parts(parts: int) -> None:
    devices = jax.devices()[:1]
    state = training.init_state(jax.random.key(1), make_params(), OPTIMIZER)
    update = training.map_step(training.make_step(LOSS, OPTIMIZER, accumulate=parts), devices)
    update(training.replicate(state, devices), training.shard(batch(0), devices))


BAD = {
    "uneven parts": (lambda: run_parts(3), ValueError, "accumulate: expected a divisor of a device's 8 rows, got 3"),
    "no parts": (lambda: training.make_step(LOSS, OPTIMIZER, accumulate=0), ValueError, "accumulate"),
    "uneven batch": (lambda: training.shard(np.zeros((5, 2)), jax.devices()[:2]), ValueError, "batch: expected a multiple of 2 devices, got 5 rows"),
    "old key": (lambda: training.init_state(jax.random.PRNGKey(0), {}, OPTIMIZER), TypeError, "key: expected a typed key"),
    "decay": (lambda: training.make_step(LOSS, OPTIMIZER, ema_decay=1.0), ValueError, r"ema_decay: expected a decay in \[0, 1\)"),
    "drop": (lambda: training.denoising_loss(apply, COSINE, label_drop=2.0), ValueError, "label_drop: expected a probability"),
    "rate": (lambda: training.make_optimizer(0.0, num_steps=10, warmup=0), ValueError, "learning_rate: expected a positive rate"),
    "no rate": (lambda: training.make_optimizer(float("nan"), num_steps=10, warmup=0), ValueError, "learning_rate: expected a positive rate"),
    "rate without end": (lambda: training.learning_rates(float("inf"), num_steps=10, warmup=0), ValueError, "learning_rate: expected a positive rate"),
    "negative end": (lambda: training.make_optimizer(num_steps=10, warmup=0, final_scale=-1.0), ValueError, "final_scale: expected a share"),
    "endless decay": (lambda: training.make_optimizer(num_steps=10, warmup=0, weight_decay=float("inf")), ValueError, "weight_decay: expected a decay"),
    "no clip": (lambda: training.make_optimizer(num_steps=10, warmup=0, clip_norm=float("nan")), ValueError, "clip_norm: expected a positive norm"),
    "data without width": (lambda: training.denoising_loss(apply, COSINE, sigma_data=0.0), ValueError, "sigma_data: expected a positive standard deviation, got 0"),
    "warm-up": (lambda: training.make_optimizer(num_steps=10, warmup=11), ValueError, "warmup: expected 0 to num_steps = 10"),
    "clip": (lambda: training.make_optimizer(num_steps=10, warmup=0, clip_norm=0.0), ValueError, "clip_norm: expected a positive norm"),
    "betas": (lambda: training.make_optimizer(num_steps=10, warmup=0, b2=1.0), ValueError, "b1, b2: expected decays"),
    "no steps": (lambda: training.make_optimizer(num_steps=0), ValueError, "num_steps: expected a positive int"),
}  # fmt: skip


test_bad_input = rejects(BAD)
