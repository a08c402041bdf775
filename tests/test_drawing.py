"""Samples in one call: exact on an asymmetric mixture for every family, and the parts it is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCHEDULES, asymmetric_mixture, moment_z_scores, rejects, slow
from jax.tree_util import Partial

import jaxdiff as jd

SCHEDULE = jd.schedules.cosine()
MIXTURE = asymmetric_mixture()
DENOISER = MIXTURE.denoiser(SCHEDULE)
KEY = jax.random.key(3)


@pytest.mark.parametrize(
    "name", [n if n in ("cosine", "ddpm", "edm") else slow(n) for n in SCHEDULES]
)
def test_the_defaults_draw_the_mixture(name: str) -> None:
    """5 standard errors of 4,000 draws: UniPC's 20 steps are nearer than that (measured, z <= 2)."""
    schedule = SCHEDULES[name]()
    x = jd.draw(KEY, MIXTURE.denoiser(schedule), schedule, (4_000, 2)).x
    assert np.abs(moment_z_scores(np.asarray(x), MIXTURE)).max() < 5


def test_it_is_prior_sample_and_sample() -> None:
    """Bit for bit, with a kernel and a grid of one's own."""
    ts = jd.grids.log_snr(SCHEDULE, 7)
    make = functools.partial(jd.kernels.ddim, eta=0.5)
    samples = jd.draw(KEY, DENOISER, SCHEDULE, (5, 2), kernel=make, ts=ts)
    key_prior, key_run = jax.random.split(KEY)
    x_init = jd.prior_sample(key_prior, SCHEDULE, (5, 2))
    kernel = jd.kernels.ddim(DENOISER, SCHEDULE, 0.5)
    np.testing.assert_array_equal(samples.x, jd.sample(key_run, kernel, x_init, ts).x)
    assert samples.ess.shape == (7,)


@pytest.mark.parametrize("name", ["edm", "rectified_flow", "linear"])
def test_a_grid_that_begins_later_begins_with_its_noise(name: str) -> None:
    """The variance of the start is sigma^2 at ts[0]: a kernel that does nothing returns it."""
    schedule = SCHEDULES[name]()
    still = jd.Kernel(lambda x, t: (), lambda key, carry, x, t, s: (carry, x, jnp.zeros(len(x))))
    x = jd.draw(
        KEY, DENOISER, schedule, (9, 2), kernel=lambda *_: still, ts=jnp.array([0.6, 0.5])
    ).x
    whole = jd.draw(
        KEY, DENOISER, schedule, (9, 2), kernel=lambda *_: still, ts=jnp.array([1.0, 0.5])
    ).x
    ratio = schedule.sigma(0.6) / schedule.sigma(1.0)
    np.testing.assert_allclose(x, ratio * whole, rtol=1e-6)  # float32


@pytest.mark.parametrize("make", [jd.kernels.unipc, jd.kernels.ancestral])
def test_chunks_join_up(make: object) -> None:
    """The tolerance: another batch size sums in another order."""
    whole = jd.draw(KEY, DENOISER, SCHEDULE, (6, 2), kernel=make).x
    parts = [
        jd.draw(KEY, DENOISER, SCHEDULE, (num, 2), kernel=make, first=first).x
        for first, num in ((0, 2), (2, 4))
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5)


def test_it_is_jitted_from_outside_and_compiles_once() -> None:
    traces = []

    def network(scale: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        traces.append(scale)
        return scale * x

    def denoiser(scale: float) -> Partial:
        return jd.make_denoiser(Partial(network, jnp.asarray(scale)), SCHEDULE, "x0")

    drawn = jax.jit(jd.draw, static_argnums=3, static_argnames="kernel")
    one = drawn(KEY, denoiser(0.5), SCHEDULE, (4, 2)).x
    count = len(traces)
    two = drawn(jax.random.key(4), denoiser(0.6), SCHEDULE, (4, 2)).x
    assert len(traces) == count
    assert not np.array_equal(one, two)
    plain = jd.draw(KEY, denoiser(0.5), SCHEDULE, (4, 2)).x
    np.testing.assert_allclose(one, plain, atol=1e-5)  # float32


def test_the_dtype_is_the_default_one(dtype: str) -> None:
    x = jd.draw(KEY, MIXTURE.denoiser(SCHEDULE), SCHEDULE, (3, 2), ts=jd.grids.uniform(3)).x
    assert x.dtype == dtype


KERNEL = jd.kernels.ddim(DENOISER, SCHEDULE)
test_bad_input = rejects(
    {
        "an old key": (
            lambda: jd.draw(jax.random.PRNGKey(0), DENOISER, SCHEDULE, (4, 2)),
            TypeError,
            "key: expected a typed key",
        ),
        "a schedule's name": (
            lambda: jd.draw(KEY, DENOISER, "cosine", (4, 2)),
            TypeError,
            r"schedule: expected a Schedule such as schedules.cosine\(\), got str",
        ),
        "no denoiser": (
            lambda: jd.draw(KEY, None, SCHEDULE, (4, 2)),
            TypeError,
            "denoiser: expected a function, got NoneType",
        ),
        "the shape of one": (
            lambda: jd.draw(KEY, DENOISER, SCHEDULE, ()),
            ValueError,
            r"shape: expected a tuple \[B, \*D\], got \(\)",
        ),
        "a kernel that is made": (
            lambda: jd.draw(KEY, DENOISER, SCHEDULE, (4, 2), kernel=KERNEL),
            TypeError,
            r"kernel: expected a function of a denoiser and a schedule .* \(jd.sample runs",
        ),
        "a kernel's name": (
            lambda: jd.draw(KEY, DENOISER, SCHEDULE, (4, 2), kernel="ddim"),
            TypeError,
            "kernel: expected a function of a denoiser and a schedule .* got 'ddim' .the function itself",
        ),
        "a function that makes no kernel": (
            lambda: jd.draw(KEY, DENOISER, SCHEDULE, (4, 2), kernel=lambda *_: None),
            TypeError,
            "kernel: expected a Kernel such as",
        ),
        "a number of steps": (
            lambda: jd.draw(KEY, DENOISER, SCHEDULE, (4, 2), ts=20),
            ValueError,
            "ts: expected a vector of at least 2 times",
        ),
        "a grid the other way round": (
            lambda: jd.draw(KEY, DENOISER, SCHEDULE, (4, 2), ts=jnp.linspace(0.0, 1.0, 5)),
            ValueError,
            r"ts: expected decreasing times.*ts\[::-1\]",
        ),
        "a negative first": (
            lambda: jd.draw(KEY, DENOISER, SCHEDULE, (4, 2), first=-1),
            ValueError,
            "first: expected an integer of at least 0",
        ),
        "a denoiser that changes the shape": (
            lambda: jd.draw(KEY, lambda x, t: x[:, :1], SCHEDULE, (4, 2)),
            ValueError,
            "denoise",
        ),
    }
)
