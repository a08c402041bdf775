"""The bound in continuous time: the limit of a chain's, whatever the interior of its schedule, which is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import correlated_gaussian, rejects

import jaxdiff as jd
from jaxdiff import decoders, likelihood, losses, schedules

LOW, HIGH = -8.0, 9.0


def parameters(logits: np.ndarray | None = None) -> dict:
    start = schedules.learned_parameters(LOW, HIGH, num_bins=8)
    return start if logits is None else start | {"logits": jnp.asarray(logits, jnp.float32)}


UNEVEN = np.array([1.0, 0.5, 0.0, -0.5, 0.7, -1.0, 0.2, 0.4])


def bound(key: jax.Array, schedule: jd.Schedule, x_0: jax.Array, num_times: int = 1) -> jax.Array:
    denoiser = correlated_gaussian().denoiser(schedule)
    return likelihood.continuous_lower_bound(
        key, denoiser, schedule, x_0, decoder=decoders.normal(), num_times=num_times
    )  # fmt: skip


run = jax.jit(bound, static_argnames="num_times")


def expected_terms(schedule: jd.Schedule, ts: jax.Array) -> tuple[float, float]:
    """Diffusion terms of the chain on ts and of continuous time, exactly: Cov[x_0 | x_t] of Gaussian data is constant."""
    values = np.linalg.eigvalsh(np.asarray(correlated_gaussian().covariances[0], np.float64))

    def uncertainty(log_snr: np.ndarray) -> np.ndarray:
        return (1 / (1 / values + np.exp(log_snr)[:, None])).sum(1)

    grid = np.asarray(schedule.log_snr(ts), np.float64)
    fine = np.linspace(grid[0], grid[-1], 20_001)
    discrete = 0.5 * np.sum(np.diff(np.exp(grid)) * uncertainty(grid[:-1]))
    return float(discrete), float(0.5 * np.trapezoid(np.exp(fine) * uncertainty(fine), fine))


@pytest.mark.slow
def test_it_is_the_limit_of_the_chains_bound() -> None:
    """Both estimates have their exact means, and with T those of the chain go to the other: as 1/T, within 0.01 nat."""
    schedule = jd.schedules.cosine(log_snr_min=LOW, log_snr_max=HIGH)
    data = correlated_gaussian()
    x_0 = data.sample(jax.random.key(0), (4000,))
    chain = jd.Chain(data.denoiser(schedule), schedule, jd.grids.log_snr(schedule, 100))
    assert not chain.ends_clean
    discrete, continuous = expected_terms(schedule, chain.ts)
    terms = np.asarray(jax.jit(likelihood.vlb_terms)(jax.random.key(1), chain, x_0))
    middle = terms[1:-1].sum(0)
    assert abs(middle.mean() - discrete) < 4 * middle.std() / np.sqrt(4000)
    whole = np.asarray(run(jax.random.key(2), schedule, x_0, num_times=20))
    expected = -(terms[0] + terms[-1]).mean() - continuous
    assert abs(whole.mean() - expected) < 4 * (whole.std() + terms[-1].std()) / np.sqrt(4000)
    # Both bound the data's own log-density; with the exact denoiser all that is lost is the ends'.
    gap = np.asarray(data.log_prob(x_0)) - whole
    assert -4 * gap.std() / np.sqrt(4000) < gap.mean() < 0.05
    excess = [
        np.subtract(*expected_terms(schedule, jd.grids.log_snr(schedule, n))) for n in (500, 1000)
    ]
    np.testing.assert_allclose(excess[0] / excess[1], 2, rtol=0.02)
    assert abs(2 * excess[1] - excess[0]) < 0.01


def test_the_interior_of_a_learned_schedule_leaves_the_bound_as_it_is() -> None:
    x_0 = correlated_gaussian().sample(jax.random.key(0), (20_000,))
    even, uneven = (
        run(jax.random.key(1), schedules.learned(parameters(logits)), x_0)
        for logits in (None, UNEVEN)
    )
    difference = np.asarray(even - uneven, np.float64)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(20_000)
    # The ends do change it: with less noise left the decoder's part is not the same bound.
    wide = schedules.learned(parameters() | {"log_snr_min": jnp.float32(0.0)})
    worse = np.asarray(run(jax.random.key(1), wide, x_0) - even, np.float64)
    assert worse.mean() < -4 * worse.std() / np.sqrt(20_000)


def cost(log_snr: jax.Array) -> jax.Array:
    """Some rate at which the bound is paid, per unit of lambda."""
    return jnp.exp(-((log_snr - 2) ** 2) / 8)


@pytest.mark.slow
def test_the_gradient_of_the_interior_is_that_of_the_variance(x64: None) -> None:
    """Against the second moment itself, integrated over evenly spread times."""
    start = {name: jnp.asarray(value, jnp.float64) for name, value in parameters(UNEVEN).items()}
    t = (jnp.arange(400_000) + 0.5) / 400_000

    def terms(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        schedule = schedules.learned(start | {"logits": logits})
        log_snr, rate = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
        return log_snr, -rate * cost(log_snr)

    def moment(logits: jax.Array) -> jax.Array:
        return jnp.mean(terms(logits)[1] ** 2)

    log_snr, diffusion = terms(start["logits"])
    zeros = losses.schedule_variance_loss(start, log_snr, diffusion)
    np.testing.assert_array_equal(zeros, 0)
    ours = jax.grad(lambda p: jnp.mean(losses.schedule_variance_loss(p, log_snr, diffusion)))(start)
    eps = 0.02  # times that cross the edge of a bin make smaller differences noisy
    exact = [
        (moment(start["logits"].at[k].add(eps)) - moment(start["logits"].at[k].add(-eps)))
        / (2 * eps)
        for k in range(8)
    ]
    np.testing.assert_allclose(ours["logits"], np.array(exact), atol=1e-2 * np.abs(exact).max())
    assert float(ours["log_snr_min"]) == float(ours["log_snr_max"]) == 0


@pytest.mark.slow
def test_descent_spends_the_times_where_the_bound_is_paid() -> None:
    learned, t = parameters(), (jnp.arange(4096) + 0.5) / 4096

    def diffusion(p: dict) -> tuple[jax.Array, jax.Array]:
        log_snr, rate = jax.jvp(schedules.learned(p).log_snr, (t,), (jnp.ones_like(t),))
        return log_snr, -rate * cost(log_snr)

    before = float(jnp.var(diffusion(learned)[1]))
    for _ in range(200):
        spread = diffusion(learned)
        slope = jax.grad(lambda p, spread: jnp.mean(losses.schedule_variance_loss(p, *spread)))(
            learned, spread
        )
        learned = learned | {"logits": learned["logits"] - 0.02 * slope["logits"]}
    after = diffusion(learned)[1]
    assert float(jnp.var(after)) < 0.3 * before
    np.testing.assert_allclose(jnp.mean(after), jnp.mean(diffusion(parameters())[1]), rtol=1e-3)


@pytest.mark.slow
def test_the_ends_are_learned_by_the_bound(x64: None) -> None:
    """The gradient in both ends against differences of the bound on the same noise."""
    x_0 = correlated_gaussian().sample(jax.random.key(0), (64,)).astype(jnp.float64)
    start = {name: jnp.asarray(value, jnp.float64) for name, value in parameters().items()}

    def loss(p: dict) -> jax.Array:
        return -jnp.mean(bound(jax.random.key(1), schedules.learned(p), x_0, 4))

    slopes = jax.jit(jax.grad(loss))(start)
    for name in ("log_snr_min", "log_snr_max"):
        moved = [float(loss(start | {name: start[name] + step})) for step in (1e-5, -1e-5)]
        np.testing.assert_allclose(
            float(slopes[name]), (moved[0] - moved[1]) / 2e-5, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("logits", [None, UNEVEN])
def test_learned_schedule_is_monotone_and_inverts(logits: np.ndarray | None, x64: None) -> None:
    schedule = schedules.learned(parameters(logits))
    t = jnp.linspace(0, 1, 101)
    log_snr = schedule.log_snr(t)
    np.testing.assert_allclose([log_snr[0], log_snr[-1]], [HIGH, LOW], rtol=1e-6)
    assert bool(jnp.all(jnp.diff(log_snr) < 0))
    np.testing.assert_allclose(schedule.time(log_snr), t, atol=1e-9)
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-9)


_X = jnp.zeros((2, 2))
test_bad_input = rejects(
    {
        "no noise": (
            lambda: losses.continuous_elbo(
                jax.random.key(0),
                lambda x, t: x,
                jd.schedules.cosine(),
                _X,
                decoder=decoders.normal(),
            ),
            ValueError,
            "schedule: expected noise left at t = 0",
        ),
        "ends": (
            lambda: schedules.learned_parameters(3.0, 2.0),
            ValueError,
            "log_snr_min: expected a value below log_snr_max = 2.0",
        ),
        "bins": (
            lambda: schedules.learned_parameters(num_bins=0),
            ValueError,
            "num_bins: expected a positive int",
        ),
        "missing": (
            lambda: schedules.learned({"logits": jnp.zeros(3)}),
            ValueError,
            "parameters: expected log_snr_min",
        ),
        "times": (
            lambda: likelihood.continuous_lower_bound(
                jax.random.key(0),
                lambda x, t: x,
                jd.schedules.edm(),
                _X,
                decoder=decoders.normal(),
                num_times=0,
            ),
            ValueError,
            "num_times: expected a positive int",
        ),
    }
)
