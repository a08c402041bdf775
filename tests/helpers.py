"""What several tests share: the schedules, the oracles, the statistics, and image sets prepared for TFDS."""

import io
import itertools
import logging
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff.data import tfds

SCHEDULES: dict[str, Callable[[], jd.Schedule]] = {
    "cosine": jd.schedules.cosine,
    "linear": jd.schedules.linear,
    "sigmoid": jd.schedules.sigmoid,
    "ddpm": lambda: jd.schedules.from_betas(jd.schedules.linear_betas(1000)),
    "ddpm_cosine": lambda: jd.schedules.from_betas(jd.schedules.cosine_betas(100)),
    "edm": jd.schedules.edm,
    "rectified_flow": jd.schedules.rectified_flow,
}
FAMILY = dict.fromkeys(SCHEDULES, "vp") | {"edm": "ve", "rectified_flow": "flow"}


def asymmetric_mixture() -> jd.oracles.GaussianMixture:
    """Three unequal, tilted components far from the origin's symmetries: sign errors have nowhere to hide."""
    return jd.oracles.GaussianMixture(
        jnp.log(jnp.array([0.5, 0.3, 0.2])),
        jnp.array([[-1.5, 0.4], [0.9, 1.6], [1.2, -1.1]]),
        jnp.array(
            [
                [[0.20, 0.08], [0.08, 0.10]],
                [[0.06, -0.03], [-0.03, 0.15]],
                [[0.12, 0.0], [0.0, 0.05]],
            ]
        ),
    )


def correlated_gaussian() -> jd.oracles.GaussianMixture:
    """One component with correlation 0.8 and a mean of its own."""
    return jd.oracles.GaussianMixture(
        jnp.zeros(1), jnp.array([[0.7, -0.4]]), jnp.array([[[1.0, 0.56], [0.56, 0.49]]])
    )


def spread_of_gaussian(data: jd.oracles.GaussianMixture) -> jd.posterior.Spread:
    """Cov[x_0 | x_t] of one component in closed form."""
    covariance = data.covariances[0]
    covariance = jnp.diag(covariance) if covariance.ndim == 1 else covariance
    variance, axes = jnp.linalg.eigh(covariance)
    scale = jnp.append(variance, jnp.min(variance))
    levels = jnp.array([-8.0, 8.0], scale.dtype)
    return jd.posterior.Spread(axes.T, scale, levels, jnp.ones((2, len(scale)), scale.dtype))


def z_scores(draws: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """How many standard errors the mean of independent draws [N, ...] lies from an exact mean [...]."""
    draws = np.asarray(draws, np.float64)
    error, spread = draws.mean(0) - np.asarray(mean), draws.std(0, ddof=1)
    varies = spread > 0  # a single component has responsibility 1, always
    return error[varies] / (spread[varies] / np.sqrt(len(draws)))


def moment_z_scores(x: np.ndarray, mixture: jd.oracles.GaussianMixture) -> np.ndarray:
    """z-scores of first moments, second moments and mode weights of draws [N, d], against exact values.

    A mode weight is the mean of the exact responsibilities, whose expectation is the component's weight: unlike a
    nearest-mode count it has no bias from overlap.
    """
    weights, means, covariances = (
        np.asarray(value, np.float64)
        for value in (jnp.exp(mixture.log_weights), mixture.means, mixture.covariances)
    )
    weights = weights / weights.sum()
    first = weights @ means
    second = np.einsum("k,kij->ij", weights, covariances + means[:, :, None] * means[:, None, :])
    x = np.asarray(x, np.float64)
    values = [
        x,
        (x[:, :, None] * x[:, None, :]).reshape(len(x), -1),
        np.asarray(responsibilities(mixture, x)),
    ]
    exact = np.concatenate([first, second.ravel(), weights])
    return z_scores(np.concatenate(values, axis=1), exact)


def responsibilities(mixture: jd.oracles.GaussianMixture, x: np.ndarray) -> np.ndarray:
    """p(k | x), [N, K], written with NumPy's own solver rather than the oracle's eigenvectors."""
    means, covariances = (
        np.asarray(mixture.means, np.float64),
        np.asarray(mixture.covariances, np.float64),
    )
    centred = np.asarray(x, np.float64)[:, None, :] - means
    quadratic = np.einsum("nki,kij,nkj->nk", centred, np.linalg.inv(covariances), centred)
    logits = np.asarray(mixture.log_weights) - 0.5 * (quadratic + np.linalg.slogdet(covariances)[1])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def mixture_samples(
    make_kernel: Callable,
    schedule: jd.Schedule,
    mixture: jd.oracles.GaussianMixture,
    ts: jax.Array,
    num: int,
) -> np.ndarray:
    """Samples through the whole reverse process with the exact denoiser."""
    key_prior, key_run = jax.random.split(jax.random.key(7))
    x_init = jd.prior_sample(key_prior, schedule, (num, mixture.means.shape[1]))
    kernel = make_kernel(mixture.denoiser(schedule), schedule)
    return np.asarray(jd.sample(key_run, kernel, x_init, ts).x)


def slow(*values: object) -> object:
    """A case of `parametrize` that `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


# One schedule of each kind: continuous, a table, variance exploding, a flow.
KINDS = ("cosine", "ddpm", "edm", "rectified_flow")


def every_schedule() -> pytest.MarkDecorator:
    """A test of all schedules, of which one of each kind is quick."""
    return pytest.mark.parametrize("name", [n if n in KINDS else slow(n) for n in SCHEDULES])


def crossed(*axes: Iterable, quick: Callable[..., bool]) -> list:
    """Every combination of several parameters' values: all but the quick ones are slow."""
    return [values if quick(*values) else slow(*values) for values in itertools.product(*axes)]


def rejects(cases: dict[str, tuple[Callable, type[Exception], str]]) -> Callable:
    """A test that every call of a table raises its error, with a message that matches."""

    @pytest.mark.parametrize("case", cases)
    def test(case: str) -> None:
        call, error, message = cases[case]
        with pytest.raises(error, match=message):
            call()

    return test


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "png")
    return file.getvalue()


def build(root: Path, name: str, features: dict, splits: dict[str, list[dict]]) -> Path:
    """Prepare a set that TFDS does not know, through a TFDS builder of its own."""
    import tensorflow_datasets

    class Small(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        pkg_dir_path = root  # metadata would be looked for beside the source file

        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=tensorflow_datasets.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Small.name = name
    with tfds.quiet():
        builder = Small(data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_path)


class ProgramsOnSeveralDevices(logging.Filter):
    """Lists the programs on several devices that are no mapped functions: operations on an array that lies on them.

    JAX logs every program that it compiles. A mapped function is called `_fun` there, a mapped
    step `mapped`; an operation has its own name.
    """

    def __enter__(self) -> list[str]:
        self.found: list[str] = []
        self.logger = logging.getLogger("jax._src.interpreters.pxla")
        self.level = self.logger.level
        self.logger.setLevel(logging.DEBUG)
        self.logger.filters.insert(0, self)  # the innermost sees a record first, and alone
        return self.found

    def __exit__(self, *_: object) -> None:
        self.logger.removeFilter(self)
        self.logger.setLevel(self.level)

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        program = re.match(r"Compiling jit\((\w+)\)", message)
        if (
            program
            and program[1] not in ("_fun", "mapped")
            and re.search(r"Mesh\('\w+': ([2-9]|\d\d)", message)
        ):
            outside = re.compile(r"/(jax|logging)/|/helpers\.py$")
            caller = [
                frame for frame in traceback.extract_stack() if not outside.search(frame.filename)
            ][-1]
            if (
                "/chex/" not in caller.filename
            ):  # its pmap variant takes the first device's part in this way
                self.found.append(f"{program[1]} in {caller.filename}:{caller.lineno}")
        return record.levelno >= logging.WARNING
