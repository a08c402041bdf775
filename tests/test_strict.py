"""No dtype changes by accident: the core under strict promotion, with NumPy's float64 for options."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.kernels import KERNELS, names
from contracts.posterior import POSTERIORS
from contracts.posterior import names as posterior_names
from helpers import SCHEDULES, asymmetric_mixture

import jaxdiff as jd
from jaxdiff import decoders, guidance, kernels, likelihood, losses, prediction, work

HALF = np.float64(0.5)
X = np.array([[0.5, -1.0], [1.0, 0.0]], np.float32)


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["float32", "float32 where float64 exists"],
    autouse=True,
)
def strict(request: pytest.FixtureRequest) -> Any:
    with jax.enable_x64(request.param), jax.numpy_dtype_promotion("strict"):
        yield


def network(x: jax.Array, t: jax.Array) -> jax.Array:
    return x * (1 - t)[:, None]


def denoiser(schedule: jd.Schedule) -> Callable:
    return jd.make_denoiser(network, schedule, "v", "dynamic", sigma_data=HALF)


def dtypes(function: Callable) -> set:
    """Traced, not compiled: dtypes follow from shapes alone. Indices of rows are int32."""
    found = jax.eval_shape(function, jax.ShapeDtypeStruct(X.shape, X.dtype))
    return {leaf.dtype for leaf in jax.tree.leaves(found)} - {np.dtype(np.int32)}


def drawn(kernel: jd.Kernel) -> Callable:
    return lambda x: jd.sample(jax.random.key(0), kernel, x, jd.grids.uniform(3))


@pytest.mark.parametrize("name", names())
def test_kernels(name: str) -> None:
    if name == "adaptive" and jax.config.jax_enable_x64:
        pytest.skip("diffrax itself mixes float32 and float64")
    schedule = jd.schedules.cosine(log_snr_max=np.float64(20.0))
    assert dtypes(drawn(KERNELS[name].make(denoiser(schedule), schedule))) == {X.dtype}


@pytest.mark.parametrize("name", posterior_names())
def test_posteriors(name: str) -> None:
    schedule = jd.schedules.linear(np.float64(0.1), np.array(20.0))
    kernel = POSTERIORS[name](denoiser(schedule), schedule, jnp.float32)
    assert dtypes(drawn(kernel)) == {X.dtype}


def test_replica_exchange() -> None:
    schedule = jd.schedules.cosine()
    kernel = POSTERIORS["twisted"](denoiser(schedule), schedule, jnp.float32)

    def run(x: jax.Array) -> list:
        found = jd.posterior.replica_exchange(jax.random.key(0), kernel, x, jd.grids.uniform(3))
        return list(found._replace(start=x))  # an index

    assert dtypes(run) == {X.dtype}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_and_predictions(name: str) -> None:
    schedule, t = SCHEDULES[name](), jnp.full(2, 0.5, jnp.float32)

    def all_of_it(x: jax.Array) -> list:
        x_t = jd.q_sample(schedule, x, t, x)
        kinds = prediction.PREDICTIONS
        return [
            x_t,
            jd.q_step(schedule, x, 0.2, HALF, x),
            jd.q_posterior(schedule, x_t, x, HALF, 0.2),
            [prediction.target(schedule, x, x, t, prediction=k, sigma_data=HALF) for k in kinds],
            [prediction.from_x_0(schedule, x, x_t, t, prediction=k) for k in kinds],
            [losses.simple(jax.random.key(0), network, schedule, x, prediction=k) for k in kinds],
        ]

    assert dtypes(all_of_it) == {X.dtype}


@pytest.mark.parametrize(
    "make",
    [
        lambda d, s: kernels.ddim(d, s, HALF),
        lambda d, s: kernels.ancestral(d, s, HALF),
        lambda d, s: kernels.heun(d, s, HALF, churn_noise=HALF),
        lambda d, s: kernels.dpmpp_2m(d, s, np.array(0.5)),
        lambda d, s: kernels.corrected(kernels.ddim(d, s), d, s, HALF),
        lambda d, s: kernels.ddim(
            guidance.classifier_free(d, d, HALF, interval=(HALF, 1), rescale=HALF), s
        ),
        lambda d, s: kernels.ddim(
            guidance.classifier(d, s, lambda x, t: jnp.sum(x, axis=1), HALF), s
        ),
    ],
)
def test_options_of_numpy_are_python_s(make: Callable) -> None:
    schedule = jd.schedules.edm(np.float64(0.01), np.array(50.0))
    assert dtypes(drawn(make(denoiser(schedule), schedule))) == {X.dtype}


@pytest.mark.parametrize("variance", ["small", "large", HALF])
@pytest.mark.parametrize("decoder", ["normal", "discretised_normal", "categorical"])
def test_chains(variance: Any, decoder: str) -> None:
    schedule, key = jd.schedules.cosine(), jax.random.key(0)
    made = decoders.normal() if decoder == "normal" else getattr(decoders, decoder)(5)
    ts = jnp.asarray(jd.grids.uniform(3), jnp.float32)
    chain = jd.Chain(denoiser(schedule), schedule, ts, variance=variance, decoder=made)

    def all_of_it(x: jax.Array) -> list:
        return [
            likelihood.elbo(key, chain, x),
            likelihood.vlb_terms(key, chain, x),
            losses.vlb(key, chain, x),
            work.bidirectional_bounds(key, chain, X.shape, num_paths=2),
        ]

    assert dtypes(all_of_it) == {X.dtype}


def test_an_oracle_takes_states_of_another_dtype() -> None:
    schedule, mixture = jd.schedules.cosine(), asymmetric_mixture()
    assert dtypes(lambda x: mixture.denoiser(schedule)(x, HALF)) == {X.dtype}
