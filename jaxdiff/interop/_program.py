"""A sampler as one file of StableHLO, for machines that have JAX and not jaxdiff."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import _extras, grids, kernels
from jaxdiff.drawing import NUM_STEPS, draw
from jaxdiff.zoo import Trained

MOST = 2**20
"""Samples that a program draws in one call, at most."""
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_sampler(
    trained: Trained,
    *,
    kernel: Callable = kernels.unipc,
    ts: Any = None,
    guidance: float = 1.0,
    threshold: Any = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """Return a sampler with its network as one program, whose batch size is free.

        program(seed, index [B], label [B]) -> x [B, *D]
        x_i = draw(key(seed), denoiser(label_i), schedule, kernel, ts), of index_i

    The bytes are what `jax.export` serialises: StableHLO with the parameters in it. They run where
    JAX alone is installed:

        from jax import export

        program = export.deserialize(bytearray(open("digits.stablehlo", "rb").read()))
        index = np.arange(16, dtype=np.uint32)
        x = program.call(np.uint32(0), index, (index % 10).astype(np.int32))

    Sample i depends on (seed, index_i, label_i) alone. It is the sample of that index that
    `jaxdiff.draw` draws from the key of the seed, up to rounding. A network without classes has no
    input `label`. The label num_classes stands for all classes together, if the network has it.

    Args:
      trained: the network.
      kernel: (denoiser, schedule) -> Kernel, as `jaxdiff.draw` takes it.
      ts: decreasing times, [num_steps + 1]; None for `grids.uniform(20)`.
      guidance: classifier-free guidance; 1 is the model.
      threshold: as `make_denoiser` takes it; the network's own if None.
      platforms: where the program is to run: "cpu", "cuda", "rocm", "tpu".
    Returns:
      The file's content. JAX promises to read it for six months after the version that wrote it.
    Raises:
      ValueError: platforms names another one or none, or an argument is refused as in `draw`.
      TypeError: trained is no Trained, or an argument is refused as in `draw`.
      ModuleNotFoundError: flatbuffers is not installed (extra `serve`).
    Numerics: at most 1,048,576 samples a call; memory grows with their number.
    """
    if not isinstance(trained, Trained):
        raise TypeError(f"trained: expected a Trained network, got {type(trained).__name__}")
    if not platforms or isinstance(platforms, str) or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms: expected some of {', '.join(PLATFORMS)}, got {platforms!r}")
    if trained.num_classes is None and guidance != 1:
        raise ValueError(f"guidance: expected 1, as the network has no classes, got {guidance}")
    _extras.needs("flatbuffers", extra="serve")
    from jax import export  # not an attribute of jax until it is imported

    times = grids.uniform(NUM_STEPS) if ts is None else ts

    def one(key: jax.Array, index: jax.Array, label: jax.Array | None) -> jax.Array:
        denoiser = trained.denoiser(label, guidance, threshold=threshold)
        shape = (1, *trained.event_shape)
        return draw(key, denoiser, trained.schedule, shape, kernel=kernel, ts=times, first=index).x[
            0
        ]

    def program(seed: jax.Array, index: jax.Array, *label: jax.Array) -> jax.Array:
        key = jax.random.key(seed, impl="threefry2x32")
        return jax.vmap(partial(one, key), in_axes=(0, 0 if label else None))(
            index, *label or [None]
        )

    (num,) = export.symbolic_shape("b", constraints=["b >= 1", f"b <= {MOST}"])
    inputs = [jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((num,), jnp.uint32)]
    if trained.num_classes is not None:
        inputs.append(jax.ShapeDtypeStruct((num,), jnp.int32))
    return bytes(export.export(jax.jit(program), platforms=platforms)(*inputs).serialize())
