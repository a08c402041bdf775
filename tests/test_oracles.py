"""The oracle itself, held against SciPy, automatic differentiation and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SCHEDULES,
    asymmetric_mixture,
    correlated_gaussian,
    crossed,
    moment_z_scores,
    rejects,
    z_scores,
)
from scipy import stats

import jaxdiff as jd

MIXTURES = {"mixture": asymmetric_mixture, "gaussian": correlated_gaussian}
every = pytest.mark.parametrize("name", MIXTURES)


def scipy_log_prob(mixture: jd.oracles.GaussianMixture, x: np.ndarray) -> np.ndarray:
    weights = np.exp(np.asarray(mixture.log_weights, float))
    weights /= weights.sum()
    return np.log(
        sum(
            w * stats.multivariate_normal(m, c).pdf(x)
            for w, m, c in zip(
                weights, np.asarray(mixture.means), np.asarray(mixture.covariances), strict=True
            )
        )
    )


@every
def test_log_prob_is_scipys(name: str, dtype: str) -> None:
    mixture = MIXTURES[name]()
    x = np.random.default_rng(0).normal(size=(50, 2))
    rtol = {"float32": 1e-4, "float64": 1e-12}[
        dtype
    ]  # float32: rounding of squares over a variance of 0.02
    np.testing.assert_allclose(
        mixture.log_prob(jnp.asarray(x, dtype)), scipy_log_prob(mixture, x), rtol=rtol, atol=rtol
    )


def test_log_prob_is_finite_far_away() -> None:
    x = jnp.array([[1e4, -1e4], [0.0, 0.0]])
    assert np.all(np.isfinite(asymmetric_mixture().log_prob(x)))
    assert np.all(np.isfinite(asymmetric_mixture().score(x)))


@every
def test_score_is_the_gradient(name: str, x64: None) -> None:
    def both(mixture: jd.oracles.GaussianMixture, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mixture.score(x), jax.vmap(jax.vmap(jax.grad(mixture.log_prob)))(x)

    x = jax.random.normal(jax.random.key(0), (3, 5, 2))
    np.testing.assert_allclose(*jax.jit(both)(MIXTURES[name](), x), rtol=1e-10)


@every
def test_samples_have_the_moments(name: str) -> None:
    mixture = MIXTURES[name]()
    x = mixture.sample(jax.random.key(3), (20_000,))
    assert (
        np.abs(moment_z_scores(x, mixture)).max() < 4.5
    )  # the largest of up to nine |z|: p = 6e-5


@pytest.mark.parametrize(
    ("name", "schedule_name"),
    crossed(MIXTURES, SCHEDULES, quick=lambda name, schedule: name == "mixture"),
)
def test_denoiser_is_tweedie(name: str, schedule_name: str, x64: None) -> None:
    """alpha E[x_0 | x_t] = x_t + sigma^2 grad log p_t(x_t): the denoiser against the density it never touches."""
    schedule, mixture = SCHEDULES[schedule_name](), MIXTURES[name]()

    @jax.jit
    def both(t: float) -> tuple[jax.Array, jax.Array]:
        alpha, sigma = schedule.alpha_sigma(t)
        x_t = sigma * jax.random.normal(jax.random.key(0), (6, 2)) + alpha * mixture.means[:1]
        score = jax.vmap(jax.grad(mixture.diffuse(schedule, t).log_prob))(x_t)
        return mixture.denoiser(schedule)(x_t, t), (x_t + sigma**2 * score) / alpha

    for t in (0.1, 0.5, 0.9):
        # The sum on the right cancels down to alpha x_0: sigma / alpha is up to 150 here.
        np.testing.assert_allclose(*both(t), rtol=1e-8, atol=1e-10)


def test_denoiser_is_bayes_by_brute_force(x64: None) -> None:
    schedule, mixture, t = jd.schedules.cosine(), asymmetric_mixture(), 0.5
    axis = np.linspace(-4, 4, 401)
    x_0 = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    alpha, sigma = map(float, schedule.alpha_sigma(t))
    x_t = np.array([[0.3, -0.2]])
    joint = np.exp(
        scipy_log_prob(mixture, x_0) - 0.5 * np.sum((x_t - alpha * x_0) ** 2, 1) / sigma**2
    )
    np.testing.assert_allclose(
        mixture.denoiser(schedule)(jnp.asarray(x_t), t)[0], joint @ x_0 / joint.sum(), rtol=1e-6
    )


def test_denoiser_takes_a_time_a_row(x64: None) -> None:
    denoiser = jax.jit(asymmetric_mixture().denoiser(jd.schedules.linear()))
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.01, 0.3, 0.6, 1.0])
    together = denoiser(x, t)
    for row in range(4):
        np.testing.assert_allclose(
            together[row], denoiser(x[row : row + 1], float(t[row]))[0], rtol=1e-12
        )


@every
def test_posterior_and_evidence_are_bayes(name: str, x64: None) -> None:
    """p(x | y) p(y) = p(x) p(y | x) at any x, which fixes posterior and evidence at once."""
    A, y, noise = jnp.array([[1.0, -0.5]]), jnp.array([0.8]), jnp.array([[0.3]])
    x = jax.random.normal(jax.random.key(0), (20, 2))
    likelihood = stats.norm(np.asarray(x @ A.T)[:, 0], np.sqrt(0.3)).logpdf(0.8)

    @jax.jit
    def log_densities(mixture: jd.oracles.GaussianMixture) -> tuple[jax.Array, ...]:
        posterior, log_evidence = mixture.posterior(A, y, noise), mixture.log_evidence(A, y, noise)
        return posterior.log_prob(x), log_evidence, mixture.log_prob(x)

    after, log_evidence, before = log_densities(MIXTURES[name]())
    np.testing.assert_allclose(after + log_evidence, before + likelihood, rtol=1e-10)


@pytest.mark.slow
def test_a_mixture_goes_through_transformations(x64: None) -> None:
    """As an argument and as a result of vmap and jit: here, a posterior for each of three observations."""
    mixture, A, noise = asymmetric_mixture(), jnp.array([[1.0, -0.5]]), jnp.array([[0.3]])
    y, x = jnp.array([[0.8], [0.1], [-2.0]]), jnp.zeros((1, 2))
    posteriors = jax.jit(jax.vmap(lambda m, y: m.posterior(A, y, noise), (None, 0)))(mixture, y)
    together = jax.vmap(lambda p: p.log_prob(x))(posteriors)
    alone = [mixture.posterior(A, row, noise).log_prob(x) for row in y]
    np.testing.assert_allclose(together, alone, rtol=1e-10)


MIXTURE = asymmetric_mixture()
COSINE = jd.schedules.cosine()
EYE = np.eye(2)


def forms() -> list[jd.oracles.GaussianMixture]:
    """One mixture of isotropic components, said in the three ways."""
    weights, means = jnp.log(jnp.array([0.5, 0.3, 0.2])), asymmetric_mixture().means
    c = jnp.array([0.2, 0.05, 0.4], means.dtype)
    return [
        jd.oracles.GaussianMixture(weights.astype(means.dtype), means, covariances)
        for covariances in (
            c[:, None, None] * jnp.eye(2)[None],
            jnp.broadcast_to(c[:, None], (3, 2)),
            c,
        )
    ]


@pytest.mark.slow
def test_three_forms_of_one_covariance(x64: None) -> None:
    """Full, diagonal and isotropic covariances give one density, score, denoiser, posterior and evidence."""
    schedule, x = jd.schedules.cosine(), jax.random.normal(jax.random.key(0), (5, 2))
    A, y, noise = jnp.array([[0.7, -0.2]]), jnp.array([0.3]), jnp.array([[0.1]])

    def answers(mixture: jd.oracles.GaussianMixture) -> list:
        posterior, late = mixture.posterior(A, y, noise), mixture.diffuse(schedule, 0.4)
        return [
            mixture.log_prob(x), mixture.score(x), mixture.denoiser(schedule)(x, 0.4), late.log_prob(x),
            mixture.denoiser(schedule, variance=True)(x, 0.4).variance, posterior.log_prob(x),
            mixture.log_evidence(A, y, noise), mixture.denoised_covariance(schedule, x, 0.4),
        ]  # fmt: skip

    full, *others = (answers(mixture) for mixture in forms())
    for other in others:
        for one, two in zip(full, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
    for mixture in forms():
        assert (
            np.abs(moment_z_scores(mixture.sample(jax.random.key(1), (20_000,)), forms()[0])).max()
            < 4.5
        )


@pytest.mark.slow
@every
@pytest.mark.parametrize("schedule_name", ["cosine", "edm", "rectified_flow"])
def test_denoised_covariance_is_the_denoisers_jacobian(
    schedule_name: str, name: str, x64: None
) -> None:
    """Cov[x_0 | x_t] = (sigma^2 / alpha) dD/dx_t, which the covariance never looks at; its diagonal is the variance."""
    schedule, mixture, t = SCHEDULES[schedule_name](), MIXTURES[name](), 0.5
    x_t = schedule.sigma(t) * jax.random.normal(jax.random.key(0), (4, 2))
    denoiser, (alpha, sigma) = mixture.denoiser(schedule), schedule.alpha_sigma(t)
    jacobian = jax.vmap(jax.jacfwd(lambda x: denoiser(x[None], t)[0]))(x_t)
    covariance = mixture.denoised_covariance(schedule, x_t, t)
    np.testing.assert_allclose(covariance, sigma**2 / alpha * jacobian, rtol=1e-8, atol=1e-11)
    both = mixture.denoiser(schedule, variance=True)(x_t, jnp.full(4, t))
    np.testing.assert_allclose(
        both.variance, jnp.diagonal(covariance, axis1=1, axis2=2), rtol=1e-8, atol=1e-11
    )
    np.testing.assert_allclose(both.x_0, denoiser(x_t, t), rtol=1e-12)


@pytest.mark.slow
def test_components_in_turns_are_components_at_once(
    monkeypatch: pytest.MonkeyPatch, x64: None
) -> None:
    schedule, x = jd.schedules.cosine(), jax.random.normal(jax.random.key(0), (6, 2))

    def answers() -> list:
        return [
            out
            for mixture in (asymmetric_mixture(), forms()[2])
            for out in (
                mixture.log_prob(x),
                mixture.score(x),
                *mixture.denoiser(schedule, variance=True)(x, 0.3)[::2],
            )
        ]

    at_once = answers()
    monkeypatch.setattr(
        "jaxdiff.oracles._mixture._ENTRIES", 24
    )  # two components of 6 rows in 2 dimensions
    for one, two in zip(at_once, answers(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


@pytest.mark.slow
def test_25_components_in_800_dimensions_stay_small() -> None:
    """XLA's own account of the denoiser on 1000 states: no [B, K, d] array (80 MB), let alone a matrix a state."""
    schedule, key = jd.schedules.cosine(), jax.random.key(0)
    mixture = jd.oracles.GaussianMixture(
        jnp.zeros(25), 8 * jax.random.normal(key, (25, 800)), jnp.ones(25)
    )
    denoiser = mixture.denoiser(schedule)
    x = mixture.diffuse(schedule, 0.5).sample(key, (2000,))
    compiled = jax.jit(lambda x: denoiser(x, 0.5)).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2000 * 25 * 800 * 4
    x_0, log_prob = compiled(x), mixture.log_prob(x)
    assert np.all(np.isfinite(x_0))
    assert np.all(np.isfinite(log_prob))
    posterior = mixture.posterior(jnp.eye(2, 800), jnp.array([3.0, -1.0]), jnp.eye(2))
    # Observing two coordinates with unit noise halves their variance and leaves the others.
    np.testing.assert_allclose(
        jnp.diagonal(posterior.covariances[3]), np.r_[0.5, 0.5, np.ones(798)], rtol=1e-4
    )


@pytest.mark.slow
def test_the_empirical_denoiser_is_the_weighted_mean_of_the_data(x64: None) -> None:
    """Images of any shape; without a bandwidth to speak of it is the closed form of Karras et al. 2022, Eq. (57)."""
    schedule, t = jd.schedules.edm(), 0.7
    points = jax.random.normal(jax.random.key(0), (20, 3, 2, 1))
    x_t = 2 * jax.random.normal(jax.random.key(1), (4, 3, 2, 1))
    sigma = schedule.sigma(t)
    squared = jnp.sum((x_t[:, None] - points[None]) ** 2, axis=(2, 3, 4))
    expected = jnp.einsum("bn,nhwc->bhwc", jax.nn.softmax(-squared / (2 * sigma**2)), points)
    found = jd.oracles.empirical(points, 1e-6).denoiser(schedule)(x_t, t)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    kernel_density = jd.oracles.empirical(points[..., 0, 0], 0.5)
    near = kernel_density.sample(jax.random.key(2), (20_000,))
    assert np.abs(z_scores(near, np.asarray(points[..., 0, 0]).mean(0))).max() < 4.5
    reference = stats.gaussian_kde(
        np.asarray(points[:, 0, 0, 0]), bw_method=float(0.5 / np.std(points[:, 0, 0, 0], ddof=1))
    )
    ours = jd.oracles.empirical(points[:, :1, 0, 0], 0.5).log_prob(jnp.linspace(-2, 2, 9)[:, None])
    np.testing.assert_allclose(ours, reference.logpdf(np.linspace(-2, 2, 9)), rtol=1e-9)


BAD = {
    "shapes": (
        lambda: jd.oracles.GaussianMixture(jnp.zeros(2), jnp.zeros((2, 3)), jnp.zeros((2, 3, 2))),
        ValueError,
        "covariances: expected shapes",
    ),
    "NumPy shapes": (
        lambda: jd.oracles.GaussianMixture(np.zeros(2), np.zeros((1, 3)), np.zeros((1, 3, 3))),
        ValueError,
        "covariances: expected shapes",
    ),
    "integers": (
        lambda: jd.oracles.GaussianMixture(jnp.zeros(1), jnp.array([[1, 2]]), EYE[None]),
        TypeError,
        "means: expected a floating dtype, got int32",
    ),
    "lists": (
        lambda: jd.oracles.GaussianMixture([0.0], [[1.0, 2.0]], EYE[None]),
        TypeError,
        "log_weights: expected a floating array, got list",
    ),
    "x": (
        lambda: MIXTURE.log_prob(jnp.zeros((5, 3))),
        ValueError,
        r"x: expected shape \[..., 2\], got \(5, 3\)",
    ),
    "x_t": (
        lambda: MIXTURE.denoiser(COSINE)(jnp.zeros((2, 2, 2)), 0.5),
        ValueError,
        r"x_t: expected shape \[B, 2\]",
    ),
    "many times": (
        lambda: MIXTURE.diffuse(COSINE, jnp.zeros(3)),
        ValueError,
        r"t: expected one time, shape \(\), got \(3,\)",
    ),
    "y": (
        lambda: MIXTURE.posterior(EYE, jnp.asarray(0.5), EYE),
        ValueError,
        r"y: expected shape \(2,\), got \(\)",
    ),
    "A": (
        lambda: MIXTURE.posterior(EYE[:, :1], np.zeros(2), EYE),
        ValueError,
        r"A, noise_covariance: expected shapes \[m, 2\], \[m, m\]",
    ),
}


test_bad_input = rejects(BAD)
