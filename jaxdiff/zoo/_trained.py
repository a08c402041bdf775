"""A trained network, and the denoiser that it makes."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.tree_util import Partial

from jaxdiff import categorical
from jaxdiff import guidance as guided
from jaxdiff.posterior import Spread
from jaxdiff.prediction import make_denoiser
from jaxdiff.schedules import Schedule


@dataclass(frozen=True, repr=False)
class Trained:
    """A trained network and what it was trained for.

    Fields:
      model: the network, `models.Model`; its parameters are not part of it.
      params: its parameters, a nested dict of arrays.
      schedule: the noise schedule.
      prediction: what the network predicts, as `make_denoiser` takes it, or "levels": logits of
        the data's levels.
      event_shape: the shape of one example.
      levels: grey levels of the data, which are scaled to [-1, 1]; None for vectors.
      sigma_data: standard deviation of the data; the prediction "edm" alone uses it.
      spread: Cov[x_0 | x_t] by level, for posteriors (`posterior.spread_of`); None if nobody has
        measured it.
      threshold: of x_0, as `make_denoiser` takes it, for a network that was made to be used with
        one; None for none.
      variance: of the reverse steps, as `kernels.ancestral` takes it, for a network whose files say
        it; None leaves it to whoever asks.
      about: everything else: the run's configuration and step, and where the data come from.
    """

    model: Any
    params: Any
    schedule: Schedule
    prediction: str
    event_shape: tuple[int, ...]
    levels: int | None = None
    sigma_data: float = 0.5
    spread: Spread | None = None
    threshold: Any = None
    variance: str | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None for an unconditional network."""
        return self.model.num_classes

    @property
    def learned_variance(self) -> bool:
        """Whether the network gives the variance of the reverse step too."""
        return self.model.module.learned_variance

    @property
    def step(self) -> int:
        """Number of updates that the network has had."""
        return self.about.get("step", 0)

    @property
    def settings(self) -> list[Any]:
        """All that the denoiser depends on besides arrays, as JSON can hold it: for digests."""
        words = [repr(self.model.module), repr(self.threshold), self.variance]
        return [*words, self.prediction, self.sigma_data]

    def with_params(self, params: Any) -> "Trained":
        """Return the network with other parameters, such as an argument of a compiled function.

        Args:
          params: a tree of the same structure.
        Returns:
          Trained.
        """
        return dataclasses.replace(self, params=params)

    def denoiser(
        self, label: jax.Array | None = None, guidance: Any = 1.0, *, threshold: Any = None
    ) -> Callable:
        """Return the denoiser, a pytree whose leaves are the parameters.

            D(x_t, t) = E[x_0 | x_t, label]
            with guidance w: D(x_t) + w (D(x_t | label) - D(x_t))

        Args:
          label: class of each row, [B], or of all rows, [], integer; num_classes, like None, stands
            for all classes together; a network without a null class needs a class. Traced, one
            outside makes its row NaN.
          guidance: classifier-free guidance; 1 is the model, more follows the label harder.
          threshold: as `make_denoiser` takes it; the network's own if None.
        Returns:
          A denoiser for kernels, guidance, likelihoods and posteriors.
        Raises:
          ValueError: threshold is not offered, a label is outside 0 .. num_classes, the network has
            no classes, guidance is given without a label, or a network without a null class is
            asked for all classes together.
          TypeError: label is not integer.
        Source: Ho & Salimans 2022, arXiv:2207.12598, for the guidance.
        """
        self.model.check_label(label)
        threshold = self.threshold if threshold is None else threshold
        make = network_denoiser(
            self.model, self.prediction, levels=self.levels, sigma_data=self.sigma_data
        )
        unguided = isinstance(guidance, int | float) and guidance == 1
        if label is None:
            if not unguided:
                raise ValueError(f"guidance: expected 1 without a label, got {guidance}")
            return make(self.params, self.schedule, threshold=threshold)
        given = make(self.params, self.schedule, threshold=threshold, label=label)
        if unguided:
            return given
        self.model.check_label(None)
        free = make(self.params, self.schedule, threshold=threshold)
        return guided.classifier_free(given, free, guidance)

    def __repr__(self) -> str:
        num = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        config = self.about.get("config", {})
        words = [
            f"{config.get('dataset', 'network')}: {num / 1e6:.2f} million parameters",
            f"{self.prediction} prediction",
            f"{self.schedule!r}".partition("(")[0] + " schedule",
            "x".join(map(str, self.event_shape)),
            "no classes" if self.num_classes is None else f"{self.num_classes} classes",
            f"step {self.step}",
        ]
        return f"Trained({', '.join(words)})"


def network_denoiser(
    model: Any, prediction: str, *, levels: int | None = None, sigma_data: float = 0.5
) -> Callable:
    """Return what makes denoisers of a network.

    Args:
      model: the network, `models.Model`.
      prediction: as `make_denoiser` takes it, or "levels".
      levels: grey levels of the data, which "levels" needs.
      sigma_data: standard deviation of the data.
    Returns:
      A function (params, schedule, *, threshold=None, **inputs) -> denoiser, where the inputs are
      the network's, such as label and dropout_key.
    """

    def make(params: Any, schedule: Schedule, *, threshold: Any = None, **inputs: Any) -> Callable:
        apply = Partial(model.apply, params, **inputs)
        if prediction == "levels":
            assert levels is not None  # a network of levels is made for their number
            logits = categorical.on_log_snr(apply, schedule)
            return categorical.make_categorical_denoiser(logits, schedule, levels)
        return make_denoiser(
            apply,
            schedule,
            prediction,
            threshold,
            sigma_data=sigma_data,
            learned_variance=model.module.learned_variance,
        )

    return make
