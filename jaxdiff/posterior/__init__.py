"""The model multiplied by another law, p(x_0) r(x_0): weighted samples, evidence, sample size.

Every method is a kernel for the one driver. `sample(key, kernel, x_init, ts,
resample=resampling.systematic())` returns samples x, their remaining log_weights, log_evidence =
log E_p[r(x_0)], and the effective sample size after each step. `resampling.draw` turns them into
equally weighted samples. Rows are particles of one problem: vmap over problems.

    tilted        2015's: r at the noisy states. Any r, if r and p have one mode.
    twisted       r at the denoised states. Any differentiable r. Its proposals: through, midpoint.
    mcgdiff       linear observations with Gaussian noise: conjugate steps, no gradients.
    inpaint       mcgdiff for a mask
    denoise       mcgdiff for noise alone
    composed      products, powers and quotients of models; optionally with moves
    mixed         mixtures of models
    split_gibbs   linear observations; a Markov chain, without evidence

Two kernels are approximations of the field, without weights and biased at any number of steps:

    daps          any likelihood: draw clean data near the ODE's end, and diffuse them again
    diffpir       linear observations: the same with a mean for the draw
"""

from jaxdiff.guidance._spread import Spread, spread_of, widened
from jaxdiff.posterior._composed import composed, composed_score, mixed
from jaxdiff.posterior._conjugate import (
    Belief,
    denoise,
    gaussian_belief,
    inpaint,
    mcgdiff,
    noise_level,
)
from jaxdiff.posterior._decoupled import daps, diffpir
from jaxdiff.posterior._draws import FEW, Draws, draw, path_of
from jaxdiff.posterior._gibbs import split_gibbs
from jaxdiff.posterior._midpoint import midpoint
from jaxdiff.posterior._moves import hamiltonian, langevin, metropolis
from jaxdiff.posterior._tilted import tilted
from jaxdiff.posterior._twisted import through, twisted

__all__ = [
    "FEW",
    "Belief",
    "Draws",
    "Spread",
    "composed",
    "composed_score",
    "daps",
    "denoise",
    "diffpir",
    "draw",
    "gaussian_belief",
    "hamiltonian",
    "inpaint",
    "langevin",
    "mcgdiff",
    "metropolis",
    "midpoint",
    "mixed",
    "noise_level",
    "path_of",
    "split_gibbs",
    "spread_of",
    "through",
    "tilted",
    "twisted",
    "widened",
]
