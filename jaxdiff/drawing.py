"""Samples of a denoiser in one call: the noise, the grid and the sampler from one place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _checks, grids, kernels
from jaxdiff.kernels import Kernel
from jaxdiff.sampling import Samples, prior_sample, sample
from jaxdiff.schedules import Schedule

NUM_STEPS = 20  # network calls; with UniPC-2 another one adds less than the network's own error


def draw(
    key: jax.Array,
    denoiser: Callable,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    kernel: Callable[[Callable, Schedule], Kernel] = kernels.unipc,
    ts: Any = None,
    first: Any = 0,
    save_every: int | None = None,
    progress: bool = False,
) -> Samples:
    """Draw samples of the distribution that a denoiser has learned.

        x_1 ~ N(0, sigma_1^2 I),   then kernel(denoiser, schedule) runs from ts[0] to ts[-1]

    The defaults are UniPC-2 on 20 uniform steps: good for images and for vectors, on every family.

    Args:
      key: typed PRNG key, consumed; sample i depends on (key, first + i) alone.
      denoiser: (x_t, t) -> E[x_0 | x_t].
      schedule: the noise schedule that the denoiser was made with.
      shape: [B, *D], the number of samples and the shape of one.
      kernel: (denoiser, schedule) -> Kernel, such as `kernels.ddim`; options go in by
        `functools.partial(kernels.ddim, eta=1.0)`.
      ts: decreasing times in [0, 1], [num_steps + 1], such as `grids.log_snr(schedule, 50)`; None
        for `grids.uniform(20)`.
      first: index of the first sample, so that chunks join up.
      save_every: None, or keep the state every so many steps, as `sample` does.
      progress: whether to show a progress bar, as `sample` does.
    Returns:
      Samples: x is [B, *D], in the default floating dtype.
    Raises:
      ValueError: shape has no batch axis, ts is no decreasing grid, the denoiser changes the shape,
        or first is out of range.
      TypeError: key is no typed key, denoiser or kernel is no function, kernel returns no Kernel,
        or schedule is no Schedule.
    Numerics: a grid that begins below t = 1 begins with noise of sigma at its first time. In jit,
      shape and kernel are static, and so is a denoiser that is no pytree.
    Source: Zhao et al. 2023, arXiv:2302.04867, for the default sampler.
    """
    _checks.one_key("key", key)
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "schedule: expected a Schedule such as schedules.cosine(), "
            f"got {type(schedule).__name__}"
        )
    if isinstance(kernel, Kernel) or not callable(kernel):
        got = f"{type(kernel).__name__} (jd.sample runs a Kernel)"
        if isinstance(kernel, str):
            got = f"{kernel!r} (the function itself, without quotes)"
        raise TypeError(
            "kernel: expected a function of a denoiser and a schedule such as kernels.unipc, "
            f"got {got}"
        )
    ts = grids.uniform(NUM_STEPS) if ts is None else ts
    _checks.grid("ts", ts)
    ts = jnp.asarray(ts)
    key_prior, key_run = jax.random.split(key)
    x_init = prior_sample(key_prior, schedule, shape, t=ts[0], first=first)
    made = kernel(denoiser, schedule)
    return sample(key_run, made, x_init, ts, first=first, save_every=save_every, progress=progress)
