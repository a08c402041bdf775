"""Closed-form diffusion models: exact densities, scores, denoisers and posteriors for tests."""

from jaxdiff.oracles._affine import affine_chain, chain_law
from jaxdiff.oracles._binary import BinaryLaw, binary_bound, binary_chain, binary_states
from jaxdiff.oracles._fitting import fitted
from jaxdiff.oracles._mixture import GaussianMixture, empirical, gaussian

__all__ = [
    "BinaryLaw",
    "GaussianMixture",
    "affine_chain",
    "binary_bound",
    "binary_chain",
    "binary_states",
    "chain_law",
    "empirical",
    "fitted",
    "gaussian",
]
