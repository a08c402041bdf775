"""What the scripts take of the machine's memory: so many rows at a time as they are told, and words where it runs out."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow

import jaxdiff as jd
from jaxdiff import data, training, zoo
from jaxdiff.cli import errors, evaluate, interpolate, posterior, train
from jaxdiff.runs import (
    build,
    calibration,
    datasets,
    denoising,
    loading,
    loop,
    memory,
    quality,
    recogniser,
    tasks,
)
from jaxdiff.runs.config import PRESETS, Config, Diffusion, Network
from jaxdiff.runs.seeds import key_of

TINY = dataclasses.replace(
    PRESETS["toy"][1],
    steps=2,
    batch_size=8,
    log_every=1,
    eval_every=2,
    network=Network(channels=8, num_blocks=1),
)
DIGITS = dataclasses.replace(
    TINY,
    dataset="digits",
    network=Network(channels=8, multipliers=(1,), num_blocks=1, attention=()),
)


def test_chunks_have_one_shape_and_join_up() -> None:
    seen = []

    def double(x: np.ndarray, label: np.ndarray | None) -> dict[str, np.ndarray]:
        seen.append(x.shape)
        assert label is None
        return {"twice": 2 * x, "sum": x.sum(1)}

    x = np.arange(22.0).reshape(11, 2)
    found = memory.in_chunks(double, 4, x, None)
    assert seen == [(4, 2)] * 3
    np.testing.assert_array_equal(found["twice"], 2 * x)
    np.testing.assert_array_equal(found["sum"], x.sum(1))
    assert memory.in_chunks(double, 100, x, None)["sum"].shape == (11,)
    assert seen[-1] == (11, 2)  # no more rows than there are


# The held-out loss ---------------------------------------------------------------------------------------------------

OBJECTIVES = {
    "simple": (TINY, Diffusion()),
    "uniform": (TINY, Diffusion(time_sampling="uniform")),
    "vlb": (TINY, Diffusion(objective="vlb", num_steps=5)),
    "digits": (DIGITS, Diffusion()),
    "learned": (DIGITS, Diffusion(schedule="learned", prediction="levels")),
}


@pytest.mark.parametrize(
    "objective",
    [name if name == "simple" else slow(name) for name in OBJECTIVES],
)
def test_the_held_out_loss_does_not_change_with_the_chunk(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the mean over all rows at once, and a chunk has no more rows than a device has of a batch."""
    monkeypatch.setattr(loop, "EVAL_EXAMPLES", 43)  # no multiple of a chunk
    config, diffusion = OBJECTIVES[objective]
    config = dataclasses.replace(config, diffusion=diffusion, conditional=objective != "learned")
    splits = dict.fromkeys(
        ("train", "test"), data.Split(np.random.default_rng(0).normal(size=(50, 2)).astype("f"))
    )
    points = datasets.Dataset("points", (2,), None, None, lambda: splits)
    dataset = points if config.dataset == TINY.dataset else datasets.of(config)
    model = build.make_model(config, dataset)
    learned = jd.schedules.learned_parameters() if objective == "learned" else {}
    params = {"network": model.init(jax.random.key(0), dataset.event_shape), "schedule": learned}
    params = jax.tree.map(
        lambda leaf: leaf + np.sin(np.arange(leaf.size, dtype="f")).reshape(leaf.shape) / 10, params
    )

    key = key_of(config.seed, "held out")
    whole = training.Rows(key, jax.random.split(key, 43), jnp.zeros((), int), 43)
    loss, rows_seen = build.make_loss(config, model, dataset, training_time=False), set()
    expected = float(np.mean(jax.jit(loss)(params, whole, dataset.head("test", 43))))

    def watched(params: Any, rows: training.Rows, batch: Any) -> jax.Array:
        rows_seen.add(len(batch[0]))
        return loss(params, rows, batch)

    monkeypatch.setattr(build, "make_loss", lambda *_, **__: watched)
    for batch_size in (4 * 9, 4 * 43):  # over four devices
        chunked = loop.held_out_loss(
            dataclasses.replace(config, batch_size=batch_size), dataset, model
        )(params)
        np.testing.assert_allclose(
            chunked, expected, rtol=2e-5
        )  # rounding: convolutions sum in another order
    assert rows_seen == {9, 43}


# The estimate before training ----------------------------------------------------------------------------------------


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a hundred bytes left."""
    monkeypatch.setattr(memory, "available", lambda device: 100)
    monkeypatch.setattr(train, "draw_pictures", lambda *_: None)


@pytest.mark.usefixtures("little")
def test_a_run_that_does_not_fit_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = dataclasses.replace(TINY, run=tmp_path / "run")
    with pytest.raises(SystemExit), errors.one_line_errors():
        train.main(config)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "GiB, and 0.00 GiB are left: lower --batch-size, --network.channels" in line
    assert "JAXDIFF_ANYWAY=1" in line
    assert not (config.run / "config.json").exists()  # a smaller batch size is no other run
    monkeypatch.setenv("JAXDIFF_ANYWAY", "1")
    assert train.main(config)


def test_the_program_that_is_asked_for_its_memory_is_the_one_that_runs() -> None:
    traces, compiled = [], []
    devices = jax.local_devices()[:2]

    def step(state: jax.Array, batch: np.ndarray) -> tuple[jax.Array, jax.Array]:
        traces.append(1)
        return state + jnp.mean(batch), jnp.max(batch)

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    state, batch = training.replicate(jnp.zeros(3), devices), np.ones(10, np.float32)
    update = memory.fitting(training.map_step(step, devices), state, batch, devices=devices)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state, _ = update(state, batch)
        state, _ = update(state, batch)
        jax.block_until_ready(state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traces) == 1
    assert not compiled
    np.testing.assert_array_equal(np.asarray(state).ravel()[:3], 2)


def test_the_estimate_grows_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = []
    monkeypatch.setattr(memory, "available", lambda device: -(2**40))
    mapped = jax.pmap(
        lambda x: jnp.sum(jnp.sort(x @ x.mT)[..., ::2]), devices=jax.local_devices()[:2]
    )
    for rows in (50, 100):
        with pytest.raises(ValueError, match="an update takes") as error:
            memory.fitting(mapped, jnp.ones((2, rows, 500, 8)), devices=jax.local_devices()[:2])
        needed.append(float(str(error.value).split("takes ")[1].split()[0]))
    assert (
        2 * rows * 500**2 * 4 / 2**30 < needed[1] < 4 * 2 * rows * 500**2 * 4 / 2**30
    )  # two devices' products
    assert abs(needed[1] / needed[0] - 2) < 0.2


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}
GROUPS: dict[str, tuple[dict[str, str], int | None]] = {
    "nothing known": ({}, None),
    "the machine alone": (MEMINFO, 8_192_000),
    "version 2, a limit further up": (
        MEMINFO
        | {"proc/self/cgroup": "0::/outer/inner\n", "sys/fs/cgroup/outer/inner/memory.max": "max\n"}
        | {
            "sys/fs/cgroup/outer/inner/memory.current": "70\n",
            "sys/fs/cgroup/outer/memory.max": "1000\n",
        }
        | {
            "sys/fs/cgroup/outer/memory.current": "400\n",
            "sys/fs/cgroup/outer/memory.stat": "anon 9\ninactive_file 150\n",
        },
        750,
    ),
    "version 1": (
        MEMINFO
        | {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/job\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "500\n",
        }
        | {"sys/fs/cgroup/memory/job/memory.usage_in_bytes": "600\n"},
        0,
    ),
    "version 1, seen from inside": (
        MEMINFO
        | {
            "proc/self/cgroup": "4:memory:/not/visible/here\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "500\n",
        }
        | {"sys/fs/cgroup/memory/memory.usage_in_bytes": "100\n"},
        400,
    ),
    "no limit": (
        MEMINFO
        | {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        }
        | {"sys/fs/cgroup/memory/memory.usage_in_bytes": "100\n"},
        8_192_000,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_what_is_left_of_the_machine_or_of_the_containers_limit(name: str, tmp_path: Path) -> None:
    files, expected = GROUPS[name]
    assert memory.available(jax.local_devices()[0], root=write(tmp_path, files)) == expected


# Out of memory -------------------------------------------------------------------------------------------------------

RUNS_OUT = {
    "numpy": lambda: np.zeros(2**55),
    "jax": lambda: jnp.zeros(2**50),
    "python": lambda: bytearray(2**60),
}


@pytest.mark.parametrize("who", RUNS_OUT)
def test_out_of_memory_is_one_line(who: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_, errors.one_line_errors():
        RUNS_OUT[who]()
    assert exit_.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory")
    assert "lower the batch size" in line


def test_other_errors_of_xla_are_left_alone() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.in_words():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


# The scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [10, 200])
def test_the_best_linear_denoiser_is_the_normal_laws(num: int) -> None:
    """Of fewer examples than dimensions and of more: the denoiser of the d x d covariance, without it."""
    random = np.random.default_rng(0)
    x_0 = (random.normal(size=(num, 24)) @ random.normal(size=(24, 24)) / 5 + 0.3).reshape(
        num, 3, 8
    )
    flat = x_0.reshape(num, -1)
    covariance = np.cov(flat, rowvar=False) + 1e-3 * np.eye(24)
    law = jd.oracles.gaussian(
        jnp.asarray(flat.mean(0), jnp.float32), jnp.asarray(covariance, jnp.float32)
    )
    linear, schedule = denoising.best_linear(x_0, ridge=1e-3), jd.schedules.cosine()
    x_t = jnp.asarray(random.normal(size=(5, 24)), jnp.float32)
    for t in (0.1, 0.5, 1.0):
        expected = law.denoiser(schedule)(x_t, t)
        np.testing.assert_allclose(
            linear(schedule, x_t, t), expected, atol=2e-4
        )  # rounding of float32 eigenvectors


def test_the_best_linear_denoiser_of_large_images_takes_no_matrix_of_all_pixels() -> None:
    x_0 = np.random.default_rng(0).normal(size=(40, 64, 64, 3)).astype(np.float32)
    assert max(leaf.size for leaf in jax.tree.leaves(denoising.best_linear(x_0))) <= 40 * 12_288


@dataclasses.dataclass
class Watched:
    """A denoiser of zeros that remembers how many rows it was given."""

    rows: set[int]

    def __call__(self, x: jax.Array, t: Any) -> jax.Array:
        self.rows.add(len(x))
        return jnp.zeros_like(x)


def untrained(config: Config, splits: dict[str, data.Split], shape: tuple[int, ...]) -> loading.Run:
    """A run with a network as it is initialised."""
    dataset = datasets.Dataset(
        "points", shape, None, None if len(shape) == 1 else 256, lambda: splits
    )
    model = build.make_model(config, dataset)
    params = model.init(jax.random.key(0), shape)
    return loading.assemble(config, dataset, model, {"network": params, "schedule": {}})


def test_no_script_gives_the_network_more_rows_than_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denoising errors, strips between images, samples of an evaluation, and the classifier of large images."""
    random = np.random.default_rng(0)
    images = {
        name: data.Split(
            random.integers(0, 256, (num, 8, 8, 1)).astype(np.uint8), random.integers(3, size=num)
        )
        for name, num in {"train": 50, "test": 100}.items()
    }
    config = dataclasses.replace(DIGITS, run=tmp_path, batch_size=12)
    run, watched = untrained(config, images, (8, 8, 1)), Watched(set())
    monkeypatch.setattr(zoo.Trained, "denoiser", lambda *_, **__: watched)
    errors = denoising.denoising_errors(run, num_times=1, examples=30, seed=0)
    assert errors[0]["x_0_error"] > 0
    x_0, y_0 = interpolate.pairs(run, interpolate.Options(tmp_path, strips=4))
    strips = interpolate.between(
        run, x_0, y_0, interpolate.Options(tmp_path, strips=4, columns=5, steps=2)
    )
    assert strips.shape == (4, 5, 8, 8, 1)
    monkeypatch.setattr(
        quality,
        "measure",
        lambda run, x, *_, **__: quality.Measured(
            {"num": len(x)}, np.zeros(len(x)), np.zeros(len(x), int)
        ),
    )
    found = evaluate.sample_quality(run, evaluate.Options(tmp_path, samples=30, steps=2))
    assert found == {"num": 30}
    assert max(watched.rows) <= 12
    assert recogniser.at_once(1000, np.zeros((1, 28, 28, 1))) == 1000
    assert recogniser.at_once(256, np.zeros((1, 256, 256, 3), np.uint8)) == 21


def test_the_batch_size_of_an_evaluation_is_not_that_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that measures gives the network as many rows as it is told to, and says so."""
    monkeypatch.setattr(zoo, "SHA256", {"small": ""})
    points = {"train": data.Split(np.zeros((9, 2), np.float32))}
    run = untrained(dataclasses.replace(TINY, run=tmp_path), points, (2,))
    monkeypatch.setattr(loading, "shipped", lambda _: run)
    assert loading.load_run(Path("small")).config.batch_size == TINY.batch_size
    assert loading.load_run(Path("small"), batch_size=3).config.batch_size == 3
    for module in (evaluate, posterior):
        given: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(loading, "load_run", lambda *_, g=given, **o: g.append(o) or 1 / 0)
            with pytest.raises(ZeroDivisionError):
                module.main(module.Options(tmp_path, batch_size=3))
        assert given[0]["batch_size"] == 3


def test_the_nearest_training_example_is_searched_some_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    train, x = (
        random.normal(size=(50, 3)).astype(np.float32),
        random.normal(size=(7, 3)).astype(np.float32),
    )
    dataset = datasets.Dataset("points", (3,), None, None, lambda: {"train": data.Split(train)})
    monkeypatch.setattr(memory, "NUMBERS", 3 * 8)  # eight examples
    distance, index = quality.nearest(dataset, x)
    pairs = np.linalg.norm(x[:, None] - train[None], axis=2)
    np.testing.assert_array_equal(index, pairs.argmin(1))
    np.testing.assert_allclose(distance, pairs.min(1), rtol=1e-5)


def test_matrices_of_all_pixels_are_refused_with_their_size() -> None:
    dataset = datasets.Dataset("large", (64, 64, 3), None, 256, dict)
    with pytest.raises(
        ValueError, match=r"linear: expected images of at most 4096 .* 12288\^2 entries, 0\.6 GiB"
    ):
        tasks.make_task("linear", dataset, noise=None, peak=8.0, seed=0)
    assert tasks.make_task("deblur", dataset, noise=None, peak=8.0, seed=0).name == "deblur"
    assert memory.affordable(20_000, (28, 28, 1)) == 20_000
    assert memory.affordable(20_000, (64, 64, 3)) * 12_288 <= memory.NUMBERS


def test_leading_components_of_few_images_are_those_of_their_covariance() -> None:
    few = np.random.default_rng(0).normal(size=(9, 5, 5, 1)) * np.linspace(1, 3, 25).reshape(
        1, 5, 5, 1
    )
    found = calibration.Functions(few.astype(np.float32), np.ones((5, 5, 1))).rows[-3:]
    expected = np.linalg.eigh(np.cov(few.reshape(9, -1), rowvar=False))[1][:, ::-1][:, :3].T
    np.testing.assert_allclose(
        np.abs(np.sum(found * expected, axis=1)), 1, rtol=1e-5
    )  # a sign is free; rounding
