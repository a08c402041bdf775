"""The work of forward and reverse paths: two-sided bounds of log p, and the dissipation.

    forward path of x_0:  W_F = -log w,   E[exp(-W_F)] = p(x_0),       E[W_F] >= -log p(x_0)
    reverse path to x_0:  W_R = +log w,   E[exp(-W_R)] = 1 / p(x_0),   E[W_R] >= log p(x_0)

p is p_theta, and w is the weight of jaxdiff.chain. -log p(x_0) is the free energy difference.
Crooks' theorem, P_F(W) / P_R(-W) = exp(W + log p(x_0)), relates the two directions.
"""

from jaxdiff.work._annealing import AisBounds, ais, ais_bounds, ais_run, annealing
from jaxdiff.work._bounds import Bounds, bidirectional_bounds, reverse_path
from jaxdiff.work._entropy import EntropyBounds, entropy_bounds, entropy_production
from jaxdiff.work._estimators import (
    Crooks,
    bennett_acceptance_ratio,
    bennett_standard_error,
    crooks,
)

__all__ = [
    "AisBounds",
    "Bounds",
    "Crooks",
    "EntropyBounds",
    "ais",
    "ais_bounds",
    "ais_run",
    "annealing",
    "bennett_acceptance_ratio",
    "bennett_standard_error",
    "bidirectional_bounds",
    "crooks",
    "entropy_bounds",
    "entropy_production",
    "reverse_path",
]
