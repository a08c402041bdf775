"""The model multiplied by another law, p(x_0) r(x_0): weighted samples, evidence, sample size.

Every method is a kernel for the one driver. `sample(key, kernel, x_init, ts,
resample=resampling.systematic())` returns samples x, their remaining log_weights, log_evidence =
log E_p[r(x_0)], and the effective sample size after each step. `resampling.draw` turns them into
equally weighted samples. Rows are particles of one problem: vmap over problems.

    tilted        2015's: r at the noisy states. Any r, if r and p have one mode.
    twisted       r at the denoised states. Any differentiable r.
    mcgdiff       linear observations with Gaussian noise: conjugate steps, no gradients.
    inpaint       mcgdiff for a mask
    denoise       mcgdiff for noise alone
    composed      products, powers and quotients of models; optionally with moves
    mixed         mixtures of models
    split_gibbs   linear observations; a Markov chain, without evidence
    annealed_gibbs   linear observations: split Gibbs with weights, no gradients

`replica_exchange` is another driver for the same weighted kernels: a Markov chain over the levels
of the grid, as a reference.
"""

from jaxdiff.posterior._annealed import annealed_gibbs
from jaxdiff.posterior._composed import composed, composed_score, mixed
from jaxdiff.posterior._conjugate import (
    Belief,
    denoise,
    gaussian_belief,
    inpaint,
    mcgdiff,
    noise_level,
)
from jaxdiff.posterior._exchange import Exchanged, replica_exchange
from jaxdiff.posterior._gibbs import split_gibbs
from jaxdiff.posterior._moves import hamiltonian, langevin, metropolis
from jaxdiff.posterior._twisted import through, tilted, twisted

__all__ = [
    "Belief",
    "Exchanged",
    "annealed_gibbs",
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
    "replica_exchange",
    "split_gibbs",
    "through",
    "tilted",
    "twisted",
]
