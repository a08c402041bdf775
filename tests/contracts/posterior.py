"""What every kernel of a posterior must satisfy; each one is listed once in POSTERIORS."""

from collections.abc import Callable

import jax.numpy as jnp
from helpers import slow
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import guidance, kernels, observations, posterior

# One observation of the mixture in two dimensions that all of them are about: y = A x_0 + noise.
A, Y, STD = [[1.0, 0.5]], [0.3], 0.3
MASK, SHOWN, MASK_STD = [1.0, 0.0], [0.9, 0.0], 0.3


def matrix(dtype: object = None) -> jnp.ndarray:
    return jnp.array(A, dtype)


def observation(dtype: object = None) -> jd.observations.Observation:
    return observations.linear(matrix(dtype), jnp.array(Y, dtype), STD)


def masked(dtype: object = None) -> jd.observations.Observation:
    return observations.mask(jnp.array(SHOWN, dtype), jnp.array(MASK, dtype), MASK_STD)


def bumps(dtype: object = None) -> Callable:
    """A likelihood that is no Observation."""
    return Partial(lambda y, x_0: -8 * jnp.sum((jnp.sin(x_0) - y) ** 2), jnp.array(Y, dtype))


def spread(dtype: object = None) -> jd.posterior.Spread:
    """One of another law than the data: a kernel's contract holds for any."""
    axes, scale = jnp.array([[0.8, 0.6]], dtype), jnp.array([2.0, 0.5], dtype)
    return posterior.Spread(axes, scale, jnp.array([-8.0, 8.0], dtype), jnp.ones((2, 2), dtype))


def counts(dtype: object = None) -> jd.observations.Poisson:
    return observations.poisson(jnp.array([6.0, 2.0], dtype), 5.0)


def _guided(name: str) -> Callable:
    return lambda d, s, dtype: kernels.ancestral(
        getattr(guidance, name)(d, s, observation(dtype)), s
    )


# (denoiser, schedule, dtype) -> Kernel; those of WEIGHTED have the posterior as their limit.
WEIGHTED: dict[str, Callable[..., jd.Kernel]] = {
    "twisted": lambda d, s, dtype: posterior.twisted(d, s, observation(dtype)),
    "twisted_by_mmps": lambda d, s, dtype: posterior.twisted(
        d,
        s,
        observation(dtype),
        proposal=posterior.through(guidance.mmps(d, s, observation(dtype)), s),
    ),
    "twisted_by_midpoint": lambda d, s, dtype: posterior.twisted(
        d, s, observation(dtype), proposal=posterior.midpoint(d, s, observation(dtype))
    ),
    "twisted_spread": lambda d, s, dtype: posterior.twisted(
        d, s, observation(dtype), spread=spread(dtype)
    ),
    "mcgdiff": lambda d, s, dtype: posterior.mcgdiff(d, s, matrix(dtype), jnp.array(Y, dtype), STD),
    "mcgdiff_believing": lambda d, s, dtype: posterior.mcgdiff(
        d, s, matrix(dtype), jnp.array(Y, dtype), STD, belief=posterior.gaussian_belief(s, 0.0, 1.4)
    ),
    "tilted": lambda d, s, dtype: posterior.tilted(d, s, observation(dtype)),
}
POSTERIORS: dict[str, Callable[..., jd.Kernel]] = (
    WEIGHTED
    | {
        "inpaint": lambda d, s, dtype: posterior.inpaint(
            d,
            s,
            jnp.array(SHOWN, dtype),
            jnp.array(MASK, dtype),
            noise_std=jnp.array(MASK_STD, dtype),
        ),
        "twisted_smoothed": lambda d, s, dtype: posterior.twisted(
            d, s, Partial(lambda seen, x: seen(x), observation(dtype)), num_nodes=4
        ),
        "twisted_counts": lambda d, s, dtype: posterior.twisted(
            d, s, counts(dtype), spread=spread(dtype)
        ),
        "twisted_mask": lambda d, s, dtype: posterior.twisted(d, s, masked(dtype)),
        "composed": lambda d, s, dtype: posterior.composed(
            [d, d], jnp.array([1.2, -0.3], dtype), s
        ),
        "composed_moved": lambda d, s, dtype: posterior.composed(
            [d, d],
            jnp.array([0.7, 0.8], dtype),
            s,
            move=posterior.langevin([d, d], jnp.array([0.7, 0.8], dtype), s),
        ),
        "mixed": lambda d, s, dtype: posterior.mixed([d, d], jnp.zeros(2, dtype), s),
        "split_gibbs": lambda d, s, dtype: posterior.split_gibbs(
            d, s, observation(dtype), num_denoising=3
        ),
        "daps": lambda d, s, dtype: posterior.daps(
            d, s, observation(dtype), num_denoising=2, prior_std=1.4
        ),
        "daps_by_langevin": lambda d, s, dtype: posterior.daps(
            d, s, bumps(dtype), num_denoising=1, num_moves=3
        ),
        "daps_of_the_paper": lambda d, s, dtype: posterior.daps(
            d, s, masked(dtype), num_denoising=2, prior_std=jnp.inf
        ),
        "diffpir": lambda d, s, dtype: posterior.diffpir(d, s, observation(dtype)),
        "diffpir_of_the_paper": lambda d, s, dtype: posterior.diffpir(
            d, s, masked(dtype), 1.0, weight=3.0, prior_std=jnp.inf
        ),
        "mgdm": lambda d, s, dtype: posterior.mgdm(
            d, s, observation(dtype), num_gradients=2, num_denoising=2
        ),
        "mgdm_of_two_sweeps": lambda d, s, dtype: posterior.mgdm(
            d, s, bumps(dtype), num_sweeps=2, num_gradients=1, num_denoising=1
        ),
        "dps_step": lambda d, s, dtype: guidance.dps_step(d, s, observation(dtype), 0.1),
        "annealed_gibbs": lambda d, s, dtype: posterior.annealed_gibbs(
            d, s, observation(dtype), num_denoising=3
        ),
        "annealed_gibbs_mask": lambda d, s, dtype: posterior.annealed_gibbs(
            d, s, masked(dtype), num_denoising=2
        ),
        "repaint": lambda d, s, dtype: guidance.repaint(
            d, s, jnp.array(SHOWN, dtype), jnp.array(MASK, dtype), num_resamples=2
        ),
    }
    | {name: _guided(name) for name in ("dps", "pigdm", "tmpd", "mmps")}
)

# Close relatives of others: their contract is proved behind the slow marker.
SLOW = {
    "split_gibbs",
    "daps",
    "diffpir",
    "annealed_gibbs",
    "repaint",
    "tmpd",
    "mmps",
    "mixed",
    "mgdm",
    "mgdm_of_two_sweeps",
    "twisted_spread",
    "twisted_by_mmps",
    "twisted_by_midpoint",
    "daps_by_langevin",
    "daps_of_the_paper",
    "diffpir_of_the_paper",
    "twisted_mask",
    "annealed_gibbs_mask",
    "twisted_counts",
    "twisted_smoothed",
    "mcgdiff_believing",
    "composed_moved",
    "dps",
    "pigdm",
}


def names() -> list:
    """The kernels of posteriors, as parameters of a test."""
    return [slow(name) if name in SLOW else name for name in POSTERIORS]
