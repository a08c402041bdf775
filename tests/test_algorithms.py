"""Algorithms with named fields: one readable line, other options by name, one program for all values."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.kernels import KERNELS
from helpers import SCHEDULES
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import decoders, guidance, kernels, prediction
from jaxdiff.kernels._kernel import Algorithm, Drawing, lift


def network(scale: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    return scale * x


def denoiser(scale: Any = 0.5) -> Callable:
    return jd.make_denoiser(Partial(network, scale), jd.schedules.cosine(), "v", "static")


def made(name: str, scale: Any = 0.5, schedule: jd.Schedule | None = None) -> jd.Kernel:
    return KERNELS[name].make(denoiser(scale), schedule or jd.schedules.cosine())


def test_the_line_of_a_kernel() -> None:
    schedule = jd.schedules.cosine()
    kernel = kernels.ddim(denoiser(), schedule)
    assert repr(kernel) == "DDIM(eta=0.0, denoiser=v-prediction, schedule=cosine)"
    assert repr(kernel) == repr(kernel.step)
    ancestral = kernels.ancestral(lambda x, t: x, jd.schedules.edm(), 0.3)
    assert "variance=Between(fraction=0.3)" in repr(ancestral)
    assert repr(kernels.unipc(denoiser(), schedule)).startswith("UniPC(order=2, ")


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_one_readable_line(name: str) -> None:
    line = repr(made(name))
    assert line.startswith(type(made(name).step).__name__ + "(")
    assert line.count("\n") == 0
    assert len(line) < 250
    assert "denoiser=v-prediction, schedule=cosine" in line
    assert "0x" not in line
    assert "Partial" not in line


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_takes_other_options_by_name(name: str) -> None:
    """Both functions of the kernel change, and a wrong value is refused as in the factory."""
    edm, other = jd.schedules.edm(), denoiser(0.25)
    replaced = made(name).replace(schedule=edm, denoiser=other)
    step = dataclasses.replace(made(name).step, schedule=edm, denoiser=other)
    for found in (replaced, lift(step)):
        assert found.step.schedule is edm
        assert found.step.denoiser is other
    inner = jax.tree.leaves(replaced.init)
    # What a kernel with memory starts with is that of the same algorithm.
    assert not inner or any(leaf is other.apply.args[0] for leaf in inner)
    with pytest.raises(TypeError, match="denoiser: expected a function, got int"):
        made(name).replace(denoiser=3)


def test_replaced_options_are_checked() -> None:
    schedule = jd.schedules.cosine()
    with pytest.raises(ValueError, match="eta: expected a fraction in"):
        dataclasses.replace(kernels.ddim(denoiser(), schedule).step, eta=2.0)
    with pytest.raises(ValueError, match="variance: expected one of 'small', 'large'"):
        kernels.ancestral(denoiser(), schedule).replace(variance="tiny")
    with pytest.raises(ValueError, match="beta_max: expected a rate of at least"):
        dataclasses.replace(jd.schedules.linear(), beta_max=0.01)
    with pytest.raises(ValueError, match="threshold: expected one of 'static', 'dynamic'"):
        dataclasses.replace(denoiser(), threshold="none")


def test_a_replaced_kernel_is_the_one_made_with_the_option() -> None:
    schedule, x, ts = jd.schedules.cosine(), jnp.ones((2, 3)), jd.grids.uniform(3)
    one = jd.sample(jax.random.key(0), kernels.ddim(denoiser(), schedule, 0.7), x, ts)
    two = jd.sample(jax.random.key(0), kernels.ddim(denoiser(), schedule).replace(eta=0.7), x, ts)
    np.testing.assert_array_equal(one.x, two.x)


def program(tree: Any) -> tuple:
    """What decides whether a compiled program serves a pytree."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(jax.typeof(jnp.asarray(leaf)) for leaf in leaves)


@pytest.mark.parametrize("name", KERNELS)
def test_one_program_for_all_parameters_and_schedules(name: str) -> None:
    """Parameters, etas and the schedule's own numbers are leaves, and nothing else changes."""
    values = (jnp.asarray(0.1), jnp.asarray(0.9))
    assert len({program(made(name, v)) for v in values}) == 1
    linear = [jd.schedules.linear(v, 15 + v) for v in values]
    assert len({program(made(name, 0.5, schedule)) for schedule in linear}) == 1


@pytest.mark.parametrize(
    ("option", "make"),
    {
        "eta": kernels.ddim,
        "variance": kernels.ancestral,
        "churn": kernels.heun,
        "tau": kernels.dpmpp_2m,
        "tolerance": kernels.adaptive,
    }.items(),
)
def test_one_program_for_all_options(option: str, make: Callable) -> None:
    schedule = jd.schedules.cosine()
    made = [make(denoiser(), schedule, v) for v in (0.1, 0.9)]
    assert program(made[0]) == program(made[1])
    assert option in [field.name for field in dataclasses.fields(made[0].step)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_line_of_a_schedule(name: str) -> None:
    schedule = SCHEDULES[name]()
    assert repr(schedule).startswith(schedule.name + "(")
    assert len(repr(schedule)) < 80


def test_the_lines_of_schedules_show_their_options() -> None:
    assert repr(jd.schedules.linear()) == "linear(beta_min=0.1, beta_max=20.0)"
    assert repr(jd.schedules.cosine()) == "cosine(log_snr_min=-15.0, log_snr_max=inf)"
    assert repr(jd.schedules.rectified_flow()) == "rectified_flow()"
    table = jd.schedules.from_betas(jd.schedules.linear_betas(1000))
    assert repr(table) == "from_betas(<1000 betas>)"
    traced: list[str] = []
    jax.jit(lambda s: traced.append(repr(s)))(jd.schedules.linear())
    assert traced == ["linear(beta_min=float32[], beta_max=float32[])"]


def test_the_lines_of_what_kernels_are_made_of() -> None:
    schedule = jd.schedules.cosine()
    assert repr(denoiser()) == (
        "NetworkDenoiser(prediction='v', sigma_data=0.5, learned_variance=False, apply=network, "
        "schedule=cosine, threshold=Clip(limit=1.0))"
    )
    assert repr(prediction.clip()) == "Clip(limit=1.0)"
    assert repr(decoders.categorical(17)) == "CategoricalDecoder(num_levels=17, low=-1.0, high=1.0)"
    guided = guidance.classifier_free(denoiser(), denoiser(), 2.0)
    line = repr(kernels.ddim(guided, schedule))
    assert line.startswith("DDIM(eta=0.0, denoiser=ClassifierFree(scale=2.0, ")
    chain = jd.Chain(denoiser(), schedule, jd.grids.uniform(4), variance="large")
    assert repr(chain) == (
        "Chain(ts=float32[5], decoder=NormalDecoder(), ends_clean=True, denoiser=v-prediction, "
        "schedule=cosine, variance=large)"
    )


def test_a_chain_with_another_grid_ends_where_that_ends() -> None:
    chain = jd.Chain(denoiser(), jd.schedules.cosine(), jd.grids.uniform(4))
    other = dataclasses.replace(chain, ts=jd.grids.uniform(4, end=0.1))
    assert chain.ends_clean
    assert not other.ends_clean


def test_a_variance_may_be_a_function() -> None:
    schedule, x_t = jd.schedules.cosine(), jnp.ones((2, 3))
    p = jd.p_mean_variance(
        denoiser(), schedule, x_t, 0.5, 0.25, variance=lambda denoised, step: 2 * step.small
    )
    small = jd.p_mean_variance(denoiser(), schedule, x_t, 0.5, 0.25)
    np.testing.assert_array_equal(p.variance, 2 * small.variance)
    with pytest.raises(ValueError, match=r"variance\(denoised, step\): expected the shape of x_t"):
        jd.p_mean_variance(denoiser(), schedule, x_t, 0.5, 0.25, variance=lambda d, s: s.gain)


class Halving(Drawing):
    """An algorithm without a field, as a user would write one."""

    def draw(self, key: Any, x_t: jax.Array, t: Any, s: Any) -> jax.Array:
        return x_t / 2


class Counting(Algorithm):
    """One with memory."""

    def init(self, x_init: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.zeros(len(x_init))

    def step(self, key: Any, carry: Any, x_t: jax.Array, t: Any, s: Any) -> tuple[Any, Any, Any]:
        return carry + 1, x_t, carry


def test_an_algorithm_of_ones_own_is_lifted() -> None:
    for cls in (Halving, Counting):
        jax.tree_util.register_dataclass(dataclasses.dataclass(cls), data_fields=[], meta_fields=[])
    x, ts = jnp.ones((2, 3)), jd.grids.uniform(3)
    halved = jd.sample(jax.random.key(0), lift(Halving()), x, ts)
    np.testing.assert_array_equal(halved.x, x / 8)
    np.testing.assert_array_equal(halved.log_weights, 0)
    counted = jd.sample(jax.random.key(0), lift(Counting()), x, ts)
    np.testing.assert_array_equal(counted.log_weights, 0 + 1 + 2)
