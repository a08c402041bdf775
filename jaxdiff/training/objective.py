"""What a run minimises, and the optimiser that does it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import _checks, _rows, losses, schedules
from jaxdiff.decoders import Decoder
from jaxdiff.schedules import Schedule
from jaxdiff.training.state import Rows

TIME_SAMPLINGS = ("uniform", "low_discrepancy", "loss_aware")


def denoising_loss(
    apply: Callable,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    weight: Callable | None = None,
    num_classes: int | None = None,
    label_drop: float = 0.1,
    sigma_data: float = 0.5,
    time_sampling: str = "low_discrepancy",
    dropout: bool = True,
) -> Callable[[Any, Rows, tuple[jax.Array, jax.Array | None]], jax.Array]:
    """Return the denoising loss of a (class-conditional) network.

    Args:
      apply: (params, x, t, label=None, *, dropout_key=None) -> prediction.
      schedule: the noise schedule.
      prediction: what the network predicts.
      weight: as in `losses.simple`.
      num_classes: None for an unconditional network; else also the index of the null class.
      label_drop: probability that a row's label becomes the null class, for classifier-free
        guidance.
      sigma_data: standard deviation of the data; only "edm" uses it.
      time_sampling: "uniform" or "low_discrepancy".
      dropout: whether the network is given keys for its dropout; False to evaluate.
    Returns:
      loss(params, rows, (x_0 [b, *D], label [b] or None)) -> [b].
    Raises:
      ValueError: label_drop outside [0, 1], sigma_data not positive, or unknown time_sampling.
    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 1; label drop: Ho & Salimans 2022,
    arXiv:2207.12598.
    """
    _checks.values(
        "label_drop", label_drop, "a probability in [0, 1]", lambda p: (p >= 0) & (p <= 1)
    )
    _checks.values("sigma_data", sigma_data, "a positive standard deviation", lambda s: s > 0)
    _checks.choice("time_sampling", time_sampling, TIME_SAMPLINGS[:2])

    def loss(params: Any, rows: Rows, batch: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        x_0, label = batch
        key_drop, key_dropout, key_loss = _row_keys(rows)
        label = _with_null(key_drop, label, num_classes, label_drop)

        def network(x: jax.Array, t: jax.Array) -> jax.Array:
            return apply(params, x, t, label, dropout_key=key_dropout if dropout else None)

        return losses.simple(
            key_loss, network, schedule, x_0, t=times_of(rows, time_sampling),
            prediction=prediction, weight=weight, sigma_data=sigma_data,
        )  # fmt: skip

    return loss


def _row_keys(rows: Rows, num: int = 3) -> jax.Array:
    """Independent keys of each row, [num, b]."""
    return _rows.split(rows.keys, num)


def _with_null(key: jax.Array, label: Any, num_classes: int | None, label_drop: Any) -> Any:
    """Labels, some of them replaced by the null class; none for an unconditional network."""
    if num_classes is None or label is None:
        return None
    dropped = jax.vmap(lambda k: jax.random.bernoulli(k, label_drop))(key)
    return jnp.where(dropped, num_classes, label)


def times_of(rows: Rows, time_sampling: str) -> jax.Array:
    """Return the times at which the losses here are computed, one for each row.

    Args:
      rows: the rows on this device.
      time_sampling: "uniform" or "low_discrepancy".
    Returns:
      t, [b].
    """
    # This key is not a row's, because the rows' numbers are below the total.
    key, size = jax.random.fold_in(rows.key, rows.total), len(rows.keys)
    if time_sampling == "uniform":
        return losses.uniform_times(_rows.keys(key, size, first=rows.first), size)
    return losses.low_discrepancy_times(key, size, first=rows.first, total=rows.total)


def chain_loss(
    objective: Callable,
    make_chain: Callable,
    *,
    time_sampling: str = "low_discrepancy",
    num_classes: int | None = None,
    label_drop: float = 0.1,
    dropout: bool = True,
) -> Callable:
    """Return the loss of a finite chain, at one step of the chain for each row.

        loss_aware: p(step) in proportion to the root mean square of its last losses

    Args:
      objective: (key, chain, x_0, *, index, probability) -> [b]: `losses.vlb`, or `losses.hybrid`
        with its options.
      make_chain: (params, label=None, dropout_key=None) -> Chain.
      time_sampling: of the steps, "uniform", "low_discrepancy" or "loss_aware".
      num_classes: None for an unconditional network; else also the index of the null class.
      label_drop: as in `denoising_loss`.
      dropout: whether the network is given keys for its dropout; False to evaluate.
    Returns:
      loss(params, rows, (x_0 [b, *D], label [b] or None)) -> [b]; for "loss_aware" it takes a
      `losses.TermHistory` besides and returns ([b], (index [b], cost [b])) for
      `losses.record_terms`, as `make_step` does it.
    Raises:
      ValueError: label_drop outside [0, 1], or unknown time_sampling.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Sections 3.1 and 3.3.
    """
    _checks.values(
        "label_drop", label_drop, "a probability in [0, 1]", lambda p: (p >= 0) & (p <= 1)
    )
    _checks.choice("time_sampling", time_sampling, TIME_SAMPLINGS)

    def loss(
        params: Any, rows: Rows, batch: tuple[jax.Array, jax.Array | None], history: Any = None
    ) -> Any:
        x_0, label = batch
        key_drop, key_dropout, key_loss, key_index = _row_keys(rows, 4)
        label = _with_null(key_drop, label, num_classes, label_drop)
        chain = make_chain(params, label=label, dropout_key=key_dropout if dropout else None)
        if time_sampling == "loss_aware":
            index, probability = losses.loss_aware_terms(key_index, history, len(x_0))
            value = objective(key_loss, chain, x_0, index=index, probability=probability)
            # The cost of a step, with its share of the terms that all steps have in common.
            return value, (index, value * probability)
        num_steps = len(chain.ts) - 1
        index = jnp.minimum(num_steps * times_of(rows, time_sampling), num_steps - 1).astype(int)
        return objective(key_loss, chain, x_0, index=index, probability=None)

    return loss


def likelihood_loss(
    make_denoiser: Callable,
    *,
    decoder: Decoder,
    time_sampling: str = "low_discrepancy",
    dropout: bool = True,
) -> Callable[[Any, Rows, tuple[jax.Array, jax.Array | None]], jax.Array]:
    """Return the loss of a learned schedule: the negative bound in bits per dimension.

    The variational bound is in continuous time. It trains the network and the end-points of the
    schedule. The bound's variance trains the schedule's interior.

    Args:
      make_denoiser: (network's params, schedule, dropout_key=None or [b]) -> denoiser.
      decoder: p(x_0 | x_{t=0}).
      time_sampling: "uniform" or "low_discrepancy".
      dropout: whether the network is given keys for its dropout; False to evaluate.
    Returns:
      loss(params, rows, (x_0 [b, *D], label, unused)) -> [b]; params are {"network": ...,
      "schedule": ...}, the latter as `schedules.learned_parameters` makes them.
    Raises:
      ValueError: unknown time_sampling.
    Source: Kingma et al. 2021, arXiv:2107.00630, Section 5.
    """
    _checks.choice("time_sampling", time_sampling, TIME_SAMPLINGS[:2])

    def loss(params: Any, rows: Rows, batch: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        x_0, _ = batch
        _, key_dropout, key_loss = _row_keys(rows)
        parameters, t = params["schedule"], times_of(rows, time_sampling)
        schedule = schedules.learned(
            parameters | {"logits": jax.lax.stop_gradient(parameters["logits"])}
        )
        denoiser = make_denoiser(
            params["network"], schedule, dropout_key=key_dropout if dropout else None
        )
        terms = losses.continuous_elbo(key_loss, denoiser, schedule, x_0, decoder=decoder, t=t)
        bits = x_0[0].size * math.log(2)
        variance = losses.schedule_variance_loss(
            parameters, schedule.log_snr(t), terms.diffusion / bits
        )
        return sum(terms) / bits + variance

    return loss


def learning_rates(
    learning_rate: float = 1e-3, *, num_steps: int, warmup: int = 100, final_scale: float = 0.0
) -> Callable[[Any], jax.Array]:
    """Return the learning rate of every step: a linear warm-up, then a cosine.

        r_n = r n / w,  n < w;    r (f + (1 - f) (1 + cos(pi (n - w) / (N - w))) / 2),  w <= n <= N

    Args:
      learning_rate: the peak r, after warm-up.
      num_steps: length N of the run, at which the decay ends.
      warmup: steps w of linear warm-up from 0; at most num_steps.
      final_scale: learning rate at the end, as a share f of the peak.
    Returns:
      A function of the number of updates done.
    Raises:
      ValueError: a rate or a count is out of range.
    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, Eq. (5), without restarts.
    """
    _checks.values("learning_rate", learning_rate, "a positive rate", lambda v: v > 0)
    _checks.positive_int("num_steps", num_steps)
    _checks.values("final_scale", final_scale, "a share of at least 0", lambda v: v >= 0)
    _checks.values(
        "warmup", warmup, f"0 to num_steps = {num_steps}", lambda v: (v >= 0) & (v <= num_steps)
    )
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else learning_rate,
        learning_rate,
        warmup,
        max(num_steps, warmup + 1),
        learning_rate * final_scale,
    )


def make_optimizer(
    learning_rate: float = 1e-3,
    *,
    num_steps: int,
    warmup: int = 100,
    final_scale: float = 0.0,
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """Return Adam(W) with clipping, linear warm-up and cosine decay.

    Args:
      learning_rate: the peak, after warm-up.
      num_steps: length of the run, at which the decay ends.
      warmup: steps of linear warm-up from 0; at most num_steps.
      final_scale: learning rate at the end, as a share of the peak.
      clip_norm: largest global norm of a gradient; None for no clipping.
      weight_decay: AdamW's decoupled decay; 0 is Adam.
      b1: decay of the first moment.
      b2: decay of the second moment.
    Returns:
      An optax transformation.
    Raises:
      ValueError: a rate or a count is out of range.
    Source: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    rates = learning_rates(
        learning_rate, num_steps=num_steps, warmup=warmup, final_scale=final_scale
    )
    _checks.values("b1, b2", np.array([b1, b2]), "decays in [0, 1)", lambda b: (b >= 0) & (b < 1))
    _checks.values("weight_decay", weight_decay, "a decay of at least 0", lambda v: v >= 0)
    if clip_norm is not None:
        _checks.values("clip_norm", clip_norm, "a positive norm or None", lambda v: v > 0)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adamw(rates, b1=b1, b2=b2, weight_decay=weight_decay))
