"""The density of the probability-flow ODE: exact for Gaussians and mixtures, normalised, of its stated order."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import asymmetric_mixture, correlated_gaussian, rejects, slow

import jaxdiff as jd
from jaxdiff.likelihood import ode_log_prob

solve = jax.jit(ode_log_prob)


def in_float64(mixture: jd.oracles.GaussianMixture) -> jd.oracles.GaussianMixture:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), mixture)


# With so little left of the data at t = 1 that the prior is the marginal.
DEEP = {
    "cosine": jd.schedules.cosine,
    "linear": lambda: jd.schedules.linear(0.1, 40.0),
    "edm": lambda: jd.schedules.edm(0.002, 8000.0),
    "rectified_flow": jd.schedules.rectified_flow,
}


@pytest.mark.parametrize("name", [n if n == "cosine" else slow(n) for n in DEEP])
def test_mixture_density_is_exact(name: str, x64: None) -> None:
    """Within 1e-3 nat at 100 steps, in all families."""
    schedule, mixture = DEEP[name](), in_float64(asymmetric_mixture())
    x_0 = mixture.sample(jax.random.key(0), (50,))
    target = mixture.diffuse(
        schedule, 0.0
    )  # the data themselves, but for edm, whose t = 0 carries sigma_min
    log_prob = solve(mixture.denoiser(schedule), schedule, jd.grids.log_snr(schedule, 100), x_0)
    np.testing.assert_allclose(log_prob, target.log_prob(x_0), atol=1e-3)


def test_gaussian_density_within_a_ten_thousandth_of_a_nat(x64: None) -> None:
    schedule, data = jd.schedules.rectified_flow(), in_float64(correlated_gaussian())
    x_0 = data.sample(jax.random.key(0), (50,))
    density = solve(data.denoiser(schedule), schedule, jd.grids.log_snr(schedule, 100), x_0)
    np.testing.assert_allclose(density, data.log_prob(x_0), atol=1e-4)


@pytest.mark.slow
def test_the_density_integrates_to_one() -> None:
    schedule, mixture = jd.schedules.cosine(), asymmetric_mixture()
    side = jnp.linspace(-4, 4, 120)
    x_0 = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_prob = solve(mixture.denoiser(schedule), schedule, jd.grids.log_snr(schedule, 60), x_0)
    mass = float(jnp.sum(jnp.exp(log_prob))) * float(side[1] - side[0]) ** 2
    assert abs(mass - 1) < 1e-3  # of the quadrature and the solver together


@pytest.mark.slow
def test_order_of_the_density(x64: None) -> None:
    """Halving the steps divides the error by 16: the classical Runge-Kutta method."""
    schedule, mixture = jd.schedules.cosine(), in_float64(asymmetric_mixture())
    denoiser, x_0 = mixture.denoiser(schedule), mixture.sample(jax.random.key(0), (20,))

    def density(num_steps: int) -> np.ndarray:
        ts = schedule.time(jnp.linspace(-8, 6, num_steps + 1))
        return np.asarray(solve(denoiser, schedule, ts, x_0))

    reference, counts = density(1024), np.array([32, 64, 128])
    errors = [np.median(np.abs(density(n) - reference)) for n in counts]
    np.testing.assert_allclose(-np.polyfit(np.log(counts), np.log(errors), 1)[0], 4, atol=0.3)


@pytest.mark.parametrize("num_probes", [0, 1])
def test_the_divergence_takes_vector_jacobian_products(num_probes: int) -> None:
    """Those of a network are fast inside a scan; a function like this one has no others."""

    @jax.custom_vjp
    def half(x: jax.Array) -> jax.Array:
        return x / 2

    half.defvjp(lambda x: (x / 2, None), lambda _, g: (g / 2,))
    schedule, x_0 = jd.schedules.cosine(), jnp.array([[0.3, -0.2]])
    ts = jd.grids.log_snr(schedule, 4)
    key = jax.random.key(0) if num_probes else None

    def density(denoise: Callable) -> jax.Array:
        return ode_log_prob(
            lambda x, t: denoise(x), schedule, ts, x_0, key=key, num_probes=num_probes
        )

    np.testing.assert_allclose(density(half), density(lambda x: x / 2), rtol=1e-6)  # rounding


@pytest.mark.slow
def test_hutchinson_is_unbiased(x64: None) -> None:
    schedule, mixture = jd.schedules.cosine(), in_float64(asymmetric_mixture())
    denoiser, ts = mixture.denoiser(schedule), jd.grids.log_snr(schedule, 40)
    point = jnp.array([[0.3, -0.2]])
    exact = float(solve(denoiser, schedule, ts, point)[0])
    for probe in ("rademacher", "gaussian"):
        solver = functools.partial(ode_log_prob, num_probes=2, probe=probe)
        run = jax.jit(lambda k, x, solver=solver: solver(denoiser, schedule, ts, x, key=k))
        draws = np.asarray(run(jax.random.key(0), jnp.tile(point, (4000, 1))))
        assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(4000), probe
    # Where the Jacobian is diagonal, signs are all a probe needs: no variance.
    plain = jd.oracles.gaussian(jnp.zeros(3), jnp.array([0.2, 1.0, 3.0]))
    x_0 = plain.sample(jax.random.key(1), (4,))
    one = ode_log_prob(
        plain.denoiser(schedule), schedule, ts, x_0, key=jax.random.key(2), num_probes=1
    )
    np.testing.assert_allclose(one, solve(plain.denoiser(schedule), schedule, ts, x_0), rtol=1e-9)


@pytest.mark.slow
def test_adaptive_agrees(x64: None) -> None:
    schedule, mixture = jd.schedules.cosine(), in_float64(asymmetric_mixture())
    x_0 = mixture.sample(jax.random.key(0), (10,))
    log_prob = jax.jit(
        lambda x: ode_log_prob(
            mixture.denoiser(schedule), schedule, jnp.array([1.0, 0.0]), x, tolerance=1e-7
        )
    )
    np.testing.assert_allclose(log_prob(x_0), mixture.log_prob(x_0), atol=1e-3)


_SCHEDULE, _X = jd.schedules.cosine(), jnp.zeros((2, 2))
_D = asymmetric_mixture().denoiser(_SCHEDULE)
test_bad_input = rejects(
    {
        "no key": (
            lambda: ode_log_prob(_D, _SCHEDULE, jd.grids.uniform(3), _X, num_probes=2),
            ValueError,
            "num_probes, key: expected a key",
        ),
        "no probes": (
            lambda: ode_log_prob(_D, _SCHEDULE, jd.grids.uniform(3), _X, key=jax.random.key(0)),
            ValueError,
            "num_probes, key: expected a key",
        ),
        "probe": (
            lambda: ode_log_prob(_D, _SCHEDULE, jd.grids.uniform(3), _X, probe="cauchy"),
            ValueError,
            "probe: expected one of",
        ),
        "grid": (
            lambda: ode_log_prob(_D, _SCHEDULE, jnp.linspace(0, 1, 3), _X),
            ValueError,
            "ts: expected decreasing times",
        ),
        "integers": (
            lambda: ode_log_prob(_D, _SCHEDULE, jd.grids.uniform(3), jnp.zeros((2, 2), int)),
            TypeError,
            "x_0: expected a floating",
        ),
    }
)
