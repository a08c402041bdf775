"""What a page asks of a network: samples with their way there, and completions of a picture."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import posterior
from jaxdiff.runs import loading, problems, require, samplers, sampling
from jaxdiff.runs.seeds import key_of

SYSTEMS, ROWS, STEPS, START = 12, 4, 25, -8.0
"""A completion: systems, rows of each, steps, and the log-SNR at the first."""


class Completed(NamedTuple):
    """Pictures that agree with what is seen.

    Fields:
      x: one draw of each system, [SYSTEMS, H, W, C] in [-1, 1].
      log_evidence: log p(y), in nats.
      error: its standard error over the systems.
      lineages: rows of a system's start that have descendants at its end, the mean over systems.
    """

    x: np.ndarray
    log_evidence: float
    error: float
    lineages: float


@dataclasses.dataclass(frozen=True, eq=False)
class Player:
    """A network of images to play with.

    A new class, guidance, seed or picture does not compile anything again; a new sampler, or a new
    number of steps or samples, does.
    """

    run: loading.Run

    def __post_init__(self) -> None:
        if len(self.run.trained.event_shape) != 3:
            raise ValueError(
                "run: expected a network of images, got one of shape "
                f"{self.run.trained.event_shape}"
            )

    def states(
        self,
        *,
        num: int = 16,
        label: int | None = None,
        guidance: float = 1.0,
        sampler: str = samplers.DEFAULT,
        steps: int = samplers.STEPS,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw samples.

        Args:
          num: their number.
          label: their class; None for all classes in turn, or for a network without classes.
          guidance: classifier-free guidance.
          sampler: its name, of `samplers.SAMPLERS`.
          steps: number of steps.
          seed: sample i depends on (seed, i) alone.
        Returns:
          States of the reverse process, from noise to samples, [steps + 1, num, H, W, C].
        Raises:
          ValueError: a number is out of range, or a name is unknown.
        """
        require.seed(seed)
        if sampler not in samplers.SAMPLERS:
            raise ValueError(f"sampler: expected one of {list(samplers.SAMPLERS)}, got {sampler!r}")
        if num < 1 or steps < 1:
            raise ValueError(f"num, steps: expected at least 1, got {num}, {steps}")
        trained = self.run.trained
        labels = sampling.classes_in_turn(trained, num)
        if labels is not None and label is not None:
            labels = np.full(num, label)
        program = _sampler(self, sampler, steps, num, guidance == 1 or labels is None)
        key = key_of(seed, "samples")
        return np.asarray(program(trained.params, key, labels, jnp.asarray(guidance, jnp.float32)))

    def complete(
        self,
        x_0: np.ndarray,
        hidden: np.ndarray,
        *,
        label: int | None = None,
        noise_std: float = 0.1,
        seed: int = 0,
    ) -> Completed:
        """Draw pictures from the posterior of one of which a part is hidden.

        Args:
          x_0: the picture, [H, W, C] in [-1, 1]. Its hidden part does not matter.
          hidden: where it is hidden, [H, W], bool.
          label: its class, if that is known.
          noise_std: standard deviation of the noise on what is seen.
          seed: draw m depends on (seed, m) alone.
        Returns:
          Completed.
        Raises:
          ValueError: a shape is another one, nothing is hidden or seen, noise_std is not positive,
            or the network needs a class.
        """
        shape = self.run.trained.event_shape
        if x_0.shape != shape or hidden.shape != shape[:2]:
            raise ValueError(
                f"x_0, hidden: expected shapes {shape} and {shape[:2]}, "
                f"got {x_0.shape} and {hidden.shape}"
            )
        if hidden.all() or not hidden.any():
            part = "everything" if hidden.all() else "nothing"
            raise ValueError(f"hidden: expected a part of the picture, got {part}")
        require.seed(seed)
        if not noise_std > 0:
            raise ValueError(f"noise_std: expected a positive number, got {noise_std}")
        trained = self.run.trained
        seen = jd.observations.mask(
            jnp.asarray(x_0, jnp.float32), jnp.asarray(~hidden)[..., None], jnp.float32(noise_std)
        )
        given = None if label is None else jnp.asarray(label)
        draws = self._completer(trained.params, key_of(seed, "posterior"), given, seen)
        return Completed(
            np.asarray(draws.x),
            float(draws.log_evidence),
            float(draws.evidence_error),
            float(draws.lineages[:, -1].mean()),
        )

    @functools.cached_property
    def _spread(self) -> posterior.Spread | None:
        """The network's own, or measured once on the training data; None if they are not here."""
        run = self.run
        if run.trained.spread is None and not run.dataset.is_here:
            return None
        return problems.spread_of(run)

    @functools.cached_property
    def _completer(self) -> Callable:
        trained, spread = self.run.trained, self._spread
        start = float(trained.schedule.time(START))
        ts = jd.grids.uniform(STEPS, start=start)

        @jax.jit
        def program(params: Any, key: jax.Array, label: Any, seen: Any) -> posterior.Draws:
            denoiser = trained.with_params(params).denoiser(label)
            kernel = posterior.twisted(denoiser, trained.schedule, seen, spread=spread)
            shape = (SYSTEMS, *trained.event_shape)
            return posterior.draw(key, kernel, trained.schedule, shape, ts=ts, rows=ROWS)

        return program


@functools.lru_cache(maxsize=16)
def _sampler(player: Player, sampler: str, steps: int, num: int, plain: bool) -> Callable:
    """The compiled sampler of (params, key, label, guidance); `plain` leaves the guidance out."""
    trained = player.run.trained
    ts = samplers.make_grid(trained.schedule, "uniform", steps)

    @jax.jit
    def program(params: Any, key: jax.Array, label: Any, guidance: jax.Array) -> jax.Array:
        return sampling.states(
            trained.with_params(params), key, num, ts, label=label, sampler=sampler,
            guidance=1.0 if plain else guidance, save_every=1,
        )  # fmt: skip

    return program
