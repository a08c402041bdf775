"""The driver: keys, chunks, devices, trajectories, weights, resampling, compilation and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import asymmetric_mixture, rejects, slow, z_scores
from jax.tree_util import Partial
from scipy import stats

import jaxdiff as jd
from jaxdiff import _rows, sampling
from jaxdiff.resampling import effective_sample_size, systematic

SCHEDULE = jd.schedules.cosine()


def run(num: int = 8, *, first: int = 0, steps: int = 12, **options: object) -> jd.Samples:
    key_prior, key_run = jax.random.split(jax.random.key(0))
    kernel = jd.kernels.ddim(asymmetric_mixture().denoiser(SCHEDULE), SCHEDULE, 0.7)
    x_init = jd.prior_sample(key_prior, SCHEDULE, (num, 2), first=first)
    return jd.sample(key_run, kernel, x_init, jd.grids.uniform(steps), first=first, **options)


def test_unweighted_run() -> None:
    samples = run(8)
    assert samples.x.shape == (8, 2)
    assert samples.trajectory is None
    np.testing.assert_array_equal(samples.log_weights, np.zeros(8))
    np.testing.assert_allclose(samples.log_evidence, 0, atol=1e-6)
    np.testing.assert_allclose(samples.ess, np.full(12, 8.0), rtol=1e-5)


@pytest.mark.parametrize("chunks", [[8], [1] * 8, [3, 5], [2, 2, 4]])
def test_same_samples_whatever_the_split(chunks: list[int]) -> None:
    """Keys are equal to the bit; states differ by the order in which a matrix product sums, for another batch size."""
    whole, start, parts = run(8).x, 0, []
    for size in chunks:
        parts.append(run(size, first=start).x)
        start += size
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5)


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_same_samples_on_any_number_of_devices(num_devices: int) -> None:
    """The tolerance is the one of another batch size, as above."""
    key_prior, key_run = jax.random.split(jax.random.key(0))
    kernel = jd.kernels.ddim(asymmetric_mixture().denoiser(SCHEDULE), SCHEDULE, 0.7)
    each = 8 // num_devices

    def chunk(kernel: jd.Kernel, first: jax.Array) -> jax.Array:
        x_init = jd.prior_sample(key_prior, SCHEDULE, (each, 2), first=first)
        return jd.sample(key_run, kernel, x_init, jd.grids.uniform(12), first=first).x

    mapped = jax.pmap(chunk, in_axes=(None, 0), devices=jax.devices()[:num_devices])
    x = np.asarray(mapped(kernel, jnp.arange(num_devices) * each)).reshape(8, 2)
    np.testing.assert_allclose(x, run(8).x, atol=2e-5)


def test_different_keys_and_rows_differ() -> None:
    samples = run(64)
    assert len(np.unique(np.asarray(samples.x), axis=0)) == 64
    noise = _rows.normal(jax.random.key(0), jnp.zeros((4000, 2)))
    assert stats.kstest(np.ravel(noise), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 5 / np.sqrt(
        4000
    )  # neighbours are uncorrelated


@pytest.mark.parametrize(
    ("steps", "every"), [slow(12, 1), slow(12, 4), (12, 5), slow(12, 12), (12, 100), (1, 1)]
)
def test_trajectory(steps: int, every: int) -> None:
    full = run(4, steps=steps, save_every=1).trajectory
    assert full.shape == (steps + 1, 4, 2)
    some = run(4, steps=steps, save_every=every)
    index = [*range(0, steps, every), steps]
    np.testing.assert_array_equal(some.trajectory, full[np.array(index)])
    np.testing.assert_array_equal(some.trajectory[-1], some.x)


def test_a_progress_bar_shows_every_step_and_changes_nothing(
    capsys: pytest.CaptureFixture,
) -> None:
    shown = run(4, progress=True)
    bar = capsys.readouterr().err
    assert "12/12" in bar
    assert "step/s" in bar
    np.testing.assert_array_equal(shown.x, run(4).x)
    assert capsys.readouterr().err == ""
    drawn = jd.draw(jax.random.key(0), lambda x, t: x, SCHEDULE, (2, 3), progress=True)
    assert drawn.x.shape == (2, 3)
    assert "20/20" in capsys.readouterr().err
    with pytest.raises(ValueError, match="progress: expected False inside of jit"):
        jax.jit(lambda x: jd.sample(KEY, KERNEL, x, TS, progress=True).x)(X)
    # Without a bar the program has no call to the host.
    args = (KEY, KERNEL, X, TS)
    for report in (False, True):
        program = str(jax.make_jaxpr(lambda *a, r=report: sampling.run(*a, report=r).x)(*args))
        assert ("callback" in program) == report


def test_prior_has_the_schedules_scale() -> None:
    for schedule, scale in (
        (jd.schedules.cosine(), 1.0),
        (jd.schedules.edm(), 80.0),
        (jd.schedules.rectified_flow(), 1.0),
    ):
        x = np.asarray(jd.prior_sample(jax.random.key(0), schedule, (20_000, 1)))[:, 0] / scale
        assert abs(z_scores(x**2, np.array(1.0))).max() < 5
        assert stats.kstest(x, "norm").pvalue > 1e-3


@pytest.mark.slow
def test_state_is_float32_at_least() -> None:
    kernel = jd.kernels.ddim(asymmetric_mixture().denoiser(SCHEDULE), SCHEDULE)
    x = jd.sample(jax.random.key(0), kernel, jnp.zeros((2, 2), jnp.bfloat16), jd.grids.uniform(3)).x
    assert x.dtype == jnp.float32


# --- compilation and memory ----------------------------------------------------------------------------------------


def test_traced_values_compile_once() -> None:
    count = 0

    def apply(params: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        nonlocal count
        count += 1
        return params * x

    for value in (0.1, 0.2, 0.3):
        schedule = jd.schedules.linear(0.1, 10.0 + value)
        denoiser = jd.make_denoiser(Partial(apply, jnp.asarray(value)), schedule, "x0")
        guided = jd.guidance.classifier_free(denoiser, denoiser, 1 + value)
        ts = jd.grids.uniform(5) ** (1 + value)
        jd.sample(
            jax.random.key(int(10 * value)),
            jd.kernels.ddim(guided, schedule, value),
            jnp.ones((2, 3)),
            ts,
        )
    assert count == 2  # the guided denoiser calls the network twice, in the one trace


def compiled(steps: int, save_every: int | None) -> object:
    from jaxdiff import sampling

    kernel = jd.kernels.ddim(asymmetric_mixture().denoiser(SCHEDULE), SCHEDULE, 0.5)
    arguments = (jax.random.key(0), kernel, jnp.zeros((1000, 2)), jd.grids.uniform(steps))
    return sampling.run.lower(*arguments, save_every=save_every).compile().memory_analysis()


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    few, many = compiled(10, None), compiled(1000, None)
    # The grid and the effective sample sizes are all that grows: a few numbers a step, nothing of the batch's size.
    grown = (many.temp_size_in_bytes + many.output_size_in_bytes) - (
        few.temp_size_in_bytes + few.output_size_in_bytes
    )
    assert grown < 990 * 64
    saved = compiled(1000, 100)
    assert (
        saved.output_size_in_bytes - many.output_size_in_bytes
        <= 11 * 1000 * 2 * 4 + 10 * 1000 * 4 + 64
    )


# --- weights and resampling ----------------------------------------------------------------------------------------


def tempered(exponent: float) -> jd.Kernel:
    """x stays, and each step multiplies in a share of exp(-exponent x^2): the evidence is a Gaussian integral."""

    def step(key: jax.Array, carry: object, x_t: jax.Array, t: jax.Array, s: jax.Array) -> tuple:
        return carry, x_t, -exponent * (t - s) * x_t[:, 0] ** 2

    return jd.Kernel(Partial(lambda x, t: ()), Partial(step))


@pytest.mark.parametrize("resample", [None, 0.5, slow(0.9), slow(2.0)])
def test_evidence_of_a_gaussian_integral(resample: float | None) -> None:
    """E exp(-a x^2) for x ~ N(0, 1) is (1 + 2 a)^(-1/2), and the weighted second moment is 1 / (1 + 2 a)."""
    exponent, evidences, seconds = 1.5, [], []
    kernel = tempered(exponent)
    resampler = None if resample is None else systematic(resample)
    for seed in range(40):
        x = jax.random.normal(jax.random.key(seed), (2000, 1))
        samples = jd.sample(
            jax.random.key(seed + 100), kernel, x, jd.grids.uniform(8), resample=resampler
        )
        weights = jax.nn.softmax(samples.log_weights)
        evidences.append(np.exp(samples.log_evidence))
        seconds.append(weights @ samples.x[:, 0] ** 2)
    assert np.abs(z_scores(np.array(evidences), np.array((1 + 2 * exponent) ** -0.5))).max() < 5
    # A ratio of means: its bias, of order 1 / 2000, is far below the 40 runs' standard error of 1 / 280.
    assert np.abs(z_scores(np.array(seconds), np.array(1 / (1 + 2 * exponent)))).max() < 5


@pytest.mark.slow
def test_systematic_resampling() -> None:
    log_weights = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
    for seed in range(20):
        ancestors, resampled = systematic(2.0)(jax.random.key(seed), log_weights)
        assert resampled
        counts = np.bincount(ancestors, minlength=4)
        assert np.all(
            np.abs(counts - np.array([2, 1, 0.5, 0.5])) < 1
        )  # systematic: within one of the expectation
    ancestors, resampled = systematic(0.5)(jax.random.key(0), jnp.zeros(4))
    assert not resampled
    np.testing.assert_array_equal(ancestors, np.arange(4))


def test_resampling_takes_the_carry_along() -> None:
    def step(key: jax.Array, carry: jax.Array, x_t: jax.Array, t: jax.Array, s: jax.Array) -> tuple:
        return carry, x_t, 3 * x_t[:, 0]

    kernel = jd.Kernel(Partial(lambda x, t: x), Partial(step))
    last = Partial(lambda x, t: x)
    x = jax.random.normal(jax.random.key(0), (50, 1))

    def check(
        key: jax.Array, carry: jax.Array, x_t: jax.Array, t: jax.Array, s: jax.Array
    ) -> tuple:
        carry, x_s, _ = step(key, carry, x_t, t, s)
        return carry, x_s, jnp.where(jnp.all(carry == x_t), 3 * x_t[:, 0], jnp.nan)

    samples = jd.sample(
        jax.random.key(1),
        kernel._replace(init=last, step=Partial(check)),
        x,
        jd.grids.uniform(5),
        resample=systematic(1.0),
    )
    assert np.all(np.isfinite(samples.log_evidence))
    assert len(np.unique(samples.x)) < 50  # it did resample


def test_a_kernel_of_plain_functions_runs() -> None:
    kernel = jd.Kernel(
        lambda x, t: (), lambda key, carry, x, t, s: (carry, x / 2, jnp.zeros(len(x)))
    )
    np.testing.assert_array_equal(
        jd.sample(jax.random.key(0), kernel, jnp.ones((2, 1)), jd.grids.uniform(3)).x, 1 / 8
    )


def test_effective_sample_size() -> None:
    np.testing.assert_allclose(effective_sample_size(jnp.zeros(10)), 10, rtol=1e-6)
    np.testing.assert_allclose(
        effective_sample_size(jnp.array([0.0, -jnp.inf, -jnp.inf])), 1, rtol=1e-6
    )
    np.testing.assert_allclose(
        effective_sample_size(jnp.array([500.0, 500.0, -1e9])), 2, rtol=1e-4
    )  # rounding of 2 * 500 in float32


KEY, TS = jax.random.key(0), jd.grids.uniform(3)
KERNEL = jd.kernels.ddim(lambda x, t: x, SCHEDULE)
X = jnp.zeros((2, 3))


def test_slerp_keeps_the_norm_of_noise(x64: None) -> None:
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 1))
    weights = jnp.linspace(0, 1, 5)
    z = jd.sampling.slerp(x, y, weights)
    np.testing.assert_allclose(z[0], x[0], rtol=1e-12)
    np.testing.assert_allclose(z[4], y[4], rtol=1e-12)
    scaled = (
        y
        * (jnp.linalg.norm(x.reshape(5, -1), axis=1) / jnp.linalg.norm(y.reshape(5, -1), axis=1))[
            :, None, None, None
        ]
    )
    on_sphere = jd.sampling.slerp(x, scaled, 0.3)
    np.testing.assert_allclose(
        jnp.linalg.norm(on_sphere.reshape(5, -1), axis=1), jnp.linalg.norm(x.reshape(5, -1), axis=1)
    )
    np.testing.assert_allclose(jd.sampling.slerp(x, x, 0.3), x, rtol=1e-12)


BAD = {
    "T = 0": (lambda: jd.sample(jax.random.key(0), KERNEL, X, jnp.ones(1)), ValueError, r"ts: expected a vector of at least 2 times"),
    "rising grid": (lambda: jd.sample(jax.random.key(0), KERNEL, X, jnp.linspace(0, 1, 5)), ValueError, "ts: expected decreasing times"),
    "grid above 1": (lambda: jd.sample(jax.random.key(0), KERNEL, X, jnp.array([2.0, 1.0])), ValueError, r"ts: expected times in \[0, 1\]"),
    "grid of indices": (lambda: jd.sample(jax.random.key(0), KERNEL, X, jnp.arange(5)[::-1]), TypeError, "ts: expected a floating dtype"),
    "old key": (lambda: jd.sample(jax.random.PRNGKey(0), KERNEL, X, jd.grids.uniform(2)), TypeError, "key: expected a typed key"),
    "integer state": (lambda: jd.sample(jax.random.key(0), KERNEL, X.astype(int), jd.grids.uniform(2)), TypeError, "x_init: expected a floating"),
    "encode without a grid": (lambda: jd.sampling.encode(KERNEL, X, jnp.linspace(0, 1, 5)), ValueError, "ts: expected decreasing times"),
    "encode integers": (lambda: jd.sampling.encode(KERNEL, X.astype(int), jd.grids.uniform(2)), TypeError, "x_0: expected a floating"),
    "slerp": (lambda: jd.sampling.slerp(X, X[:1], 0.5), ValueError, "y: expected the shape of x"),
    "save_every": (
        lambda: jd.sample(jax.random.key(0), KERNEL, X, jd.grids.uniform(2), save_every=0), ValueError, "save_every: expected a positive int"),
    "many keys": (lambda: jd.sample(jax.random.split(jax.random.key(0)), KERNEL, X, jd.grids.uniform(2)), ValueError, r"key: expected one key, shape \(\), got \(2,\)"),
    "a denoiser for a kernel": (lambda: jd.sample(jax.random.key(0), lambda x, t: x, X, jd.grids.uniform(2)), TypeError, "kernel: expected a Kernel such as"),
    "no states": (lambda: jd.sample(jax.random.key(0), KERNEL, jnp.zeros(()), jd.grids.uniform(2)), ValueError, "x_init: expected a batch of states"),
    "a number for a shape": (lambda: jd.prior_sample(jax.random.key(0), SCHEDULE, 4), ValueError, r"shape: expected a tuple \[B, \*D\], got 4"),
    "no batch axis": (lambda: jd.prior_sample(jax.random.key(0), SCHEDULE, ()), ValueError, r"shape: expected a tuple \[B, \*D\], got \(\)"),
    "row keys of another batch": (
        lambda: _rows.normal(jax.random.split(jax.random.key(0), 3), X), ValueError, "key: expected one key or one a row"),
}  # fmt: skip


test_bad_input = rejects(BAD)
