"""Guidance against densities it should be equal to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import asymmetric_mixture, correlated_gaussian

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
    parts = (mixture.diffuse(schedule, t).score(x) for mixture in (asymmetric_mixture(), correlated_gaussian()))
    expected = sum(w * s for w, s in zip((scale, 1 - scale), parts, strict=True))
    np.testing.assert_allclose(score, expected, rtol=1e-9)


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
        guided = jd.guidance.classifier_free(one.denoiser(schedule), mixture.denoiser(schedule), scale)
        kernel = jd.kernels.ddim(guided, schedule)
        return np.asarray(jd.sample(jax.random.key(1), kernel, x_init, jd.grids.uniform(50)).x).mean(0)

    rest = np.asarray(mixture.means)[[0, 2]].mean(0)
    distance = [np.linalg.norm(mean(scale) - rest) for scale in (1.0, 2.0)]
    assert distance[1] > distance[0] + 0.1


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="unconditional: expected a function, got NoneType"):
        jd.guidance.classifier_free(lambda x, t: x, None, 1.0)
