"""The model multiplied by another distribution, p(x_0) r(x_0): samples with weights, evidence, effective sample size.

Every method is a kernel for the one driver. `sample(key, kernel, x_init, ts,
resample=resampling.systematic())` returns samples x, what is left of their log_weights,
log_evidence = log E_p[r(x_0)], and the effective sample size after each step; `resampling.draw`
makes equally weighted samples of them. Rows are particles of one problem: vmap over problems.

    tilted      2015's: r at the noisy states. Any r; for r and p with one mode.
    twisted     r at the denoised states. Any differentiable r.
    mcgdiff     linear observations with Gaussian noise: conjugate steps, no gradients (inpaint, denoise: the same).
    composed    products, powers and quotients of models; with moves, if wanted. mixed: mixtures of models.
    split_gibbs linear observations; a Markov chain, without evidence.
"""

from jaxdiff.posterior._composed import composed, composed_score, mixed
from jaxdiff.posterior._conjugate import (
    Belief,
    denoise,
    gaussian_belief,
    inpaint,
    mcgdiff,
    noise_level,
)
from jaxdiff.posterior._gibbs import split_gibbs
from jaxdiff.posterior._moves import hamiltonian, langevin, metropolis
from jaxdiff.posterior._twisted import through, tilted, twisted

__all__ = [
    "Belief",
    "composed",
    "composed_score",
    "denoise",
    "gaussian_belief",
    "hamiltonian",
    "inpaint",
    "langevin",
    "mcgdiff",
    "metropolis",
    "mixed",
    "noise_level",
    "split_gibbs",
    "through",
    "tilted",
    "twisted",
]
