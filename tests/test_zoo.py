"""Networks that ship: rounded by no more than stated, verified when read, and digits that another data set's eyes read."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.svm import SVC

import jaxdiff as jd
from jaxdiff import data, posterior, runs, zoo
from jaxdiff.cli import export, sample
from jaxdiff.runs import build, datasets, loading
from jaxdiff.runs.config import PRESETS, Network

floats = st.floats(-1e3, 1e3, width=32)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=floats),
    st.data(),
)
def test_a_weight_moves_by_half_a_scale_at_most(weight: np.ndarray, draw: st.DataObject) -> None:
    shift = draw.draw(hnp.arrays(np.float32, weight.shape[-1:], elements=floats))
    params = {"conv": {"kernel": weight, "bias": shift}, "scale": shift}
    arrays = zoo.pack(params)
    assert arrays["conv/kernel"].dtype == np.int8
    found = zoo.unpack(arrays)
    chex.assert_trees_all_equal_structs(found, params)
    np.testing.assert_array_equal(found["conv"]["bias"], shift)
    np.testing.assert_array_equal(found["scale"], shift)
    scale = np.abs(weight).max(axis=tuple(range(weight.ndim - 1))) / 127
    error = np.abs(np.asarray(found["conv"]["kernel"]) - weight)
    assert np.all(error <= scale / 2 + 1e-6 * np.abs(weight))  # and float32's rounding
    again = zoo.pack(found)
    np.testing.assert_array_equal(
        again["conv/kernel"], arrays["conv/kernel"]
    )  # what is rounded stays as it is


def test_what_ships_is_small_and_labelled() -> None:
    mnist = jd.pretrained("mnist")
    assert (mnist.event_shape, mnist.num_classes, mnist.levels) == ((28, 28, 1), 10, 256)
    assert "MNIST" in mnist.about["source"]
    assert mnist.about["config"]["run"] == "runs/mnist"  # nothing of the machine it was trained on
    assert mnist.about["config"]["data_dir"] is None
    assert (Path(zoo.__file__).parent / "mnist.npz").stat().st_size < 4e6


def drawn(num: int) -> tuple[np.ndarray, jax.Array]:
    """Digits of the shipped network, one class after the other, and their labels."""
    mnist, labels = jd.pretrained("mnist"), jnp.arange(num) % 10
    key_prior, key_run = jax.random.split(jax.random.key(0))
    x_init = jd.prior_sample(key_prior, mnist.schedule, (num, *mnist.event_shape))
    kernel = jd.kernels.unipc(mnist.denoiser(labels), mnist.schedule)
    return np.clip(jd.sample(key_run, kernel, x_init, jd.grids.uniform(10)).x, -1, 1), labels


def test_a_spread_survives_its_packing() -> None:
    """To the precision of 16 bits; it comes out of a file's arrays, and a file may have none."""
    spread = posterior.Spread(
        jnp.eye(3)[:2].reshape(2, 3, 1), jnp.array([3.0, 1e-6, 0.5]), jnp.array([-8.0, 8.0]),
        jnp.array([[1.0, 0.9, 0.8], [0.3, 0.2, 0.1]]),
    )  # fmt: skip
    arrays = zoo.pack_spread(spread) | {"other": np.zeros(1)}
    found = zoo.unpack_spread(arrays)
    assert list(arrays) == ["other"]
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(spread), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert zoo.unpack_spread(arrays) is None


def test_the_shipped_spread_says_how_far_the_network_is_off() -> None:
    """Less than the data's own width at every level, and nearly it where all is noise."""
    spread = jd.pretrained("mnist").spread
    assert spread is not None
    assert spread.axes.shape == (256, 28, 28, 1)
    np.testing.assert_allclose(spread.fraction[0], 1, atol=0.1)
    assert np.all(np.asarray(spread.fraction[:, :100]) < 1.3)
    assert np.asarray(spread.fraction[6:9, :50]).max() < 0.6


@pytest.mark.slow
def test_it_knows_its_own_digits() -> None:
    """The class whose model denoises a drawn digit best is the one that was asked for, nine times of ten at least."""
    mnist, (x, labels) = jd.pretrained("mnist"), drawn(10)

    @jax.jit
    def error(k: jax.Array) -> jax.Array:
        denoiser = mnist.denoiser(jnp.full(len(x), k))
        times = mnist.schedule.time(jnp.linspace(-5.0, 0.0, 6))

        def at(t: jax.Array) -> jax.Array:
            return jd.losses.denoising_error(jax.random.key(1), denoiser, mnist.schedule, x, t=t)

        return jax.lax.map(at, times).sum(axis=0)

    best = jnp.argmin(jnp.stack([error(k) for k in range(10)]), axis=0)
    assert np.mean(best == labels) >= 0.9


@pytest.mark.slow
def test_shipped_digits_are_read_by_a_classifier_of_real_ones(
    mnist_source: Path, tmp_path: Path
) -> None:
    """A support vector machine of 10,000 real digits, right about 97% of the time, reads at least 90% of 200."""
    x, labels = drawn(200)
    data.prepare("mnist", mnist_source, tmp_path)
    train = data.load("mnist", data_dir=tmp_path).train
    seen = data.to_unit(train.images[:10_000], 256).reshape(-1, 784)
    classifier = SVC(C=10).fit(seen, train.labels[:10_000])
    assert np.mean(classifier.predict(x.reshape(-1, 784)) == labels) >= 0.9


def test_a_damaged_or_unknown_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="name: expected one of mnist, got 'minst'"):
        jd.pretrained("minst")
    monkeypatch.setitem(zoo.SHA256, "mnist", 64 * "0")
    with pytest.raises(
        ValueError,
        match=f"mnist: expected the file of SHA-256 {64 * '0'}, got .*; install jaxdiff again",
    ):
        jd.pretrained("mnist")


def test_sampling_what_ships_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXDIFF_DATA_DIR", str(tmp_path / "nothing"))
    sample.main(sample.Options(run=Path("mnist"), num=4, steps=2))
    folder = tmp_path / "runs" / "mnist-pretrained" / "samples"
    assert np.load(folder / "samples.npz")["x"].shape == (4, 28, 28, 1)
    assert (folder / "samples.png").exists()
    (tmp_path / "nothing" / "mnist" / "3.0.1").mkdir(
        parents=True
    )  # what cannot be read is not here either
    assert not loading.load_run(Path("mnist")).dataset.is_here
    monkeypatch.setenv("JAXDIFF_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="jaxdiff prepare"):
        loading.load_run(Path("mnist")).dataset.head("test", 1)


@pytest.mark.parametrize(
    ("preset", "diffusion"),
    [
        ("toy", {}),
        ("digits-likelihood", {}),
        ("digits", {"schedule": "ddpm"}),
        ("digits", {"objective": "hybrid"}),
    ],
)
def test_a_run_that_cannot_ship_is_refused(preset: str, diffusion: dict[str, Any]) -> None:
    config = dataclasses.replace(PRESETS[preset][1], run=Path("nowhere"))
    config = dataclasses.replace(
        config, diffusion=dataclasses.replace(config.diffusion, **diffusion)
    )
    dataset = datasets.of(config)
    model, schedule = build.make_model(config, dataset), jd.schedules.learned_parameters()
    run = loading.assemble(config, dataset, model, {"network": {}, "schedule": schedule}, step=1)
    with pytest.raises(ValueError, match="run: expected one of images with a named schedule"):
        export.about(run, "")


# --- a run of one's own ----------------------------------------------------------------------------------------------

SMALL = {"steps": 2, "batch_size": 8, "eval_every": 2}
OWN = {
    "toy": ("toy", {}, {"channels": 8, "num_blocks": 1}),
    "conditional": ("digits", {}, {"channels": 8, "multipliers": (1,), "attention": ()}),
    "levels": ("digits-likelihood", {}, {"channels": 8, "multipliers": (1,), "attention": ()}),
    "learned variance": (
        "digits",
        {"objective": "hybrid", "num_steps": 4},
        {"channels": 8, "multipliers": (1,), "attention": ()},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy", *map(slow, ("conditional", "levels", "learned variance"))])
def test_a_notebook_draws_from_a_run_of_its_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lines from the folder to samples, on a machine without the data."""
    preset, diffusion, network = OWN[kind]
    config = dataclasses.replace(
        PRESETS[preset][1],
        run=tmp_path / "mine",
        network=Network(**network),
        **SMALL,
    )
    config = dataclasses.replace(
        config, diffusion=dataclasses.replace(config.diffusion, **diffusion)
    )
    assert runs.train(config) == 2
    monkeypatch.setattr(data, "load", None)

    trained = jd.load(tmp_path / "mine")
    labels = None if trained.num_classes is None else jnp.arange(4)
    x = jd.draw(
        jax.random.key(0), trained.denoiser(labels), trained.schedule, (4, *trained.event_shape)
    ).x

    assert x.shape == (4, *trained.event_shape)
    assert np.all(np.isfinite(x))
    assert trained.step == 2
    assert trained.learned_variance == (kind == "learned variance")
    assert (trained.levels is None) == (kind == "toy")
    assert repr(trained).startswith(f"Trained({config.dataset}: 0.0")
    assert "\n" not in repr(trained)
    assert len(repr(trained)) < 120
    if labels is None:
        with pytest.raises(ValueError, match="guidance: expected 1 without a label, got 2"):
            trained.denoiser(guidance=2.0)
        return
    state, t = jnp.ones((4, *trained.event_shape)), jnp.full(4, 0.5)
    given, free, guided = (
        jd.prediction.x_0_of(jax.jit(trained.denoiser(*options))(state, t), state)
        for options in ((labels,), (), (labels, 3.0))
    )
    if kind == "conditional":  # rounding
        np.testing.assert_allclose(guided, free + 3 * (given - free), rtol=1e-4, atol=1e-5)


def test_a_traced_guidance_compiles_once() -> None:
    mnist, traces = jd.pretrained("mnist"), []

    @jax.jit
    def denoised(scale: jax.Array) -> jax.Array:
        traces.append(1)
        x = jnp.ones((1, *mnist.event_shape))
        return mnist.denoiser(jnp.array([3]), scale)(x, 0.5)

    assert not np.allclose(denoised(1.0), denoised(3.0))
    assert len(traces) == 1


def test_folders_that_are_no_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        jd.load(tmp_path)
