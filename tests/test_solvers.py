"""Solvers: their orders, their limits, and the mistakes that the orders give away."""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.kernels import KERNELS
from helpers import (
    SCHEDULES,
    asymmetric_mixture,
    correlated_gaussian,
    crossed,
    mixture_samples,
    moment_z_scores,
    rejects,
    slow,
)
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import _rows, data, kernels
from jaxdiff._tree import pytree, static
from jaxdiff.kernels import _exponential

families = pytest.mark.parametrize("name", ["linear", slow("edm"), "rectified_flow"])
ORDERED = {name: kernel for name, kernel in KERNELS.items() if kernel.order is not None}
COUNTS = np.array([96, 192])  # on the asymptotic range of all of them


def paths(name: str, make: Callable, counts: np.ndarray, *, start: float = -8.0) -> list[jax.Array]:
    """End states of 32 trajectories of the ODE from log-SNR `start` to 6, for each number of steps."""
    schedule, mixture = SCHEDULES[name](), asymmetric_mixture()
    alpha, sigma = schedule.alpha_sigma(schedule.time(start))
    x = sigma * jax.random.normal(jax.random.key(0), (32, 2)) + alpha * 0.3
    kernel = make(mixture.denoiser(schedule), schedule)
    grids = [schedule.time(jnp.linspace(start, 6, n + 1)) for n in counts]
    return [jd.sample(jax.random.key(1), kernel, x, ts).x for ts in grids]


@functools.cache
def exact_path(name: str, start: float) -> jax.Array:
    """The end states in 2048 steps of UniPC, whose own error is below 1e-8; in float64."""
    return paths(name, kernels.unipc, np.array([2048]), start=start)[0]


def slope(name: str, make: Callable, counts: np.ndarray = COUNTS, *, start: float = -8.0) -> float:
    """The order of convergence: the log-log slope of the error against the number of steps."""
    exact = exact_path(name, start)
    errors = [
        float(jnp.sqrt(jnp.mean((x - exact) ** 2))) for x in paths(name, make, counts, start=start)
    ]
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("kernel_name", "name"),
    crossed(
        ORDERED,
        ["linear", "edm", "rectified_flow"],
        quick=lambda kernel_name, name: (
            name == "linear" and kernel_name in ("ddim", "dpmpp_3m", "unipc_3", "dpmpp_2s")
        ),
    ),
)
def test_order(kernel_name: str, name: str, x64: None) -> None:
    kernel = ORDERED[kernel_name]
    # Euler's and Heun's variables run over a factor of a thousand here: theirs is a longer way to the asymptote.
    counts = COUNTS * (32 if kernel_name == "euler_t" else 4 if kernel_name == "heun" else 1)
    np.testing.assert_allclose(
        slope(name, kernel.make, counts), kernel.order, atol=0.15 * max(1, kernel.order - 2)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["linear", slow("edm"), slow("rectified_flow")],
)
def test_the_adaptive_solver_meets_its_tolerance(name: str, x64: None) -> None:
    """An independent solver, in other variables and with its own step sizes, comes to the same states."""
    schedule, exact = SCHEDULES[name](), exact_path(name, -8.0)
    for tolerance in (1e-5, 1e-8):
        (x,) = paths(name, lambda d, s, tol=tolerance: kernels.adaptive(d, s, tol), np.array([1]))
        alpha, sigma = schedule.alpha_sigma(schedule.time(6.0))
        assert np.abs(x - exact).max() < 300 * tolerance * np.hypot(
            alpha, sigma
        )  # a thousand steps' local errors


# --- limits and identities ------------------------------------------------------------------------------------------

X = np.array([[0.4, -0.3], [1.1, 0.8], [-0.7, 0.2]])


def run(kernel: jd.Kernel, ts: jax.Array) -> jax.Array:
    return jd.sample(jax.random.key(3), kernel, jnp.asarray(X, ts.dtype), ts).x


def oracle(name: str) -> tuple[Callable, jd.Schedule]:
    schedule = SCHEDULES[name]()
    return asymmetric_mixture().denoiser(schedule), schedule


@pytest.mark.parametrize(
    "name", [n if n in ("cosine", "edm", "rectified_flow") else slow(n) for n in SCHEDULES]
)
def test_order_one_is_ddim_and_with_noise_ddpm(name: str, x64: None) -> None:
    """Two papers' first-order methods are one; so is the exponential integrator of the SDE and DDPM."""
    (denoiser, schedule), ts = oracle(name), jnp.array([0.9, 0.7, 0.4, 0.0])
    for tau, other in (
        (0.0, kernels.ddim(denoiser, schedule)),
        (1.0, kernels.ancestral(denoiser, schedule)),
    ):
        ours = run(kernels.dpmpp_1s(denoiser, schedule, tau), ts)
        np.testing.assert_allclose(ours, run(other, ts), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", slow("edm"), slow("rectified_flow")])
def test_a_first_step_has_no_history(name: str, x64: None) -> None:
    (denoiser, schedule), ts = oracle(name), jnp.array([0.7, 0.5])
    expected = run(kernels.ddim(denoiser, schedule), ts)
    for make in (kernels.dpmpp_2m, kernels.dpmpp_3m, kernels.unipc):
        np.testing.assert_allclose(run(make(denoiser, schedule), ts), expected, rtol=1e-12)


def test_dpmpp_2m_is_the_papers(x64: None) -> None:
    """Algorithm 2, written as the paper writes it."""
    denoiser, schedule = oracle("linear")
    ts = jnp.array([0.8, 0.6, 0.45])
    alpha, sigma = schedule.alpha_sigma(ts)
    lam = schedule.log_snr(ts) / 2
    h = np.diff(lam)
    first = denoiser(X, ts[0])
    x = sigma[1] / sigma[0] * X - alpha[1] * np.expm1(-h[0]) * first
    second, r = denoiser(x, ts[1]), h[0] / h[1]
    x = sigma[2] / sigma[1] * x - alpha[2] * np.expm1(-h[1]) * (
        (1 + 1 / (2 * r)) * second - first / (2 * r)
    )
    np.testing.assert_allclose(run(kernels.dpmpp_2m(denoiser, schedule), ts), x, rtol=1e-12)


def test_dpmpp_2s_is_the_papers(x64: None) -> None:
    denoiser, schedule = oracle("cosine")
    t, s = 0.7, 0.5
    u = schedule.time((schedule.log_snr(t) + schedule.log_snr(s)) / 2)
    (_, s_t), (a_u, s_u), (a_s, s_s) = (schedule.alpha_sigma(time) for time in (t, u, s))
    h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
    middle = s_u / s_t * X - a_u * jnp.expm1(-h / 2) * denoiser(X, t)
    expected = s_s / s_t * X - a_s * jnp.expm1(-h) * denoiser(middle, u)
    np.testing.assert_allclose(
        run(kernels.dpmpp_2s(denoiser, schedule), jnp.array([t, s])), expected, rtol=1e-10
    )


def test_heun_is_edms(x64: None) -> None:
    """Algorithm 2 with its churn, in the paper's own variables, where alpha = 1 and sigma is the time."""
    denoiser, schedule = oracle("edm")
    t, s, gamma, scale = 0.6, 0.5, 0.2, 1.003
    sigma, below = float(schedule.sigma(t)), float(schedule.sigma(s))
    raised = sigma * (1 + gamma)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0)  # row 0, step 0
    noise = jax.random.normal(key, (1, 2))
    x = X[:1] + np.sqrt(raised**2 - sigma**2) * scale * noise
    at = schedule.time(-2 * np.log(raised))
    d = (x - denoiser(x, at)) / raised
    euler = x + (below - raised) * d
    d_below = (euler - denoiser(euler, s)) / below
    expected = x + (below - raised) * (d + d_below) / 2
    kernel = kernels.heun(denoiser, schedule, gamma, churn_noise=scale)
    np.testing.assert_allclose(run(kernel, jnp.array([t, s]))[:1], expected, rtol=1e-9)


def test_euler_in_t_is_ddim_on_a_flow(x64: None) -> None:
    (denoiser, schedule), ts = oracle("rectified_flow"), jnp.linspace(0.9, 0.0, 6)
    one, two = (run(make(denoiser, schedule), ts) for make in (kernels.euler_t, kernels.ddim))
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


@families
def test_euler_is_the_step_in_sigma_of_edm(name: str, x64: None) -> None:
    """dz / dr = eps, with z = x / alpha and r = sigma / alpha: k-diffusion's `sample_euler`."""
    (denoiser, schedule), (t, s) = oracle(name), (0.6, 0.5)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    z, r, r_s = X / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s
    expected = alpha_s * (z + (r_s - r) * (z - denoiser(X, t)) / r)
    found = run(kernels.euler(denoiser, schedule), jnp.array([t, s]))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_euler_in_t_is_far_off_where_sigma_is_exponential() -> None:
    """What EDM calls Euler is the step in sigma: at 10 steps on EDM's schedule it makes the difference."""
    denoiser, schedule = oracle("edm")
    x = jd.prior_sample(jax.random.key(0), schedule, (64, 2))

    def end(make: Callable, steps: int) -> jax.Array:
        kernel = make(denoiser, schedule)
        return jd.sample(jax.random.key(0), kernel, x, jd.grids.uniform(steps)).x

    exact = end(kernels.unipc, 100)
    error, error_t = (
        float(jnp.sqrt(jnp.mean((end(make, 10) - exact) ** 2)))
        for make in (kernels.euler, kernels.euler_t)
    )
    assert 4 * error < error_t  # 0.19 and 1.19


@pytest.mark.parametrize("prediction", jd.prediction.PREDICTIONS)
@pytest.mark.parametrize("kernel_name", [slow("heun"), "unipc_2"])
def test_every_prediction_samples_alike(kernel_name: str, prediction: str, x64: None) -> None:
    """A network that says the oracle's x_0 in another way gives the oracle's samples."""
    denoiser, schedule = oracle("cosine")

    def network(x: jax.Array, t: jax.Array) -> jax.Array:
        if prediction == "edm":  # it sees a scaled input
            alpha, sigma = (_rows.expand(v, x) for v in schedule.alpha_sigma(t))
            x = x * jnp.hypot(sigma, alpha * 0.5)
        return jd.prediction.from_x_0(schedule, denoiser(x, t), x, t, prediction=prediction)

    make, ts = KERNELS[kernel_name].make, jd.grids.uniform(8)
    said = jd.make_denoiser(network, schedule, prediction)
    np.testing.assert_allclose(
        run(make(said, schedule), ts), run(make(denoiser, schedule), ts), rtol=1e-6, atol=1e-8
    )


def test_moments_of_the_exponential_weight(x64: None) -> None:
    """By quadrature, on both sides of the switch between the series and the recursion."""
    v, weight = np.polynomial.legendre.leggauss(60)
    v, weight = (v + 1) / 2, weight / 2
    for z in (1e-8, 0.3, 0.99, 1.01, 5.0, -0.5, -3.0):
        exact = [np.sum(weight * z * np.exp(-z * (1 - v)) * v**j) for j in range(4)]
        found = _exponential.moments(jnp.asarray(z), 4)
        np.testing.assert_allclose(np.array(found), exact, rtol=1e-10)


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel_name", "name"),
    crossed(
        ["ddim", "dpmpp_2s", "dpmpp_2m", "unipc_2"],
        ["linear", "edm", "rectified_flow"],
        quick=lambda *case: case == ("unipc_2", "rectified_flow"),
    ),
)
def test_encoding_and_decoding_is_the_identity_to_the_order(
    kernel_name: str, name: str, x64: None
) -> None:
    """Data to latents to data: the round trip's error falls at the kernel's order, or faster where errors cancel."""
    schedule, mixture = SCHEDULES[name](), asymmetric_mixture()
    kernel = KERNELS[kernel_name].make(mixture.denoiser(schedule), schedule)
    x, errors = mixture.sample(jax.random.key(0), (32,)), []
    for num in COUNTS:
        ts = schedule.time(jnp.linspace(-8.0, 8.0, num + 1))
        latent = jd.sampling.encode(kernel, x, ts)
        back = jd.sample(jax.random.key(1), kernel, latent, ts).x
        errors.append(float(jnp.sqrt(jnp.mean((back - x) ** 2))))
    assert errors[-1] < (0.3 if KERNELS[kernel_name].order == 1 else 0.01)
    assert -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0] > KERNELS[kernel_name].order - 0.2


def test_latents_of_data_are_noise(x64: None) -> None:
    """What encoding returns is distributed as the prior: the ODE carries one marginal into the other."""
    schedule, mixture = jd.schedules.cosine(), asymmetric_mixture()
    kernel = kernels.unipc(mixture.denoiser(schedule), schedule)
    x = mixture.diffuse(schedule, 1e-3).sample(jax.random.key(0), (4000,))
    latent = jd.sampling.encode(kernel, x, jd.grids.log_snr(schedule, 60, end=1e-3))
    normal = jd.oracles.gaussian(jnp.zeros(2), jnp.eye(2))
    assert np.abs(moment_z_scores(latent, normal)).max() < 5


@pytest.mark.slow
def test_real_digits_come_back() -> None:
    """Handwritten digits through the ODE of their kernel density, in float32: to less than a grey level (2 / 16)."""
    digits = data.load("digits").train
    points = jnp.asarray(data.to_unit(digits.images[:400], 17))
    schedule = jd.schedules.cosine()
    law = jd.oracles.empirical(points, 0.3)
    kernel = kernels.unipc(law.denoiser(schedule), schedule)
    ts = jd.grids.log_snr(schedule, 60, end=0.02)
    x = law.sample(jax.random.key(0), (20,)).reshape(20, *points.shape[1:])
    latent = jd.sampling.encode(kernel, x, ts)
    assert 0.8 < latent.std() < 1.2
    assert np.abs(jd.sample(jax.random.key(0), kernel, latent, ts).x - x).max() < 2 / 16


# --- stochastic kernels ---------------------------------------------------------------------------------------------


def law(make: Callable, schedule: jd.Schedule, ts: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of a run on one-dimensional Gaussian data: each step is F x + b + c z.

    F, b and c come from the kernel itself: two states with one noise, and two noises with one state.
    """
    data = jd.oracles.gaussian(jnp.array([0.7]), jnp.array([0.3]))
    kernel, probe = make(data.denoiser(schedule), schedule), jnp.array([[0.0], [1.0], [0.0]])
    keys = jax.random.split(jax.random.key(0), 2)[jnp.array([0, 0, 1])]
    z = np.asarray(_rows.normal(keys, probe))
    at = data.diffuse(schedule, ts[0])
    mean, variance = np.asarray(at.means[0]), np.asarray(at.covariances[0])
    steps = jax.jit(jax.vmap(lambda t, s: kernel.step(keys, (), probe, t, s)[1]))
    for zero, one, other in np.asarray(steps(ts[:-1], ts[1:])):
        scale = (zero - other) / (z[0] - z[2])
        slope, shift = one - zero, zero - scale * z[0]
        mean, variance = slope * mean + shift, slope**2 * variance + scale**2
    return mean, variance


@pytest.mark.slow
@families
def test_euler_maruyama_is_of_weak_order_one(name: str, x64: None) -> None:
    """The error of the variance, without Monte Carlo, falls as 1 / steps."""
    schedule, errors, counts = SCHEDULES[name](), [], np.array([128, 256, 512])
    for num in counts:
        _, variance = law(kernels.euler_maruyama, schedule, jnp.linspace(0.6, 0.3, num + 1))
        alpha, sigma = schedule.alpha_sigma(0.3)
        errors.append(abs(float(variance[0] - (alpha**2 * 0.3 + sigma**2))))
    np.testing.assert_allclose(-np.polyfit(np.log(counts), np.log(errors), 1)[0], 1, atol=0.15)


@pytest.mark.parametrize("name", ["linear", slow("edm"), slow("rectified_flow")])
@pytest.mark.parametrize("variance", ["small", slow("large"), "optimal", 0.4])
def test_the_affine_chain_is_the_law_of_ancestral_samples(
    name: str, variance: str | float, x64: None
) -> None:
    """The recursion against a run of the kernel, in few steps, where the samples are far from the data's law."""
    schedule, ts, data = SCHEDULES[name](), jd.grids.uniform(6), correlated_gaussian()
    x_init = jd.prior_sample(jax.random.key(0), schedule, (20_000, 2))
    kernel = kernels.ancestral(data.denoiser(schedule, variance=True), schedule, variance)
    x = jd.sample(jax.random.key(1), kernel, x_init, ts).x
    exact = jd.oracles.affine_chain(data, schedule, ts, variance=variance)
    assert np.abs(moment_z_scores(x, exact)).max() < 5


def test_the_optimal_variance_reverses_gaussian_data_exactly(x64: None) -> None:
    """q(x_s | x_t) of diagonal Gaussian data is the kernel's: no error of discretisation in as few as three steps."""
    data, schedule = (
        jd.oracles.gaussian(jnp.array([0.7, -0.4]), jnp.array([2.0, 0.1])),
        jd.schedules.edm(0.01, 1e4),
    )
    end = jd.oracles.affine_chain(
        data, schedule, jnp.array([1.0, 0.6, 0.4, 1e-9]), variance="optimal"
    )
    exact = data.diffuse(schedule, 1e-9)
    np.testing.assert_allclose(
        end.means, exact.means, atol=1e-5
    )  # the start, N(0, 1e8), is not quite the marginal
    np.testing.assert_allclose(end.covariances[0], np.diag(exact.covariances[0]), atol=1e-5)


STOCHASTIC = {
    "sde_dpmpp_2m": (lambda d, s: kernels.dpmpp_2m(d, s, 1.0), 100),
    "sde_dpmpp_3m": (lambda d, s: kernels.dpmpp_3m(d, s, 0.5), 100),
    "heun_churn": (lambda d, s: kernels.heun(d, s, 0.05), 200),
    "euler_maruyama": (kernels.euler_maruyama, 1500),
    "corrected": (
        lambda d, s: kernels.corrected(kernels.ddim(d, s), d, s, 0.1, num_corrections=2),
        200,
    ),
}


@pytest.mark.parametrize(
    ("case", "name"),
    crossed(
        STOCHASTIC,
        ["linear", "edm"],
        quick=lambda case, name: name == "linear" and case == "sde_dpmpp_3m",
    ),
)
def test_stochastic_kernels_reproduce_the_mixture(case: str, name: str) -> None:
    make, num_steps = STOCHASTIC[case]
    schedule, mixture = SCHEDULES[name](), asymmetric_mixture()
    x = mixture_samples(make, schedule, mixture, jd.grids.log_snr(schedule, num_steps), 4000)
    assert np.abs(moment_z_scores(x, mixture)).max() < 5


@pytest.mark.parametrize("predictor", ["unipc_2", slow("dpmpp_3m"), slow("ddim")])
def test_a_correction_stays_whatever_the_predictor_remembers(predictor: str) -> None:
    """From one and the same state, Langevin steps spread the rows to the data's law, also under a kernel with a memory
    of its own states."""
    schedule, data = (
        jd.schedules.cosine(),
        jd.oracles.gaussian(jnp.array([0.7, -0.4]), 0.3 * jnp.eye(2)),
    )
    denoiser = data.denoiser(schedule)
    kernel = kernels.corrected(
        KERNELS[predictor].make(denoiser, schedule), denoiser, schedule, 0.3, num_corrections=2
    )
    x = jd.sample(jax.random.key(0), kernel, jnp.ones((2000, 2)), jd.grids.log_snr(schedule, 60)).x
    np.testing.assert_allclose(x.std(0), np.sqrt(0.3), rtol=0.1)
    np.testing.assert_allclose(x.mean(0), [0.7, -0.4], atol=0.1)


@pytest.mark.slow
def test_corrections_of_corrections_draw_their_own_noise() -> None:
    denoiser, schedule = oracle("linear")
    once = kernels.corrected(kernels.ddim(denoiser, schedule), denoiser, schedule, 0.1)
    twice, x = kernels.corrected(once, denoiser, schedule, 0.1), jnp.zeros((4000, 2))
    keys = jax.random.split(jax.random.key(0), len(x))
    t, s = jnp.asarray(0.5), jnp.asarray(0.49)
    first, second = (kernel.step(keys, kernel.init(x, t), x, t, s)[1] for kernel in (once, twice))
    assert abs(np.corrcoef(first[:, 0], second[:, 0] - first[:, 0])[0, 1]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("scale", [jnp.array([0.0, 1.0, 3.0]), jnp.array(2.0)])
def test_the_adaptive_solver_takes_a_scale_a_row(scale: jax.Array) -> None:
    schedule = jd.schedules.cosine()
    denoisers = (correlated_gaussian().denoiser(schedule), asymmetric_mixture().denoiser(schedule))
    x = jnp.broadcast_to(jnp.array([0.3, -0.2]), (3, 2))

    def run(x: jax.Array, scale: jax.Array) -> jax.Array:
        kernel = kernels.adaptive(jd.guidance.classifier_free(*denoisers, scale), schedule)
        return jd.sample(jax.random.key(0), kernel, x, jnp.array([1.0, 0.0])).x

    together = run(x, scale)
    for row, one in enumerate(jnp.broadcast_to(scale, (3,))):
        np.testing.assert_allclose(
            together[row], run(x[:1], one)[0], rtol=1e-3, atol=1e-3
        )  # the solver's tolerance


def test_ddim_keeps_the_noise_on_the_way_up() -> None:
    """x_s = alpha_s x_0 + sigma_s eps from a state with hardly any noise, in float32."""
    schedule, (t, s) = jd.schedules.cosine(), (1e-4, 0.5)
    x_0, eps = jnp.zeros((1, 2)), jnp.array([[1.0, -0.5]])
    x_t = jd.q_sample(schedule, x_0, t, eps)
    kernel = kernels.ddim(lambda x, t: x_0, schedule)
    x_s = kernel.step(jax.random.key(0), (), x_t, jnp.asarray(t), jnp.asarray(s))[1]
    np.testing.assert_allclose(x_s, jd.q_sample(schedule, x_0, s, eps), rtol=1e-5)


def test_heun_does_not_look_at_the_denoiser_without_noise() -> None:
    schedule = jd.schedules.cosine()
    kernel = kernels.heun(lambda x, t: jnp.where(t > 0, 0 * x, jnp.nan), schedule)
    assert np.all(np.isfinite(run(kernel, jd.grids.uniform(4))))


# --- mutants: what the orders give away -----------------------------------------------------------------------------


def multistep(broken: str) -> Callable:
    """DPM-Solver++(3M) with one mistake."""

    def make(denoiser: Callable, schedule: jd.Schedule) -> jd.Kernel:
        right = kernels.dpmpp_3m(denoiser, schedule)

        def step(
            key: jax.Array, carry: object, x_t: jax.Array, t: jax.Array, s: jax.Array
        ) -> tuple:
            if broken == "history in the wrong order":
                swapped = _exponential.History(carry.x_0[::-1], carry.half_log_snr)
                _, x_s, weight = right.step(key, swapped, x_t, t, s)
                return right.step(key, carry, x_t, t, s)[0], x_s, weight
            if broken == "t and s swapped":
                return right.step(key, carry, x_t, s, t)
            late, early = (jd.forward.level(schedule, time, x_t) for time in (t, s))
            h, x_0 = (early.log_snr - late.log_snr) / 2, denoiser(x_t, t)
            nodes = [jnp.zeros_like(h), *_exponential._nodes(late.log_snr / 2, h, carry, x_t)]
            moment = _exponential.moments(h, 3)
            moment[2] = moment[2] / 2  # as in the code the paper's authors released
            change = _exponential.integral(
                nodes, _exponential.polynomial(nodes, [x_0, *carry.x_0]), moment
            )
            x_s = early.sigma / late.sigma * x_t + early.alpha * change
            return _exponential._push(carry, x_0, late.log_snr / 2), x_s, kernels.no_weight(x_t)

        return jd.Kernel(right.init, Partial(step))

    return make


@pytest.mark.parametrize(
    "broken",
    ["history in the wrong order", *map(slow, ("t and s swapped", "half the second moment"))],
)
def test_orders_reject_broken_multistep_methods(broken: str, x64: None) -> None:
    found = slope("linear", multistep(broken))
    assert not 2.85 < found < 3.15


def test_rows_reject_a_batch_coupled_corrector() -> None:
    """With norms over the batch, as in the released code, a row's correction depends on the other rows."""
    denoiser, schedule = oracle("linear")
    kernel = kernels.corrected(kernels.ddim(denoiser, schedule), denoiser, schedule)

    def coupled(key: jax.Array, carry: object, x_t: jax.Array, t: jax.Array, s: jax.Array) -> tuple:
        carry, x, weight = kernels.ddim(denoiser, schedule).step(key, carry, x_t, t, s)
        score = (schedule.alpha(s) * denoiser(x, s) - x) / schedule.sigma(s) ** 2
        eps = _rows.normal(key, x)
        size = 2 * (0.16 * jnp.linalg.norm(eps) / jnp.linalg.norm(score)) ** 2
        return carry, x + size * score + jnp.sqrt(2 * size) * eps, weight

    keys, x = jax.random.split(jax.random.key(0), 3), jnp.asarray(X)
    states = (x, x.at[2].set(9.0))
    for step, independent in ((kernel.step, True), (coupled, False)):
        one, two = (step(keys, (), x, jnp.asarray(0.6), jnp.asarray(0.5))[1] for x in states)
        assert np.array_equal(one[:2], two[:2]) == independent


@pytest.mark.parametrize(
    ("kernel_name", "name"),
    crossed(
        ["heun", "dpmpp_2s", "sde_dpmpp_2m", "unipc_3", "euler_maruyama"],
        ["cosine", "edm", "rectified_flow"],
        quick=lambda kernel_name, name: name == "cosine" and kernel_name == "heun",
    ),
)
def test_gradients_through_the_solvers_are_finite(kernel_name: str, name: str) -> None:
    """In the states, the grid and every number of the schedule, end-points included."""
    mixture = asymmetric_mixture()

    def total(schedule: jd.Schedule, ts: jax.Array, x: jax.Array) -> jax.Array:
        kernel = KERNELS[kernel_name].make(mixture.denoiser(schedule), schedule)
        return jd.sample(jax.random.key(1), kernel, x, ts).x.sum()

    schedule = jax.tree.map(jnp.asarray, SCHEDULES[name]())
    x = jd.prior_sample(jax.random.key(0), schedule, (4, 2))
    chex.assert_tree_all_finite(
        jax.grad(total, argnums=(0, 1, 2))(schedule, jd.grids.uniform(5), x)
    )


SCHEDULE = jd.schedules.cosine()
D = kernels.ddim(lambda x, t: x, SCHEDULE)
BAD = {
    "tau": (lambda: kernels.dpmpp_2m(lambda x, t: x, SCHEDULE, -1.0), ValueError, "tau: expected a strength of at least 0"),
    "churn": (lambda: kernels.heun(lambda x, t: x, SCHEDULE, -1.0), ValueError, "churn: expected a factor of at least 0"),
    "no range": (
        lambda: kernels.adaptive(lambda x, t: x, SCHEDULE, log_snr_range=(5.0, -5.0)), ValueError, "log_snr_range: expected low < high"),
    "rising chain": (
        lambda: jd.oracles.affine_chain(correlated_gaussian(), SCHEDULE, np.linspace(0, 1, 5)), ValueError, "ts: expected decreasing times"),
    "order": (lambda: kernels.unipc(lambda x, t: x, SCHEDULE, 4), ValueError, "order: expected 1, 2 or 3, got 4"),
    "half an order": (lambda: kernels.unipc(lambda x, t: x, SCHEDULE, 1.5), TypeError, "order: expected a positive int"),
    "tolerance": (lambda: kernels.adaptive(lambda x, t: x, SCHEDULE, 0.0), ValueError, "tolerance: expected a positive"),
    "snr": (lambda: kernels.corrected(D, lambda x, t: x, SCHEDULE, 0.0), ValueError, "snr: expected a positive ratio"),
    "corrections": (
        lambda: kernels.corrected(D, lambda x, t: x, SCHEDULE, num_corrections=0), ValueError, "num_corrections: expected a positive"),
    "predictor": (lambda: kernels.corrected(None, lambda x, t: x, SCHEDULE), TypeError, "predictor: expected a Kernel, got NoneType"),
    "fraction": (lambda: kernels.ancestral(lambda x, t: x, SCHEDULE, 1.5), ValueError, r"variance: expected a name or a fraction in \[0, 1\]"),
    "two components": (
        lambda: jd.oracles.affine_chain(asymmetric_mixture(), SCHEDULE, jd.grids.uniform(3)), ValueError, "data: expected one component, got 3"),
    "bandwidth": (lambda: jd.oracles.empirical(jnp.ones((3, 2)), 0.0), ValueError, "bandwidth: expected a positive"),
    "no variance": (
        lambda: run(kernels.ancestral(lambda x, t: x, SCHEDULE, "optimal"), jd.grids.uniform(2)), TypeError, "denoiser: expected a Denoised with its variance"),
}  # fmt: skip


test_bad_input = rejects(BAD)


# --- compilation and memory -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_traced_options_compile_once() -> None:
    """Sweeping eta, tau, churn, step sizes, guidance and the schedule's own numbers traces the denoiser once each."""
    mixture, count = asymmetric_mixture(), []

    @pytree
    class Counted:
        schedule: jd.Schedule
        tag: str = static()

        def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
            count.append(self.tag)
            return mixture.denoiser(self.schedule)(x, t)

    free = jax.tree_util.Partial(lambda x, t: x)
    swept = {
        "eta": lambda d, s, v: kernels.ddim(d, s, v),
        "tau": lambda d, s, v: kernels.dpmpp_2m(d, s, v),
        "churn": lambda d, s, v: kernels.heun(d, s, v, churn_noise=1 + v),
        "step_size": lambda d, s, v: kernels.corrected(kernels.ddim(d, s), d, s, v),
        "fraction": lambda d, s, v: kernels.ancestral(d, s, v),
        "guidance": lambda d, s, v: kernels.ddim(
            jd.guidance.classifier_free(d, free, v, interval=(v / 4, 1 - v / 4), rescale=v), s
        ),
    }
    x, ts = jnp.ones((2, 2)), jd.grids.uniform(4)
    for tag, make in swept.items():
        traces = set()
        for v in (0.1, 0.2, 0.7):
            schedule = jd.schedules.linear(jnp.asarray(v), jnp.asarray(15 + v))
            denoiser = Counted(schedule, tag)
            jd.sample(
                jax.random.key(0), make(denoiser, schedule, jnp.asarray(v)), x, ts * (1 - v / 10)
            )
            traces.add(
                count.count(tag)
            )  # a step may call its denoiser twice, but only in the first trace
        assert len(traces) == 1


@pytest.mark.parametrize("kernel_name", [slow("ddim"), "unipc_3", slow("heun_churn")])
def test_programs_do_not_grow_with_the_number_of_steps(kernel_name: str) -> None:
    """XLA's own account: temporaries and program text of 1000 steps are those of 10; only the grid is longer."""
    denoiser, schedule = oracle("linear")
    kernel, x = KERNELS[kernel_name].make(denoiser, schedule), jnp.ones((64, 2))

    def compiled(num_steps: int, save_every: int | None = None) -> tuple[int, int]:
        lowered = jd.sampling.run.lower(
            jax.random.key(0), kernel, x, jd.grids.uniform(num_steps), save_every=save_every
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes, len(lowered.as_text())

    (few, short), (many, long) = compiled(10), compiled(1000)
    assert many - few <= 1000 * 64  # a few numbers a step
    assert long - short < 200  # digits of the shapes
    state = x.size * 4
    assert compiled(1000, 1)[0] + 1000 * state > many  # a trajectory is the one thing that grows
