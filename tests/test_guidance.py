"""Guidance against densities it should be equal to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCHEDULES, asymmetric_mixture, correlated_gaussian

import jaxdiff as jd


def denoisers(schedule: jd.Schedule) -> tuple:
    return asymmetric_mixture().denoiser(schedule), correlated_gaussian().denoiser(schedule)


def test_scales_zero_and_one_are_the_parts(x64: None) -> None:
    schedule = jd.schedules.cosine()
    given, free = denoisers(schedule)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    for scale, expected in ((0.0, free), (1.0, given)):
        np.testing.assert_allclose(
            jd.guidance.classifier_free(given, free, scale)(x, 0.5), expected(x, 0.5), rtol=1e-12
        )


def test_it_is_the_combination_of_scores(x64: None) -> None:
    """D = D_u + w (D_c - D_u) has the score (1 - w) grad log p_u + w grad log p_c."""
    schedule, scale, t = jd.schedules.linear(), 2.5, 0.4
    given, free = denoisers(schedule)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    x_0 = jd.guidance.classifier_free(given, free, scale)(x, t)
    score = jd.prediction.convert(schedule, x_0, x, t, source="x0", target="score")
    parts = (
        mixture.diffuse(schedule, t).score(x)
        for mixture in (asymmetric_mixture(), correlated_gaussian())
    )
    expected = sum(w * s for w, s in zip((scale, 1 - scale), parts, strict=True))
    np.testing.assert_allclose(score, expected, rtol=1e-9)


@pytest.mark.slow
def test_a_scale_a_row() -> None:
    schedule = jd.schedules.cosine()
    given, free = denoisers(schedule)
    x, scales = jax.random.normal(jax.random.key(0), (3, 2)), jnp.array([0.0, 1.0, 3.0])
    together = jd.guidance.classifier_free(given, free, scales)(x, 0.5)
    for row in range(3):
        alone = jd.guidance.classifier_free(given, free, float(scales[row]))(x[row : row + 1], 0.5)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5)


def test_guidance_sharpens_towards_the_class() -> None:
    """Guided samples of one component out of three move away from the other two, past the component's own mean."""
    schedule, mixture = jd.schedules.cosine(), asymmetric_mixture()
    one = jd.oracles.GaussianMixture(jnp.zeros(1), mixture.means[1:2], mixture.covariances[1:2])
    x_init = jd.prior_sample(jax.random.key(0), schedule, (2000, 2))

    def mean(scale: float) -> np.ndarray:
        guided = jd.guidance.classifier_free(
            one.denoiser(schedule), mixture.denoiser(schedule), scale
        )
        kernel = jd.kernels.ddim(guided, schedule)
        return np.asarray(
            jd.sample(jax.random.key(1), kernel, x_init, jd.grids.uniform(50)).x
        ).mean(0)

    rest = np.asarray(mixture.means)[[0, 2]].mean(0)
    distance = [np.linalg.norm(mean(scale) - rest) for scale in (1.0, 2.0)]
    assert distance[1] > distance[0] + 0.1


@pytest.mark.slow
def test_guidance_is_on_in_its_interval_only(x64: None) -> None:
    schedule = jd.schedules.cosine()
    given, free = denoisers(schedule)
    x = jax.random.normal(jax.random.key(0), (3, 2))
    times, on = jnp.array([0.2, 0.5, 0.8]), jd.guidance.classifier_free(given, free, 3.0)
    limited = jd.guidance.classifier_free(given, free, 3.0, interval=(0.3, 0.5))
    expected = jnp.where(jnp.array([False, True, False])[:, None], on(x, times), given(x, times))
    np.testing.assert_allclose(limited(x, times), expected, rtol=1e-12)
    np.testing.assert_allclose(limited(x, 0.8), given(x, 0.8), rtol=1e-12)


@pytest.mark.slow
def test_rescale_restores_the_contrast(x64: None) -> None:
    """phi = 1 gives each row the conditional answer's standard deviation; phi is a blend; rows stay apart."""
    schedule = jd.schedules.cosine()
    given, free = denoisers(schedule)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    none, half, full = (
        jd.guidance.classifier_free(given, free, 3.0, rescale=phi)(x, 0.5)
        for phi in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(full.std(axis=1), given(x, 0.5).std(axis=1), rtol=1e-12)
    np.testing.assert_allclose(half, (none + full) / 2, rtol=1e-12)
    alone = jd.guidance.classifier_free(given, free, 3.0, rescale=1.0)(x[1:2], 0.5)
    np.testing.assert_allclose(alone[0], full[1], rtol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "edm", "rectified_flow"])
def test_the_exact_classifier_gives_the_class_conditional_denoiser(name: str, x64: None) -> None:
    """Bayes: the mixture's denoiser plus the gradient of log p(component | x_t) is the component's denoiser."""
    schedule, mixture, t = SCHEDULES[name](), asymmetric_mixture(), 0.5
    one = jd.oracles.gaussian(mixture.means[1], mixture.covariances[1])

    def log_likelihood(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return one.diffuse(schedule, t[0]).log_prob(x_t) - mixture.diffuse(schedule, t[0]).log_prob(
            x_t
        )

    guided = jd.guidance.classifier(mixture.denoiser(schedule), schedule, log_likelihood)
    x_t = schedule.sigma(t) * jax.random.normal(jax.random.key(0), (5, 2))
    np.testing.assert_allclose(guided(x_t, t), one.denoiser(schedule)(x_t, t), rtol=1e-8, atol=1e-8)
    twice = jd.guidance.classifier(
        mixture.denoiser(schedule), schedule, log_likelihood, jnp.full(5, 2.0)
    )
    shift = [d(x_t, t) - mixture.denoiser(schedule)(x_t, t) for d in (guided, twice)]
    np.testing.assert_allclose(shift[1], 2 * shift[0], rtol=1e-7, atol=1e-10)


def test_a_classifier_is_silent_where_there_is_no_signal() -> None:
    schedule = jd.schedules.cosine(log_snr_min=-np.inf)
    guided = jd.guidance.classifier(lambda x, t: 0 * x, schedule, lambda x, t: x.sum(axis=1))
    np.testing.assert_array_equal(guided(jnp.ones((2, 3)), 1.0), 0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"rescale: expected a fraction in \[0, 1\], got 2"):
        jd.guidance.classifier_free(lambda x, t: x, lambda x, t: x, 1.0, rescale=2.0)
    with pytest.raises(ValueError, match="interval: expected a time in"):
        jd.guidance.classifier_free(lambda x, t: x, lambda x, t: x, 1.0, interval=(0.0, 20.0))
    with pytest.raises(TypeError, match="log_likelihood: expected a function, got int"):
        jd.guidance.classifier(lambda x, t: x, jd.schedules.cosine(), 3)
    with pytest.raises(TypeError, match="unconditional: expected a function, got NoneType"):
        jd.guidance.classifier_free(lambda x, t: x, None, 1.0)
    with pytest.raises(ValueError, match=r"interval: expected \(low, high\) in this order"):
        jd.guidance.classifier_free(lambda x, t: x, lambda x, t: x, 1.0, interval=(0.8, 0.2))
    every_class = jd.guidance.classifier(
        lambda x, t: x, jd.schedules.cosine(), lambda x, t: jax.nn.log_softmax(x)
    )
    with pytest.raises(
        ValueError, match=r"log_likelihood: expected one value a row, \(4,\), got \(4, 3\)"
    ):
        every_class(jnp.ones((4, 3)), 0.5)


@pytest.mark.slow
def test_gradients_through_guidance_of_rows_without_contrast() -> None:
    schedule = jd.schedules.cosine()
    given, free = (
        jd.oracles.gaussian(jnp.array([m]), jnp.array([[0.2]])).denoiser(schedule)
        for m in (0.5, -0.5)
    )
    guided = jd.guidance.classifier_free(given, free, 2.0)
    assert np.all(np.isfinite(jax.grad(lambda x: guided(x, 0.5).sum())(jnp.ones((4, 1)))))
