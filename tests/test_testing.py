"""jaxdiff.testing: what a user writes well passes, and each mistake is rejected by the claim it breaks."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCHEDULES, asymmetric_mixture
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import models, testing

SHAPE = (3,)
SCHEDULE = jd.schedules.cosine()

# --- written as a user would ----------------------------------------------------------------------


def shrink(scale: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """A network by hand: elementwise, with a time for each row."""
    return (scale * x_t * (1 - jnp.broadcast_to(t, x_t.shape[:1])[:, None])).astype(x_t.dtype)


def denoiser(scale: float = 0.5) -> Partial:
    return Partial(shrink, jnp.float32(scale))


def normals(keys: jax.Array, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def my_step(
    denoiser: Callable, keys: jax.Array, carry: Any, x_t: jax.Array, t: jax.Array, s: jax.Array
) -> tuple:
    """Blend the state with E[x_0 | x_t], with some noise and a memory of the last answer."""
    x_0 = denoiser(x_t, t)
    x_s = x_t + (t - s) * ((x_0 + carry) / 2 - x_t) + jnp.sqrt(t - s) * s * normals(keys, x_t)
    return x_0, x_s, jnp.zeros(len(x_t), x_t.dtype)


def my_kernel(scale: float = 0.5, step: Callable = my_step, **fields: Any) -> jd.Kernel:
    kernel = jd.Kernel(Partial(lambda x, t: jnp.zeros_like(x)), Partial(step, denoiser(scale)))
    return kernel._replace(**fields)


START = my_kernel()  # one function init: two kernels differ in their numbers alone


def test_a_users_kernel_passes() -> None:
    other = my_kernel(0.7, init=START.init)
    testing.check_kernel(START, SHAPE, other=other, differentiable=False)
    x = jd.draw(jax.random.key(0), None, SCHEDULE, (4, 3), kernel=lambda *_: START).x
    assert x.shape == (4, 3)


def test_a_users_denoiser_passes() -> None:
    testing.check_denoiser(denoiser(), SHAPE, other=denoiser(0.7))
    testing.check_denoiser(lambda x, t: jnp.zeros_like(x), SHAPE)
    testing.check_denoiser(lambda x, t: jd.Denoised(x, jnp.ones_like(x)), SHAPE)


def network_init(key: jax.Array, event_shape: tuple[int, ...]) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(key, (event_shape[-1], event_shape[-1]), jnp.float32)}


def network_apply(params: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(x_t @ params["w"].astype(x_t.dtype)) * t[:, None]


def network(**functions: Any) -> Any:
    return SimpleNamespace(**({"init": network_init, "apply": network_apply} | functions))


def test_a_users_model_passes() -> None:
    testing.check_model(network(), SHAPE)


def test_the_models_that_ship_pass() -> None:
    testing.check_model(models.mlp(width=16, depth=1), SHAPE)


def test_a_users_schedule_passes() -> None:
    testing.check_schedule(SCHEDULE)
    testing.check_schedule(Cosine())
    testing.check_schedule(jd.schedules.linear(0.1, 20.0), other=jd.schedules.linear(0.2, 19.0))


def test_the_oracle_passes() -> None:
    testing.check_denoiser(asymmetric_mixture().denoiser(SCHEDULE), (2,))


# --- mistakes -------------------------------------------------------------------------------------


def altered(change: Callable) -> Callable:
    """my_step, with its result changed."""

    def step(
        denoiser: Callable, keys: jax.Array, carry: Any, x_t: jax.Array, t: jax.Array, s: jax.Array
    ) -> tuple:
        return change(my_step(denoiser, keys, carry, x_t, t, s), keys, x_t, t, s)

    return step


def moved(change: Callable) -> Callable:
    """my_step, with its x_s changed."""
    return altered(lambda out, *inputs: (out[0], change(out[1], *inputs), out[2]))


SEEN: list = []


def remembers(x: jax.Array, *_: Any) -> jax.Array:
    """A multistep history in a Python list."""
    if isinstance(x, jax.core.Tracer):
        return x
    SEEN.append(x)
    return x + SEEN[-2 if len(SEEN) > 1 else -1]


def where_trap(x: jax.Array, *_: Any) -> jax.Array:
    """Finite, with a gradient of inf * 0."""
    return jnp.where(x > 99, jnp.sqrt(x - 99), x)


WRONG_KERNELS: dict[str, tuple[Any, str]] = {
    "no kernel": (my_step, r"it is a Kernel\(init, step\)"),
    "a branch on values": (
        moved(lambda x, *_: x if x.sum() > 0 else -x),
        "init and step run for x_t of float32: TracerBool",
    ),
    "a channel is lost": (moved(lambda x, *_: x[:, :1]), "x_s has the shape and the dtype"),
    "a constant in float64": (
        moved(lambda x, *_: x * np.float64(0.5)),
        "the dtype of x_t for x_t of float32 where float64 exists",
    ),
    "float32 whatever comes": (
        moved(lambda x, *_: x.astype(jnp.float32)),
        "the dtype of x_t for x_t of float64",
    ),
    "one weight for all": (
        altered(lambda out, *_: (*out[:2], jnp.zeros(()))),
        r"log weights are \[B\]",
    ),
    "weights of half precision": (
        altered(lambda out, *_: (*out[:2], out[2].astype(jnp.bfloat16))),
        "float32 at least and no wider than x_t for x_t of float32: got bfloat16",
    ),
    "weights in float64": (
        altered(lambda out, *_: (*out[:2], out[2] + np.zeros(len(out[2])))),
        "no wider than x_t for x_t of float32 where float64 exists: got float64",
    ),
    "another memory": (
        altered(lambda out, *_: ((out[0], out[0]), *out[1:])),
        "step returns a memory with the structure",
    ),
    "a memory without rows": (
        my_kernel(init=Partial(lambda x, t: t), step=Partial(
            lambda denoiser, keys, carry, x, t, s: (s, x, jnp.zeros(len(x), x.dtype))
        )),
        "every leaf of the memory has a row",
    ),
    "memory in Python": (moved(remembers), "a step is a pure function"),
    "infinite weights": (
        altered(lambda out, *_: (*out[:2], out[2] - jnp.inf)),
        "states and log weights are finite",
    ),
    "batch-coupled mean": (moved(lambda x, *_: x - 1e-3 * x.mean(0, keepdims=True)), "rows never couple"),
    "weights normalised over the rows": (
        altered(lambda out, *_: (*out[:2], jax.nn.log_softmax(out[1].sum(1)))),
        "rows never couple",
    ),
    "one noise for the batch": (
        moved(lambda x, keys, *_: x + jax.random.normal(keys[0], x.shape, x.dtype)),
        "a row depends neither on the batch size nor on vmap",
    ),
    "a mean loss over the rows": (
        moved(lambda x, *_: x / len(x)),
        "a row depends neither on the batch size nor on vmap",
    ),
    "divided by s": (
        moved(lambda x, keys, x_t, t, s: x + 0 * t / s),
        r"steps from t = 1\.0 and to s = 0\.0 are finite",
    ),
    "a gradient of inf times 0": (moved(where_trap), r"the gradient of a step to s = 0\.0"),
    "noise whatever the step": (
        moved(lambda x, keys, *_: x + normals(keys, x)),
        "a step from t to t is the identity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_KERNELS)
def test_wrong_kernels_are_rejected(fault: str) -> None:
    wrong, said = WRONG_KERNELS[fault]
    kernel = my_kernel(step=wrong) if callable(wrong) and wrong is not my_step else wrong
    if isinstance(wrong, jd.Kernel):
        kernel = wrong
    differentiable = fault == "a gradient of inf times 0"
    with pytest.raises(AssertionError, match=f"kernel: .*{said}") as error:
        testing.check_kernel(kernel, SHAPE, differentiable=differentiable)
    assert "\n" not in str(error.value)


def test_numbers_in_closures_are_rejected() -> None:
    with pytest.raises(AssertionError, match=r"kernel: new numbers compile nothing: .* leaves"):
        testing.check_kernel(START, SHAPE, other=my_kernel(0.7), differentiable=False)
    with pytest.raises(AssertionError, match=r"denoiser: new numbers compile nothing: .* leaves"):
        testing.check_denoiser(lambda x, t: 0.5 * x, SHAPE, other=lambda x, t: 0.7 * x)


WRONG_DENOISERS: dict[str, tuple[Any, str]] = {
    "a number": (0.5, "it is a function: TypeError"),
    "one answer for all": (lambda x, t: x[:1], "has the shape of x_t"),
    "a time of one shape": (
        lambda x, t: x * t[:, None],
        r"a time \[\] is that time for every row",
    ),
    "a constant in float64": (lambda x, t: x * np.float64(0.5), "where float64 exists"),
    "normalised over the batch": (lambda x, t: x / jnp.std(x), "rows never couple"),
    "the mean time": (lambda x, t: x * jnp.mean(t), "rows never couple"),
    "a share of the batch": (lambda x, t: x / len(x), "a row depends neither on the batch size"),
    "another answer each time": (
        lambda x, t: x if isinstance(x, jax.core.Tracer) else x * len(SEEN) + (SEEN.append(x) or 0),
        "a pure function",
    ),
    "infinite at t = 1": (
        lambda x, t: x / (1 - jnp.broadcast_to(t, x.shape[:1]))[:, None],
        r"it is finite at t = 1\.0",
    ),
    "a gradient of inf times 0": (
        lambda x, t: where_trap(x),
        r"its gradient with respect to x_t is finite at t = 1\.0",
    ),
}


@pytest.mark.parametrize("fault", WRONG_DENOISERS)
def test_wrong_denoisers_are_rejected(fault: str) -> None:
    wrong, said = WRONG_DENOISERS[fault]
    with pytest.raises(AssertionError, match=f"denoiser: .*{said}") as error:
        testing.check_denoiser(wrong, SHAPE)
    assert "\n" not in str(error.value)


WRONG_MODELS: dict[str, tuple[dict, str]] = {
    "no apply": ({"apply": None}, r"it has init\(key, event_shape\) and apply"),
    "the key is not used": (
        {"init": lambda key, shape: network_init(jax.random.key(0), shape)},
        "a function of the key: expected other parameters",
    ),
    "parameters of the default dtype": (
        {"init": lambda key, shape: {"w": jax.random.normal(key, (3, 3))}},
        "parameters are floating arrays",
    ),
    "three times the channels": (
        {"apply": lambda params, x, t: jnp.tile(network_apply(params, x, t), (1, 3))},
        "has the shape of x_t",
    ),
    "batch normalisation": (
        {"apply": lambda params, x, t: network_apply(params, x - x.mean(0, keepdims=True), t)},
        "rows never couple",
    ),
}


@pytest.mark.parametrize("fault", WRONG_MODELS)
def test_wrong_models_are_rejected(fault: str) -> None:
    functions, said = WRONG_MODELS[fault]
    with pytest.raises(AssertionError, match=f"model: .*{said}"):
        testing.check_model(network(**functions), SHAPE)


@jax.tree_util.register_static
class Cosine(jd.Schedule):
    """The cosine schedule, as a user would write one."""

    def log_snr_at(self, t: jax.Array) -> jax.Array:
        return SCHEDULE.log_snr_at(t)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        return SCHEDULE.time_at(log_snr)


WRONG_SCHEDULES: dict[str, tuple[dict, str]] = {
    "t runs from the noise": (
        {"log_snr_at": lambda t: SCHEDULE.log_snr_at(1 - t)},
        "log_snr falls with t",
    ),
    "another inverse": ({"time_at": jax.nn.sigmoid}, "time is the inverse of log_snr"),
    "sigma^2 for sigma": (
        {
            "coefficients": lambda t, log_snr: (
                jnp.sqrt(jax.nn.sigmoid(log_snr)),
                jax.nn.sigmoid(-log_snr),
            )
        },
        r"log_snr is log\(alpha\^2 / sigma\^2\)",
    ),
    "a constant in float64": (
        {"log_snr_at": lambda t: SCHEDULE.log_snr_at(t) * np.float64(1.0)},
        "it takes any shape for t of float32 where float64 exists",
    ),
}


@pytest.mark.parametrize("fault", WRONG_SCHEDULES)
def test_wrong_schedules_are_rejected(fault: str) -> None:
    methods, said = WRONG_SCHEDULES[fault]
    named = {name: staticmethod(method) for name, method in methods.items()}
    faulty = jax.tree_util.register_static(type("Faulty", (Cosine,), named))
    with pytest.raises(AssertionError, match=f"schedule: .*{said}"):
        testing.check_schedule(faulty())


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedules_pass(name: str) -> None:
    testing.check_schedule(SCHEDULES[name]())


@pytest.mark.parametrize("shape", [3, [3], (0,), (2.0,)])
def test_bad_shapes(shape: Any) -> None:
    for check, subject in (
        (testing.check_kernel, START),
        (testing.check_denoiser, denoiser()),
        (testing.check_model, network()),
    ):
        with pytest.raises(ValueError, match="shape: expected the shape of one example"):
            check(subject, shape)


def test_chex_is_imported_where_a_check_runs() -> None:
    code = """
import sys
sys.modules["chex"] = None
from jaxdiff import testing
try:
    testing.check_denoiser(lambda x, t: x, (2,))
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert result.stdout == 'chex is not installed: pip install "jaxdiff[testing]"\n'
