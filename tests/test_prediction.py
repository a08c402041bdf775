"""Predictions: 25 conversions, networks of every kind through the oracle, thresholds, end-points."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from helpers import SCHEDULES, asymmetric_mixture, crossed, every_schedule, rejects
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff.prediction import CONVERTIBLE, PREDICTIONS, affine, convert, from_x_0, target, to_x_0

every = every_schedule()
T = np.array([0.05, 0.3, 0.7, 0.95])


def case() -> tuple[jax.Array, jax.Array]:
    x_0, eps = jax.random.normal(jax.random.key(0), (2, 4, 3))
    return x_0, eps


@functools.cache
def targets(name: str) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The noisy state of the case, and what each kind of network should say there; in float64."""
    schedule, (x_0, eps) = SCHEDULES[name](), case()
    wanted = {kind: target(schedule, x_0, eps, T, prediction=kind) for kind in PREDICTIONS}
    return jd.q_sample(schedule, x_0, T, eps), wanted


@every
@pytest.mark.parametrize("source", CONVERTIBLE)
@pytest.mark.parametrize("other", CONVERTIBLE)
def test_all_pairs_convert(name: str, source: str, other: str, x64: None) -> None:
    schedule, (x_t, wanted) = SCHEDULES[name](), targets(name)
    found = convert(schedule, wanted[source], x_t, T, source=source, target=other)
    # Rounding, amplified by alpha / sigma at one end and sigma / alpha at the other: up to 1e3 for these times.
    np.testing.assert_allclose(found, wanted[other], rtol=1e-9)


@every
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_targets_mean_x_0(name: str, kind: str, x64: None) -> None:
    schedule, (x_0, _), (x_t, wanted) = SCHEDULES[name](), case(), targets(name)
    skip, out = affine(schedule, T, x_t, prediction=kind)
    np.testing.assert_allclose(skip * x_t + out * wanted[kind], x_0, rtol=1e-9)
    np.testing.assert_allclose(
        from_x_0(schedule, x_0, x_t, T, prediction=kind), wanted[kind], rtol=1e-9, atol=1e-9
    )


@every
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_end_points_are_finite(name: str, kind: str, t: float, dtype: str) -> None:
    schedule = SCHEDULES[name]()
    x_0, eps = (x.astype(dtype) for x in case())

    @jax.value_and_grad
    def loss(x_0: jax.Array) -> jax.Array:
        x_t = jd.q_sample(schedule, x_0, t, eps)
        wanted = target(schedule, x_0, eps, t, prediction=kind)
        skip, out = affine(schedule, t, x_t, prediction=kind)
        return jnp.sum(wanted) + jnp.sum(skip * x_t + out * wanted)

    chex.assert_tree_all_finite(loss(x_0))


@every
def test_velocity_is_dx_dt(name: str, x64: None) -> None:
    schedule, (x_0, eps) = SCHEDULES[name](), case()
    t = jnp.asarray(T) + 1e-5  # off the knots of the tables, where the derivative jumps
    slope = jax.jvp(lambda t: jd.q_sample(schedule, x_0, t, eps), (t,), (jnp.ones(4),))[1]
    np.testing.assert_allclose(
        target(schedule, x_0, eps, t, prediction="velocity"), slope, rtol=1e-10, atol=1e-12
    )


def test_v_is_not_the_velocity() -> None:
    """They agree up to the factor -lambda' alpha sigma / 2 for variance preserving processes, and not otherwise."""
    schedule, (x_0, eps) = jd.schedules.cosine(log_snr_min=-np.inf), case()
    v, velocity = (target(schedule, x_0, eps, T, prediction=kind) for kind in ("v", "velocity"))
    np.testing.assert_allclose(velocity, np.pi / 2 * v, rtol=1e-4)  # theta' = pi / 2; float32
    flow = jd.schedules.rectified_flow()
    np.testing.assert_allclose(
        target(flow, x_0, eps, T, prediction="velocity"), eps - x_0, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    crossed(
        PREDICTIONS, SCHEDULES, quick=lambda kind, name: name in ("cosine", "edm", "rectified_flow")
    ),
)
def test_a_perfect_network_of_any_kind_is_the_oracle(name: str, kind: str, x64: None) -> None:
    schedule, mixture = SCHEDULES[name](), asymmetric_mixture()
    oracle = mixture.denoiser(schedule)
    x_t = jd.q_sample(schedule, mixture.sample(jax.random.key(0), (4,)), T, case()[1][:, :2])

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        if kind == "edm":  # it is given c_in x
            alpha, sigma = schedule.alpha_sigma(t)
            x = x * jnp.hypot(sigma, alpha * 0.5)[:, None]
        return from_x_0(schedule, oracle(x, t), x, t, prediction=kind)

    denoiser = jd.make_denoiser(network, schedule, kind, start=0.99)
    np.testing.assert_allclose(denoiser(x_t, T), oracle(x_t, T), rtol=1e-9)


def test_score_prediction_is_the_oracles_score(x64: None) -> None:
    schedule, mixture = jd.schedules.linear(), asymmetric_mixture()
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    denoiser = mixture.denoiser(schedule)
    score = convert(schedule, denoiser(x_t, 0.4), x_t, 0.4, source="x0", target="score")
    np.testing.assert_allclose(score, mixture.diffuse(schedule, 0.4).score(x_t), rtol=1e-10)


def test_thresholds() -> None:
    schedule = jd.schedules.cosine()
    x_0 = jnp.stack([jnp.linspace(-3, 3, 101), jnp.linspace(-0.5, 0.5, 101)])
    x_t = jnp.zeros_like(x_0)

    def apply(x: jax.Array, t: jax.Array) -> jax.Array:
        return x_0

    np.testing.assert_array_equal(
        jd.make_denoiser(apply, schedule, "x0", "static")(x_t, 0.5), jnp.clip(x_0, -1, 1)
    )
    dynamic = jd.make_denoiser(apply, schedule, "x0", "dynamic")(x_t, 0.5)
    assert np.abs(dynamic).max() <= 1 + 1e-6
    np.testing.assert_allclose(
        dynamic[0, 45:56], x_0[0, 45:56] / np.quantile(np.abs(x_0[0]), 0.995), rtol=1e-5
    )
    np.testing.assert_array_equal(
        dynamic[1], x_0[1]
    )  # a row within bounds is left alone: rows do not couple
    halved = jd.make_denoiser(apply, schedule, "x0", lambda x: x / 2)
    np.testing.assert_array_equal(halved(x_t, 0.5), x_0 / 2)


def test_learned_variance_splits_the_channels() -> None:
    def apply(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.concatenate([2 * x, jnp.zeros_like(x)], axis=-1)

    denoiser = jd.make_denoiser(apply, jd.schedules.cosine(), "x0", learned_variance=True)
    x = jnp.ones((2, 3, 3, 1))
    x_0, fraction, variance = denoiser(x, 0.5)
    assert variance is None
    np.testing.assert_array_equal(x_0, 2 * x)
    np.testing.assert_array_equal(
        fraction, 0.5
    )  # an output of zero is the middle of the two log-variances


def test_new_parameters_do_not_compile_again() -> None:
    count = 0

    def apply(params: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        nonlocal count
        count += 1
        return params * x

    run = jax.jit(lambda denoiser, x: denoiser(x, 0.5))
    for value in (1.0, 2.0, 3.0):
        run(
            jd.make_denoiser(
                Partial(apply, jnp.asarray(value)), jd.schedules.linear(0.1, 10 + value)
            ),
            jnp.ones((2, 3)),
        )
    assert count == 1


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.all_variants(with_pmap=True)
    @parameterized.parameters(*CONVERTIBLE)
    def test_to_x_0(self, kind: str) -> None:
        schedule, (x_0, eps) = jd.schedules.sigmoid(), case()
        x_t = jd.q_sample(schedule, x_0, T, eps)
        wanted = target(schedule, x_0, eps, T, prediction=kind)
        out = self.variant(
            lambda wanted, x_t, t: to_x_0(schedule, wanted, x_t, t, prediction=kind)
        )(wanted, x_t, T)
        np.testing.assert_allclose(out, x_0, atol=1e-5)  # float32, with sigma / alpha up to 7


COSINE = jd.schedules.cosine()
X = jnp.zeros((2, 3))
BAD = {
    "no width": (lambda: jd.make_denoiser(lambda x, t: x, COSINE, "edm", sigma_data=0.0), ValueError, "sigma_data: expected a positive standard deviation, got 0"),
    "width of nothing": (lambda: jd.prediction.edm_input(COSINE, 0.5, X, sigma_data=float("nan")), ValueError, "sigma_data: expected a positive"),
    "negative width": (lambda: jd.prediction.target(COSINE, X, X, 0.5, prediction="edm", sigma_data=-1.0), ValueError, "sigma_data: expected a positive"),
    "endless width": (lambda: jd.prediction.affine(COSINE, 0.5, X, prediction="edm", sigma_data=float("inf")), ValueError, "sigma_data: expected a positive"),
    "loss without width": (lambda: jd.losses.simple(jax.random.key(0), lambda x, t: x, COSINE, X, prediction="edm", sigma_data=0), ValueError, "sigma_data: expected a positive"),
    "weight without width": (lambda: jd.losses.weights.edm(float("nan")), ValueError, "sigma_data: expected a positive"),
    "guidance": (lambda: jd.guidance.classifier_free(lambda x, t: x, lambda x, t: x, float("nan")), ValueError, "scale: expected a finite number"),
    "unknown prediction": (lambda: jd.make_denoiser(lambda x, t: x, COSINE, "noise"), ValueError, "prediction: expected one of 'eps'"),
    "unknown threshold": (lambda: jd.make_denoiser(lambda x, t: x, COSINE, "x0", "hard"), ValueError, "threshold: expected one of"),
    "no function": (lambda: jd.make_denoiser(X, COSINE), TypeError, "apply: expected a function, got"),
    "wrong output": (lambda: jd.make_denoiser(lambda x, t: x[:, :2], COSINE)(X, 0.5), ValueError, "the network's output: expected the shape of x_t"),
    "integer state": (lambda: jd.make_denoiser(lambda x, t: x, COSINE)(X.astype(int), 0.5), TypeError, "x_t: expected a floating dtype"),
    "edm does not convert": (lambda: to_x_0(COSINE, X, X, 0.5, prediction="edm"), ValueError, "prediction: expected one of"),
    "unknown target": (lambda: convert(COSINE, X, X, 0.5, source="x0", target="z"), ValueError, "target: expected one of"),
    "time of another batch": (lambda: to_x_0(COSINE, X, X, jnp.zeros(3), prediction="v"), ValueError, "t: expected shape"),
    "limit": (lambda: jd.prediction.clip(-1.0), ValueError, "limit: expected a positive bound, got -1.0"),
    "quantile": (lambda: jd.prediction.dynamic_threshold(1.5), ValueError, "quantile: expected a fraction"),
}  # fmt: skip


test_bad_input = rejects(BAD)
