"""Short and exact: identities that a classic mistake breaks, of what is otherwise proved by long runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import asymmetric_mixture, correlated_gaussian, z_scores
from scipy import stats

import jaxdiff as jd
from jaxdiff import (
    binomial,
    forward,
    guidance,
    kernels,
    losses,
    metrics,
    observations,
    oracles,
    posterior,
    prediction,
    training,
)
from jaxdiff import chain as chains
from jaxdiff.guidance import _observed
from jaxdiff.kernels import _kernel

SCHEDULE = jd.schedules.cosine()
DDPM = jd.schedules.from_betas(
    jd.schedules.linear_betas(100, 1e-3, 0.05)
)  # some of the data is left at t = 1
T, S = 0.6, 0.4


def row_keys(num: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num)


def normals(keys: jax.Array, size: int) -> jax.Array:
    return jax.vmap(lambda k: jax.random.normal(k, (size,)))(keys)


def diagonal(*variances: float) -> jd.oracles.GaussianMixture:
    """Normal data around 0.5 with independent components."""
    return jd.oracles.gaussian(jnp.full(len(variances), 0.5), jnp.array(variances))


# --- grids, schedules, forward ---------------------------------------------------------------------------------------


def test_a_grid_at_an_infinite_start_spends_one_step_there(x64: None) -> None:
    schedule = jd.schedules.rectified_flow()
    ts = jd.grids.log_snr(schedule, 8)
    np.testing.assert_allclose([ts[1], ts[-2]], [0.999, 0.001], rtol=1e-9)
    np.testing.assert_allclose(np.diff(schedule.log_snr(ts[1:-1]), 2), 0, atol=1e-9)


def test_a_quadratic_grid_is_even_in_the_root_between_other_ends(x64: None) -> None:
    roots = np.sqrt(jd.grids.quadratic(5, start=0.9, end=0.2))
    np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-12)


def test_a_learned_schedule_starts_straight() -> None:
    schedule, t = (
        jd.schedules.learned(jd.schedules.learned_parameters(-3.0, 5.0, num_bins=4)),
        jnp.linspace(0, 1, 9),
    )
    np.testing.assert_allclose(schedule.log_snr(t), 5 - 8 * t, atol=1e-5)  # float32


def test_a_sigmoid_schedule_is_divided_by_its_temperature(x64: None) -> None:
    t = jnp.linspace(0.1, 0.9, 5)
    hot, plain = jd.schedules.sigmoid(-3.0, 3.0, 2.0), jd.schedules.sigmoid(-1.5, 1.5)
    np.testing.assert_allclose(hot.log_snr(t), plain.log_snr(t), rtol=1e-9)


def test_noise_is_hidden_where_the_ratio_is_below_rounding(x64: None) -> None:
    for dtype in ("float32", "float64"):
        log_snr = -2 * np.log(np.finfo(dtype).eps) + np.array(
            [-0.1, 0.1]
        )  # sigma / alpha on both sides of it
        np.testing.assert_array_equal(forward.no_noise(jnp.asarray(log_snr, dtype)), [False, True])


def test_a_prediction_of_noise_says_nothing_without_data() -> None:
    """NaN at t = 1 of a rectified flow; a score, of size 1 / sigma, is known where sigma is large."""
    flow, wide, x = jd.schedules.rectified_flow(), jd.schedules.edm(sigma_max=1e4), jnp.ones((2, 1))
    for kind in ("eps", "score"):
        to_x_0 = jax.jit(lambda schedule, t: prediction.to_x_0(schedule, x, x, t, prediction=kind))  # noqa: B023
        np.testing.assert_array_equal(
            np.isnan(to_x_0(flow, jnp.array([1.0, 0.5]))[:, 0]), [True, False]
        )
        assert np.isfinite(to_x_0(wide, jnp.ones(2))).all()


def test_the_forward_variance_is_that_of_a_step(x64: None) -> None:
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (SCHEDULE.alpha_sigma(t) for t in (S, T))
    expected = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    np.testing.assert_allclose(
        chains.q_variance(SCHEDULE, jnp.zeros((2, 3)), S, T), expected, rtol=1e-9
    )


# --- kernels and the driver ------------------------------------------------------------------------------------------


def test_ddim_between_its_ends_is_their_equation_16(x64: None) -> None:
    keys, x_t, eta = row_keys(4), normals(row_keys(4, 1), 2), 0.5
    denoiser = jax.jit(asymmetric_mixture().denoiser(SCHEDULE))
    x_s = kernels.ddim(denoiser, SCHEDULE, eta).step(keys, (), x_t, T, S)[1]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (SCHEDULE.alpha_sigma(t) for t in (S, T))
    x_0 = denoiser(x_t, T)
    std = eta * sigma_s / sigma_t * jnp.sqrt(1 - alpha_t**2 / alpha_s**2)
    expected = (
        alpha_s * x_0
        + jnp.sqrt(sigma_s**2 - std**2) * (x_t - alpha_t * x_0) / sigma_t
        + std * normals(keys, 2)
    )
    np.testing.assert_allclose(x_s, expected, rtol=1e-9)


def test_the_step_to_the_data_is_the_denoised_state(x64: None) -> None:
    """Also where the reverse variance is not zero there: what is left is the decoder's."""
    denoiser, x_t, (t, s) = (
        diagonal(1.0, 0.3).denoiser(SCHEDULE),
        normals(row_keys(3), 2),
        jnp.array([0.1, 0.0]),
    )
    x_s = kernels.ancestral(denoiser, SCHEDULE, "large").step(row_keys(3, 1), (), x_t, t, s)[1]
    np.testing.assert_allclose(x_s, denoiser(x_t, t), rtol=1e-9)


def test_only_an_infinite_log_snr_is_clean() -> None:
    x = jnp.zeros((1, 1))
    assert bool(_kernel.is_clean(jd.forward.level(SCHEDULE, 0.0, x)))
    assert not bool(_kernel.is_clean(jd.forward.level(SCHEDULE, 1e-6, x)))


@pytest.mark.slow
def test_a_correction_draws_noise_of_its_own(x64: None) -> None:
    """What it adds, with the drift taken out, is standard normal and not the predictor's noise."""
    denoiser, keys, x_t = diagonal(1.0, 2.0).denoiser(SCHEDULE), row_keys(500), jnp.zeros((500, 2))
    predictor = kernels.ancestral(denoiser, SCHEDULE)
    first = jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys)
    x = predictor.step(first, (), x_t, T, S)[1]
    moved = kernels.corrected(predictor, denoiser, SCHEDULE, 0.5).step(keys, (), x_t, T, S)[1]
    alpha, sigma = SCHEDULE.alpha_sigma(S)
    eps = (
        moved - x - 0.5 * (alpha * denoiser(x, S) - x)
    ) / sigma  # 2 snr^2 = 0.5, and sqrt(2 * 0.5) = 1
    assert (
        np.abs(z_scores(np.concatenate([eps, eps**2], 1), np.array([0.0, 0.0, 1.0, 1.0]))).max()
        < 4.5
    )
    assert np.abs(z_scores(np.asarray(eps * normals(first, 2)), np.zeros(2))).max() < 4.5


def wander(key: jax.Array, carry: tuple, x: jax.Array, t: jax.Array, s: jax.Array) -> tuple:
    eps = normals(key, x.shape[1])
    return carry, x + eps, jnp.zeros(len(x))


def test_steps_of_a_run_draw_their_own_noise() -> None:
    kernel = jd.Kernel(lambda x, t: (), wander)
    run = jd.sample(
        jax.random.key(0), kernel, jnp.zeros((500, 1)), jd.grids.uniform(2), save_every=1
    )
    steps = np.diff(run.trajectory[..., 0], axis=0)
    assert abs(np.corrcoef(steps)[0, 1]) < 5 / np.sqrt(500)


@pytest.mark.slow
def test_the_adaptive_solver_widens_a_normal_law_as_it_is(x64: None) -> None:
    """The flow of N(m, v) is a shift and a scale, (x_s - alpha_s m) / size_s the same at every s: to the tolerance."""
    edm, m, v = jd.schedules.edm(), 0.7, 0.09
    law = oracles.gaussian(jnp.full(1, m), jnp.full(1, v))
    ts, x = jnp.array([0.8, 0.3]), jnp.array([[2.0], [-5.0]])
    found = jd.sample(jax.random.key(0), kernels.adaptive(law.denoiser(edm), edm, 1e-7), x, ts).x
    (alpha, alpha_s), (sigma, sigma_s) = edm.alpha_sigma(ts)
    scale = jnp.sqrt((alpha_s**2 * v + sigma_s**2) / (alpha**2 * v + sigma**2))
    np.testing.assert_allclose(found, alpha_s * m + scale * (x - alpha * m), rtol=1e-5)


def test_dequantised_data_fill_their_bins() -> None:
    noise = np.asarray(
        jd.decoders.uniform_dequantise(jax.random.key(0), jnp.zeros((500, 4)), 5)
    ).ravel()
    assert stats.kstest(noise, stats.uniform(-0.25, 0.5).cdf).pvalue > 1e-3


# --- losses ----------------------------------------------------------------------------------------------------------


def test_the_time_and_the_noise_of_a_loss_are_independent() -> None:
    """A network that says 10 (t - 1/2): its cross term with the noise has mean zero."""
    loss = losses.simple(
        jax.random.key(0),
        lambda x, t: 10 * (t[:, None] - 0.5) + 0 * x,
        SCHEDULE,
        jnp.zeros((4000, 1)),
    )
    assert np.abs(z_scores(np.asarray(loss), np.array(1 + 100 / 12))) < 4.5


def test_terms_are_drawn_by_the_root_of_their_mean_square() -> None:
    history = losses.TermHistory(jnp.array([[3.0, 4.0], [1.0, 1.0]]), jnp.array([2, 2]))
    index, probability = losses.loss_aware_terms(jax.random.key(0), history, 50)
    size = np.sqrt(np.array([12.5, 1.0]))
    share = 0.999 * size / size.sum() + 0.001 / 2
    np.testing.assert_allclose(probability, share[np.asarray(index)], rtol=1e-5)
    # Until every term has been seen as often as is remembered, all are as likely.
    once = losses.record_terms(losses.term_history(2, size=1), jnp.array([0]), jnp.array([9.0]))
    np.testing.assert_allclose(
        losses.loss_aware_terms(jax.random.key(0), once, 5)[1], 0.5, rtol=1e-6
    )


# --- guidance and posteriors -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_spread_is_the_variance_of_normal_data(x64: None) -> None:
    x_t = jnp.zeros((1, 2))
    exact = jd.oracles.gaussian(jnp.zeros(2), jnp.full(2, 4.0)).denoised_covariance(
        SCHEDULE, x_t, T
    )[0, 0, 0]
    np.testing.assert_allclose(guidance.isotropic_spread(SCHEDULE, x_t, T, 2.0), exact, rtol=1e-9)


@pytest.mark.parametrize("name", ["pigdm", "tmpd", "mmps"])
def test_approximations_are_exact_where_their_covariance_is(name: str, x64: None) -> None:
    """Of normal data with a multiple of the identity, a diagonal, and any matrix for a covariance."""
    covariance = {
        "pigdm": jnp.full(2, 0.49),
        "tmpd": jnp.array([0.5, 2.0]),
        "mmps": jnp.array([[1.0, 0.5], [0.5, 0.6]]),
    }
    data = jd.oracles.gaussian(jnp.array([0.5, -0.2]), covariance[name])
    y, denoiser, x_t = jnp.array([0.3, 1.0]), data.denoiser(SCHEDULE), normals(row_keys(3), 2)
    options = {"prior_std": 0.7} if name == "pigdm" else {}
    given = getattr(guidance, name)(denoiser, SCHEDULE, observations.noisy(y, 0.3), **options)
    exact = data.posterior(jnp.eye(2), y, 0.09 * jnp.eye(2)).denoiser(SCHEDULE)
    np.testing.assert_allclose(jax.jit(given)(x_t, T), jax.jit(exact)(x_t, T), rtol=1e-7)


def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions(x64: None) -> None:
    """Rows of very different systems, each on its own."""
    root = jax.random.normal(jax.random.key(0), (2, 3, 3))
    matrix = (root @ root.mT + jnp.eye(3)[None]) * jnp.array([1.0, 50.0])[:, None, None]
    b = jax.random.normal(jax.random.key(1), (2, 3))
    found = _observed.conjugate_gradients(lambda v: jnp.einsum("bij,bj->bi", matrix, v), b, 3)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, b[..., None])[..., 0], rtol=1e-7)


def test_a_twisted_step_is_shifted_by_variance_times_slope(x64: None) -> None:
    data, slope = diagonal(1.0, 0.3), jnp.array([0.7, -2.0])
    denoiser, keys, x_t, (t, s) = (
        data.denoiser(SCHEDULE),
        row_keys(3),
        normals(row_keys(3, 1), 2),
        jnp.array([T, S]),
    )

    def step(log_likelihood: object) -> jax.Array:
        kernel = posterior.twisted(denoiser, SCHEDULE, log_likelihood)
        return jax.jit(lambda x: kernel.step(keys, kernel.init(x, t), x, t, s)[1])(x_t)

    gain = denoiser(jnp.ones((1, 2)), t) - denoiser(jnp.zeros((1, 2)), t)
    variance = jd.p_mean_variance(denoiser, SCHEDULE, x_t, t, s).variance
    moved = step(lambda x_0: slope @ x_0) - step(lambda x_0: 0 * x_0[0])
    np.testing.assert_allclose(moved, variance * gain * slope[None], rtol=1e-7)
    large = posterior.through(denoiser, SCHEDULE, variance="large")(x_t, t, s)
    np.testing.assert_allclose(
        large.variance,
        jd.p_mean_variance(denoiser, SCHEDULE, x_t, t, s, variance="large").variance,
        rtol=1e-12,
    )


def test_what_lies_outside_the_range_counts(x64: None) -> None:
    """Three observations of two numbers: one direction of y is noise alone, whose density waits in the carry."""
    matrix, y = jnp.array([[1.0, 0.5], [1.0, 0.5], [0.3, -1.0]]), jnp.array([0.3, 0.5, 0.2])
    kernel = posterior.mcgdiff(diagonal(1.0, 1.0).denoiser(SCHEDULE), SCHEDULE, matrix, y, 0.4)
    waiting = kernel.init(jnp.zeros((2, 2)), jnp.asarray(1.0))
    np.testing.assert_allclose(-waiting, stats.norm.logpdf(0.2 / np.sqrt(2), 0, 0.4), rtol=1e-9)


def test_the_noise_level_is_where_the_ratio_is(x64: None) -> None:
    t = posterior.noise_level(SCHEDULE, 0.7)
    np.testing.assert_allclose(SCHEDULE.sigma(t) / SCHEDULE.alpha(t), 0.7, rtol=1e-9)


def test_the_gaussian_belief_is_the_oracles_posterior(x64: None) -> None:
    data = diagonal(1.7)
    slope, offset, variance = posterior.gaussian_belief(SCHEDULE, 0.5, np.sqrt(1.7))(jnp.asarray(T))
    x_t = jnp.array([[0.0], [1.0]])
    np.testing.assert_allclose(slope * x_t + offset, data.denoiser(SCHEDULE)(x_t, T), rtol=1e-9)
    np.testing.assert_allclose(
        variance, data.denoised_covariance(SCHEDULE, x_t, T)[0, 0, 0], rtol=1e-9
    )


def test_the_first_half_of_split_gibbs_is_its_conditional(x64: None) -> None:
    """One step to the data, undone: what is left is z given x, normal with the sum of both precisions."""
    data, matrix, std = diagonal(1.0, 0.3), jnp.array([[1.0, 0.5]]), 0.4
    seen, denoiser, t = (
        observations.linear(matrix, jnp.array([1.2]), std),
        data.denoiser(SCHEDULE),
        jnp.asarray(T),
    )
    kernel = posterior.split_gibbs(denoiser, SCHEDULE, seen, num_denoising=1)
    x = jnp.broadcast_to(jnp.array([0.4, -1.0]), (4000, 2))
    moved = jax.jit(kernel.step)(row_keys(4000), (), x, t, jnp.asarray(S))[1]
    offset, ones = denoiser(jnp.zeros((1, 2)), t), denoiser(jnp.ones((1, 2)), t)
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    found = np.asarray((moved - offset) / (ones - offset) / alpha)
    covariance = np.linalg.inv(matrix.T @ matrix / std**2 + (alpha / sigma) ** 2 * np.eye(2))
    mean = covariance @ (matrix.T @ np.array([1.2]) / std**2 + (alpha / sigma) ** 2 * x[0])
    centred = found - np.asarray(mean)
    assert np.abs(z_scores(centred, np.zeros(2))).max() < 4.5
    squares = (centred[:, :, None] * centred[:, None, :]).reshape(-1, 4)[:, [0, 1, 3]]
    assert np.abs(z_scores(squares, covariance.reshape(4)[[0, 1, 3]])).max() < 4.5


def test_repeated_steps_tell_the_hidden_of_the_seen() -> None:
    """A step from x_t = 0, which knows nothing of a seen 5: repeated, the hidden entry follows by its correlation."""
    denoiser, y, shown = (
        correlated_gaussian().denoiser(SCHEDULE),
        jnp.array([5.0, 0.0]),
        jnp.array([1.0, 0.0]),
    )
    once, often = (
        jax.jit(guidance.repaint(denoiser, SCHEDULE, y, shown, num_resamples=n).step)(
            row_keys(500), (), jnp.zeros((500, 2)), jnp.asarray(T), jnp.asarray(S)
        )[1][:, 1]
        for n in (1, 10)
    )
    assert float(often.mean() - once.mean()) > 5 * float(
        jnp.hypot(once.std(), often.std())
    ) / np.sqrt(500)


def test_the_composed_score_is_the_sum_of_scores(x64: None) -> None:
    laws, x_t = [diagonal(1.0, 0.3), diagonal(0.2, 2.0)], normals(row_keys(3), 2)
    score = posterior.composed_score(
        [law.denoiser(SCHEDULE) for law in laws], jnp.array([1.5, -0.5]), SCHEDULE
    )
    expected = sum(
        a * law.diffuse(SCHEDULE, T).score(x_t) for a, law in zip((1.5, -0.5), laws, strict=True)
    )
    np.testing.assert_allclose(score(x_t, T), expected, rtol=1e-7)


def test_moves_hold_a_normal_law(x64: None) -> None:
    """One move from exact draws of N(0, 1), at snr^2 sigma^2 = a: Langevin's moments, and a law that Metropolis keeps."""
    x, keys, sigma = normals(row_keys(4000), 1), row_keys(4000, 1), float(SCHEDULE.sigma(T))
    denoiser = jd.oracles.gaussian(jnp.zeros(1), jnp.ones(1)).denoiser(SCHEDULE)

    def log_density(x: jax.Array, t: float) -> jax.Array:
        return -(x[:, 0] ** 2) / 2

    step = 2 * (0.5 * sigma) ** 2  # x' = (1 - step) x + sqrt(2 step) eps
    new = posterior.langevin([denoiser], jnp.ones(1), SCHEDULE, 0.5)(keys, x, T)
    moments = np.asarray(jnp.concatenate([new**2, new * x], axis=1))
    assert np.abs(z_scores(moments, np.array([1 + step**2, 1 - step]))).max() < 4.5
    new = posterior.metropolis(log_density, SCHEDULE, 1.2)(keys, x, T)
    assert np.abs(z_scores(np.asarray(new**2), np.ones(1))).max() < 4.5
    # A leap of h: x' = (1 - h^2 / 2) x + h p, nearly always taken.
    h = 0.3 * sigma
    new = posterior.hamiltonian(log_density, SCHEDULE, 0.3, num_leapfrog=1)(keys, x, T)
    np.testing.assert_allclose(
        np.mean((new - x) ** 2), h**2 + h**4 / 4, rtol=0.12
    )  # 5 standard errors


# --- oracles and bits ------------------------------------------------------------------------------------------------


def test_the_oracles_variance_is_its_covariances_diagonal(x64: None) -> None:
    mixture, x_t = asymmetric_mixture(), normals(row_keys(3), 2)
    variance = jax.jit(mixture.denoiser(SCHEDULE, variance=True))(x_t, T).variance
    covariance = jax.jit(mixture.denoised_covariance)(SCHEDULE, x_t, T)
    np.testing.assert_allclose(jnp.diagonal(covariance, axis1=1, axis2=2), variance, rtol=1e-7)


def test_the_empirical_law_is_the_kernel_density(x64: None) -> None:
    points, x = np.array([-1.0, 0.2, 0.9]), np.linspace(-2, 2, 9)
    expected = np.log(stats.norm.pdf(x[:, None], points, 0.5).mean(1))
    found = jd.oracles.empirical(jnp.asarray(points)[:, None], 0.5).log_prob(
        jnp.asarray(x)[:, None]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def leaning(x: jax.Array, t: jax.Array) -> jax.Array:
    """A denoiser that knows of no data."""
    return 0.3 + 0.5 * x[:, ::-1]


@pytest.mark.slow
def test_a_binary_bound_that_starts_early_has_its_prior(x64: None) -> None:
    """One step from a start that knows half of the data, and a denoiser that knows nothing: in closed form."""
    alpha, states = float(DDPM.alpha(1.0)), oracles.binary_states(2)
    assert alpha > 0.2
    prior = 2 * (np.log(2) - stats.entropy([(1 + alpha) / 2, (1 - alpha) / 2]))
    np.testing.assert_allclose(binomial.prior_kl(DDPM, states, 1.0), prior, rtol=1e-6)
    run = jax.jit(lambda ts: oracles.binary_bound(lambda x, t: jnp.full_like(x, 0.5), DDPM, ts, 2))
    bound = run(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(bound, -prior - 2 * np.log(2), rtol=1e-6)


def test_the_binary_bound_is_the_oracles(x64: None) -> None:
    ts, x_0 = jnp.array([1.0, 0.4, 0.0]), jnp.broadcast_to(jnp.array([1.0, 0.0]), (4000, 2))
    exact = float(
        jax.jit(lambda ts: oracles.binary_bound(leaning, DDPM, ts, 2))(ts)[2]
    )  # of (1, 0)
    one = jax.jit(binomial.vlb, static_argnums=1)(jax.random.key(0), leaning, DDPM, x_0, ts=ts)
    terms = jax.jit(binomial.vlb_terms, static_argnums=1)(
        jax.random.key(1), leaning, DDPM, x_0, ts=ts
    )
    for cost in (one, terms.sum(0)):
        assert np.abs(z_scores(np.asarray(cost), np.array(-exact))) < 4.5


def test_bits_start_as_fair_coins() -> None:
    assert abs(
        float(binomial.prior_sample(jax.random.key(0), (500, 20)).mean()) - 0.5
    ) < 5 * 0.5 / np.sqrt(10_000)


def test_a_binary_chain_of_one_step_draws_what_is_denoised(x64: None) -> None:
    states = oracles.binary_states(2)
    np.testing.assert_array_equal(states, [[0, 0], [0, 1], [1, 0], [1, 1]])
    chain = oracles.binary_chain(lambda x, t: jnp.full_like(x, 0.3), DDPM, jnp.array([1.0, 0.0]), 2)
    np.testing.assert_allclose(jnp.exp(chain), [0.49, 0.21, 0.21, 0.09], rtol=1e-9)


def test_what_is_hidden_is_not_counted_and_a_blur_is_normal(x64: None) -> None:
    seen = observations.mask(jnp.array([1.0, 5.0]), jnp.array([1.0, 0.0]), 0.3)
    np.testing.assert_allclose(
        seen(jnp.array([0.8, 0.0])), stats.norm.logpdf(0.2, 0, 0.3), rtol=1e-9
    )
    blurred = observations.blur(jnp.zeros((1, 3, 1)), 0.8, 0.1).operator(
        jnp.array([0.0, 1.0, 0.0])[None, :, None]
    )
    np.testing.assert_allclose(blurred[0, 1, 0], 1 / (1 + 2 * np.exp(-0.5 / 0.64)), rtol=1e-9)


def test_the_binary_kl_is_by_hand(x64: None) -> None:
    x_0, x_t = jnp.array([[1.0]]), jnp.array([[0.0]])
    q, p = (
        float(binomial.q_posterior(DDPM, x_t, x, t=1.0, s=0.5)[0, 0])
        for x in (x_0, jnp.array([[0.3]]))
    )
    found = binomial.step_kl(lambda x, t: jnp.full_like(x, 0.3), DDPM, x_0, x_t, t=1.0, s=0.5)
    np.testing.assert_allclose(found, stats.entropy([q, 1 - q], [p, 1 - p]), rtol=1e-9)


# --- metrics and training --------------------------------------------------------------------------------------------


def test_the_alternative_of_a_permutation_test_counts() -> None:
    def difference(x: np.ndarray, y: np.ndarray) -> metrics.Estimate:
        return metrics.Estimate(float(x.mean() - y.mean()), 0.0)

    x = np.random.default_rng(0).normal(size=(20, 1))
    less, greater = (
        metrics.permutation_test(
            difference, x + 2, x, num_permutations=99, alternative=side
        ).p_value
        for side in ("less", "greater")
    )
    assert greater < 0.05
    assert less > 0.95


def test_every_update_has_a_stream_of_its_own() -> None:
    def loss(params: dict, rows: training.Rows, batch: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.uniform)(rows.keys) + 0 * params["w"]

    optimizer = optax.sgd(1.0)
    step = jax.vmap(training.make_step(loss, optimizer), axis_name=training.AXIS)  # one device
    state = training.init_state(jax.random.key(0), {"w": jnp.zeros(())}, optimizer)
    state = jax.tree.map(lambda leaf: leaf[None], state)
    seen = []
    for _ in range(3):
        state, scalars = step(state, jnp.zeros((1, 4)))
        seen.append(float(scalars["loss"][0]))
    assert len(set(seen)) == 3


def test_gradients_are_clipped_to_the_norm() -> None:
    """A gradient of a hundred does what one of one does."""
    params = {"w": jnp.zeros(1)}
    optimizer = training.make_optimizer(0.1, num_steps=10, warmup=0, clip_norm=1.0)
    moved = []
    for size in (1.0, 100.0):
        _, state = optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)
        moved.append(optimizer.update({"w": jnp.full(1, size)}, state, params)[0]["w"])
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-6)
