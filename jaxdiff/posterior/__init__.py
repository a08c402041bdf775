"""The model multiplied by another law, p(x_0) r(x_0): weighted samples, evidence, draws.

Every method is a kernel for the one driver. `sample(key, kernel, x_init, ts,
resample=resampling.systematic())` returns samples x, their remaining log_weights, log_evidence =
log E_p[r(x_0)], and after each step the effective sample size and the number of lineages. Rows are
particles of one problem: vmap over problems. `draw` runs many independent systems of a few rows and
returns one draw of each: the draws to look at, and the joint evidence.

    twisted          r at the denoised states. Any r; conditioned in closed form where r is linear
                     and normal and the spread is known (`spread_of`), else by a gradient.
    tilted           2015's: r at the noisy states. Any r, if r and p have one mode.
    mcgdiff          linear observations with Gaussian noise: conjugate steps, no gradients.
    inpaint          mcgdiff for a mask
    denoise          mcgdiff for noise alone
    composed         products, powers and quotients of models; optionally with moves
    mixed            mixtures of models
    annealed_gibbs   linear observations: split Gibbs with weights, no gradients
    split_gibbs      linear observations; a Markov chain, without evidence

`replica_exchange` is another driver for the same weighted kernels: a Markov chain over the levels
of the grid, as a reference. Three kernels are approximations of the field, without weights. They
are biased at any number of steps:

    daps             any likelihood: draw clean data near the ODE's end, and diffuse them again
    diffpir          linear observations: the same with a mean for the draw
    mgdm             any likelihood with a gradient: a Gibbs sweep through an earlier time
"""

from jaxdiff.guidance._spread import Spread, spread_of, widened
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
from jaxdiff.posterior._decoupled import daps, diffpir
from jaxdiff.posterior._draws import FEW, Draws, draw, path_of
from jaxdiff.posterior._exchange import Exchanged, replica_exchange
from jaxdiff.posterior._gibbs import split_gibbs
from jaxdiff.posterior._midpoint import midpoint
from jaxdiff.posterior._mixture_guided import mgdm
from jaxdiff.posterior._moves import hamiltonian, langevin, metropolis
from jaxdiff.posterior._tilted import tilted
from jaxdiff.posterior._twisted import through, twisted

__all__ = [
    "FEW",
    "Belief",
    "Draws",
    "Exchanged",
    "Spread",
    "annealed_gibbs",
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
    "mgdm",
    "midpoint",
    "mixed",
    "noise_level",
    "path_of",
    "replica_exchange",
    "split_gibbs",
    "spread_of",
    "through",
    "tilted",
    "twisted",
    "widened",
]
