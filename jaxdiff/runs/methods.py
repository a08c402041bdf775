"""The methods that draw posterior samples, by name, and their cost: one table for all programs."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff import guidance, kernels, posterior

MethodName = Literal[
    "twisted", "particle_gibbs", "twisted_gradient", "twisted_mmps", "mcgdiff", "tilted",
    "importance", "twisted_midpoint", "conditioned", "pigdm", "dps", "dps_step", "tmpd", "mmps",
    "daps", "diffpir", "mgdm", "split_gibbs", "repaint",
]  # fmt: skip


class Setting(NamedTuple):
    """The options of methods besides the denoiser and the observation; None is a method's default.

    Fields:
      schedule: the noise schedule.
      prior_std: standard deviation of an entry of the data.
      num_iterations: of conjugate gradients.
      num_resamples: of repaint.
      num_denoising: steps of each denoising of split Gibbs.
      power: of the tilt, t -> [].
      matrix: of the observation, [M, N], where mcgdiff works in its singular vectors; None where
        entries are seen.
      belief: what mcgdiff knows of the data before it calls the network.
      spread: Cov[x_0 | x_t] of the model; None for an isotropic one.
      variance: of the model's steps; mcgdiff has its own, "small".
      normal: whether the likelihood is an `Observation`, or has one that is near.
    """

    schedule: jd.Schedule
    prior_std: Any = 1.0
    num_iterations: int | None = None
    num_resamples: int | None = None
    num_denoising: int | None = None
    power: Callable | None = None
    matrix: jax.Array | None = None
    belief: Callable | None = None
    spread: posterior.Spread | None = None
    variance: Any = "small"
    normal: bool = True

    def given(self, *names: str) -> dict[str, Any]:
        """The named fields that are not None, as arguments."""
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}


class Method(NamedTuple):
    """How posterior samples are drawn.

    Fields:
      make: (setting, denoiser, seen) -> Kernel.
      calls: setting -> network calls a step and particle; a vector-Jacobian product is one more.
      weighted: whether its samples have weights. Then it gives the evidence too.
      needs: "any" likelihood, a "linear" observation, a "spread" and a linear one, or a "mask".
      uses: what it depends on besides the task, the grid and, with weights, the resampling.
      sweeps: of particle Gibbs after the first run.
    """

    make: Callable[[Setting, Any, Any], jd.Kernel]
    calls: Callable[[Setting], float]
    weighted: bool = False
    needs: str = "any"
    uses: tuple[str, ...] = ()
    sweeps: int = 0


def _twisted(s: Setting, denoiser: Any, seen: Any, proposal: Any = None) -> jd.Kernel:
    return posterior.twisted(
        denoiser, s.schedule, seen, prior_std=s.prior_std, proposal=proposal,
        spread=s.spread, variance=s.variance,
    )  # fmt: skip


def _twisted_gradient(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    return _twisted(s._replace(spread=None), denoiser, seen)


def _twisted_mmps(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    guided = _mmps(s, denoiser, seen)
    proposal = posterior.through(guided, s.schedule, variance=s.variance)
    return _twisted(s._replace(spread=None), denoiser, seen, proposal)


def _twisted_midpoint(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    proposal = posterior.midpoint(
        denoiser, s.schedule, seen, prior_std=s.prior_std, variance=s.variance
    )
    return _twisted(s._replace(spread=None), denoiser, seen, proposal)


def _dps_step(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    return guidance.dps_step(denoiser, s.schedule, seen, variance=s.variance)


def _daps(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    return posterior.daps(denoiser, s.schedule, seen, prior_std=s.prior_std)


def _diffpir(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    return posterior.diffpir(denoiser, s.schedule, seen, prior_std=s.prior_std)


def _mgdm(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    return posterior.mgdm(denoiser, s.schedule, seen, variance=s.variance)


def _conditioned(s: Setting, denoiser: Any, seen: Any) -> Callable:
    assert s.spread is not None  # problems.fitting has seen to it
    return guidance.conditioned(denoiser, s.schedule, seen, s.spread)


def _mcgdiff(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    if s.matrix is None:
        return posterior.inpaint(
            denoiser, s.schedule, seen.y, seen.observed, noise_std=seen.noise_std, belief=s.belief
        )
    y = seen.y.reshape(-1)
    return posterior.mcgdiff(denoiser, s.schedule, s.matrix, y, seen.noise_std, belief=s.belief)


def _tilted(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    return posterior.tilted(denoiser, s.schedule, seen, power=s.power, variance=s.variance)


def _at_end(t: Any) -> jax.Array:
    return jnp.where(t > 0, 0.0, 1.0)


def _pigdm(s: Setting, denoiser: Any, seen: Any) -> Callable:
    options = s.given("prior_std", "num_iterations")
    return guidance.pigdm(denoiser, s.schedule, seen, **options)


def _tmpd(s: Setting, denoiser: Any, seen: Any) -> Callable:
    return guidance.tmpd(denoiser, s.schedule, seen, **s.given("num_iterations"))


def _mmps(s: Setting, denoiser: Any, seen: Any) -> Callable:
    return guidance.mmps(denoiser, s.schedule, seen, **s.given("num_iterations"))


def _split_gibbs(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    options = s.given("num_denoising", "num_iterations")
    return posterior.split_gibbs(denoiser, s.schedule, seen, **options)


def _repaint(s: Setting, denoiser: Any, seen: Any) -> jd.Kernel:
    options = s.given("num_resamples")
    return guidance.repaint(denoiser, s.schedule, seen.y, seen.observed, **options)


def guided(
    guide: Callable[[Setting, Any, Any], Callable],
) -> Callable[[Setting, Any, Any], jd.Kernel]:
    """The ancestral kernel of a guided denoiser."""
    return lambda s, denoiser, seen: kernels.ancestral(
        guide(s, denoiser, seen), s.schedule, variance=s.variance
    )


def constant(calls: float) -> Callable[[Setting], float]:
    """The same number of calls for every setting."""
    return lambda s: calls


def _twisted_calls(s: Setting) -> float:
    return 1 if s.normal and s.spread is not None else 2


PRIOR = ("prior_std",)
METHODS = {
    "twisted": Method(_twisted, _twisted_calls, True, uses=PRIOR),
    "particle_gibbs": Method(_twisted, _twisted_calls, True, uses=PRIOR, sweeps=1),
    "twisted_gradient": Method(_twisted_gradient, constant(2), True, uses=PRIOR),
    "mcgdiff": Method(_mcgdiff, constant(1), True, "linear", ("belief",)),
    "tilted": Method(_tilted, constant(1), True),
    "importance": Method(
        lambda s, d, seen: _tilted(s._replace(power=_at_end), d, seen), constant(1), True
    ),
    "twisted_mmps": Method(
        _twisted_mmps, lambda s: 4 + (s.num_iterations or 5), True, "linear", PRIOR
    ),
    "twisted_midpoint": Method(_twisted_midpoint, constant(7), True, uses=PRIOR),
    "conditioned": Method(guided(_conditioned), constant(1), needs="spread"),
    "dps": Method(guided(lambda s, d, seen: guidance.dps(d, s.schedule, seen)), constant(2)),
    "dps_step": Method(_dps_step, constant(2), needs="linear"),
    "daps": Method(_daps, constant(5), needs="linear", uses=PRIOR),
    "diffpir": Method(_diffpir, constant(1), needs="linear", uses=PRIOR),
    "mgdm": Method(_mgdm, constant(15)),
    "pigdm": Method(guided(_pigdm), constant(2), needs="linear", uses=PRIOR),
    "tmpd": Method(guided(_tmpd), constant(3), needs="linear"),
    "mmps": Method(guided(_mmps), lambda s: 2 + (s.num_iterations or 5), needs="linear"),
    "split_gibbs": Method(_split_gibbs, lambda s: s.num_denoising or 20, needs="linear"),
    "repaint": Method(_repaint, lambda s: s.num_resamples or 10, needs="mask"),
}
