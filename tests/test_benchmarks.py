"""The benchmarks' own mathematics against the oracles, and tiny runs of them, interrupted and gone on with."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import calibration
import calls
import jax
import jax.numpy as jnp
import numpy as np
import observed_mixture
import pytest
from helpers import rejects, slow

import jaxdiff as jd
from jaxdiff import training


def load(name: str) -> Any:
    """A benchmark by its path: a script of the experiments has the same name."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


posterior = load("posterior")
PROBLEM = observed_mixture.make_problem(0, 8, 2)
TINY = posterior.Options(
    dims=(4,), observed=(1,), methods=("mcgdiff", "dps"), seeds=2, rows=32, calls=12, slices=20
)  # fmt: skip


def oracle(problem: observed_mixture.Problem, dtype: type = float) -> jd.oracles.GaussianMixture:
    arrays = problem.log_weights, problem.means, np.ones(len(problem.means))
    return jd.oracles.GaussianMixture(*(jnp.asarray(array, dtype) for array in arrays))


def test_the_exact_answers_are_the_oracles(x64: None) -> None:
    covariance = PROBLEM.noise_std**2 * jnp.eye(2)
    seen = jnp.asarray(PROBLEM.A), jnp.asarray(PROBLEM.y), covariance
    # Rounding in float64.
    np.testing.assert_allclose(
        observed_mixture.log_evidence(PROBLEM), oracle(PROBLEM).log_evidence(*seen), rtol=1e-10
    )
    given, num = oracle(PROBLEM).posterior(*seen), 20_000
    shares = np.asarray(jax.nn.softmax(given.log_weights))
    mean = shares @ given.means
    second = np.einsum(
        "k,kij->ij", shares, given.covariances + given.means[:, :, None] * given.means[:, None, :]
    )

    def errors(x: np.ndarray) -> float:
        """The largest error of a first or second moment, in standard errors."""
        figures = np.concatenate([x, (x[:, :, None] * x[:, None, :]).reshape(num, -1)], axis=1)
        exact = np.concatenate([mean, second.ravel()])
        return float(np.max(np.abs(figures.mean(0) - exact) / (figures.std(0) / np.sqrt(num))))

    assert (
        errors(observed_mixture.exact_samples(1, PROBLEM, num)) < 5
    )  # Monte Carlo: standard errors
    mutant = PROBLEM._replace(noise_std=1.3 * PROBLEM.noise_std)
    assert errors(observed_mixture.exact_samples(1, mutant, num)) > 8


@pytest.mark.parametrize("d", [slow(8), 80])
def test_the_denoiser_is_the_oracles(d: int) -> None:
    problem = observed_mixture.make_problem(3, d, 1)
    random, schedule = (
        np.random.default_rng(0),
        jd.schedules.edm(posterior.SIGMA_MIN, problem.sigma_max),
    )
    for t in (0.0, 0.6, 1.0):
        with jax.enable_x64(True):
            x = problem.means + schedule.sigma(t) * random.normal(size=problem.means.shape)
            theirs = jax.jit(oracle(problem).denoiser(schedule))
            exact = np.asarray(theirs(jnp.asarray(x), t))
            ours = jax.jit(observed_mixture.make_denoiser(problem, schedule, float))(x, t)
        np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-9)  # rounding
        x32 = jnp.asarray(x, jnp.float32)
        single = (
            jax.jit(observed_mixture.make_denoiser(problem, schedule)),
            jax.jit(oracle(problem, np.float32).denoiser(schedule)),
        )
        # Rounding of float32: no worse than the oracle's own, or than 1e-5 of the data's width.
        errors = [float(np.max(np.abs(np.asarray(one(x32, t)) - exact))) for one in single]
        assert errors[0] < max(
            3 * errors[1], 1e-5 * float(np.abs(problem.means).max() * np.sqrt(d))
        ), (t, errors)


def test_the_problem_is_the_papers() -> None:
    gain = np.linalg.svd(PROBLEM.A, compute_uv=False)
    assert np.all((gain > 0) & (gain < 1))
    assert 0 < PROBLEM.noise_std < gain[0]
    assert PROBLEM.means.shape == (25, 8)
    assert set(np.unique(PROBLEM.means)) == {-16.0, -8.0, 0.0, 8.0, 16.0}
    np.testing.assert_allclose(np.exp(PROBLEM.log_weights).sum(), 1)  # rounding
    mean, spread = PROBLEM.moments
    law = oracle(PROBLEM, np.float32)
    x = np.asarray(law.sample(jax.random.key(0), (40_000,)))
    covariance = np.eye(8) + spread.T @ spread
    # Monte Carlo: 5 standard errors of a mean, and of a variance (the fourth moment is below that of a normal).
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / len(x)))
    np.testing.assert_allclose(
        np.diag(np.cov(x.T)), np.diag(covariance), rtol=5 * np.sqrt(2 / len(x))
    )
    np.testing.assert_allclose(PROBLEM.std**2, np.diag(covariance).mean())  # rounding


def test_the_distance_is_the_librarys() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 6)), 2 + random.normal(size=(50, 6))
    ours = posterior.Slices(y, 30)(x)
    # Rounding of float32.
    np.testing.assert_allclose(
        ours, jd.metrics.sliced_wasserstein(x, y, num_slices=30).value, rtol=1e-5
    )


QUICK = ("twisted", "twisted_mmps", "tmpd", "split_gibbs")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else slow(name) for name in posterior.METHODS],
)
def test_every_method_spends_the_same_calls(name: str) -> None:
    spent = [0]
    problem = observed_mixture.make_problem(0, 4, 2)
    schedule = jd.schedules.edm(posterior.SIGMA_MIN, problem.sigma_max)
    denoiser = observed_mixture.make_denoiser(problem, schedule)

    @jax.custom_vjp
    def counted(x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(_count, ordered=True)
        return denoiser(x, t)

    def _count() -> None:
        spent[0] += 1

    def forward(x: jax.Array, t: jax.Array) -> tuple:
        return counted(x, t), (x, t)

    def backward(saved: tuple, u: jax.Array) -> tuple:
        x, t = saved
        jax.debug.callback(_count, ordered=True)
        return jax.vjp(lambda x: denoiser(x, t), x)[1](u)[0], jnp.zeros_like(t)

    counted.defvjp(forward, backward)
    method = posterior.METHODS[name]
    setting, seen = posterior.setting_of(name, problem, schedule), posterior._observation(problem)
    kernel = method.make(setting, lambda x, t: counted(x, jnp.asarray(t)), seen)
    x = jnp.zeros((3, 4))
    carry = jax.jit(kernel.init)(x, 0.9)
    jax.effects_barrier()
    spent[0] = 0  # what a run begins with does not count
    jax.block_until_ready(jax.jit(kernel.step)(jax.random.key(0), carry, x, 0.9, 0.8))
    jax.effects_barrier()
    assert spent[0] == method.calls(setting)


@pytest.mark.slow
def test_an_interrupted_benchmark_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = dataclasses.replace(TINY, output=tmp_path)
    first = posterior.main(dataclasses.replace(options, seeds=1, methods=("mcgdiff",)))
    assert len(list((tmp_path / "parts").iterdir())) == 2
    (path,) = (tmp_path / "parts").glob("4-1-0-mcgdiff-*.json")
    assert len(first) == 2
    training.write_json(path, json.loads(path.read_text()) | {"sliced_wasserstein": 123.0})
    rows = posterior.main(options)
    by_name = {row["method"]: row for row in rows}
    assert set(by_name) == {"exact", "mcgdiff", "dps"}
    assert by_name["mcgdiff"]["sliced_wasserstein"]["num"] == 2
    assert by_name["mcgdiff"]["sliced_wasserstein"]["mean"] > 60  # the marked part was kept
    assert by_name["mcgdiff"]["steps"] == 12
    assert by_name["dps"]["steps"] == 6
    assert (tmp_path / "posterior.png").stat().st_size > 5000
    assert (tmp_path / "posterior.json").exists()
    assert "| mcgdiff |" in capsys.readouterr().out
    other = dataclasses.replace(options, calls=20, seeds=1, methods=("mcgdiff",))
    assert posterior.main(other)[-1]["sliced_wasserstein"]["mean"] < 60  # a part of its own
    assert json.loads(path.read_text())["sliced_wasserstein"] == 123


def test_divergence_is_counted_and_not_averaged() -> None:
    found = posterior.summary([1.0, None, 3.0])
    assert found["mean"] == 2
    assert found["diverged"] == 1
    assert found["num"] == 2
    assert posterior.summary([None]) == {"num": 0, "diverged": 1}


@pytest.mark.slow
def test_calibration_tells_right_from_wrong(tmp_path: Path) -> None:
    options = calibration.Options(
        dims=(2,), methods=("exact", "repaint"), problems=200, rows=8, steps=5, particles=(4,), repeats=2,
        curves=("tilted",),
        output=tmp_path,
    )  # fmt: skip
    found = calibration.main(options)
    exact, repaint = found["ranks"]
    assert min(exact["p"]) > 1e-3
    assert min(repaint["p"]) < 1e-20
    assert sum(exact["seen"]) == 200
    for name in ("calibration.png", "tilted.png"):
        assert (tmp_path / name).stat().st_size > 5000
    (part,) = (tmp_path / "parts").glob("ranks-2-exact-*.json")
    before = part.stat().st_mtime_ns
    assert json.loads(json.dumps(calibration.main(options))) == json.loads(json.dumps(found))
    assert part.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "match"),
    [({"dims": (7,)}, "even"), ({"dims": (2,), "observed": (4,)}, "no more entries")],
)
def test_bad_options(options: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        posterior.main(dataclasses.replace(TINY, output=tmp_path, **options))


# Error against calls --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_solvers_come_near_the_exact_end_of_the_ode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that are not installed are left out and named."""
    monkeypatch.setitem(sys.modules, "torch", None)
    options = calls.Options(laws=("mixture",), calls=(8, 32), samples=16, output=tmp_path)
    few, many = calls.main(options)["rows"]
    assert set(few) == {"law", "calls", "jaxdiff"}
    assert min(many["jaxdiff"].values()) < 0.25 * min(few["jaxdiff"].values())
    assert min(many["jaxdiff"].values()) < 0.01
    assert max(many["jaxdiff"].values()) < 0.5
    assert (tmp_path / "calls.png").exists()
    assert json.loads((tmp_path / "calls.json").read_text())["rows"] == [few, many]


# Speed --------------------------------------------------------------------------------------------------------------

speed, growth, trees, references = map(load, ("speed", "growth", "trees", "references"))


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (speed.by_terms, speed.STEPS),
        (speed.density, 4 * speed.ODE_STEPS),
        # The start takes a call, and the last step none.
        (lambda *arguments: speed.posterior(spread(), *arguments), speed.STEPS),
    ],
    ids=["by_terms", "density", "posterior"],
)
def test_a_job_is_timed_beside_as_many_network_calls(job: Any, expected: int) -> None:
    called = []

    def net(x: jax.Array, t: Any) -> jax.Array:
        jax.debug.callback(lambda: called.append(1))
        return 0.5 * x

    compute = jax.jit(lambda key, x: job(net, key, x))
    jax.block_until_ready(compute(jax.random.key(0), jnp.full((2, 4, 4, 1), 0.3)))
    jax.effects_barrier()
    assert len(called) == expected


def spread() -> Any:
    """Measured on noise: any one has the same calls."""
    schedule = speed.pair.SCHEDULE
    data = jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
    denoiser = jd.make_denoiser(lambda x, t: 0.5 * x, schedule, "eps")
    return jd.posterior.spread_of(jax.random.key(1), denoiser, schedule, data)


def test_the_fitted_power_is_that_of_the_largest_sizes() -> None:
    sizes = np.array([1.0, 8.0, 16.0, 32.0])
    seconds = 0.1 * sizes**1.7
    seconds[0] = 5  # overhead
    assert growth.power(sizes, seconds) == pytest.approx(1.7)


test_bad_options_of_benchmarks = rejects({
    "runs": (lambda: references.main(references.Options(runs=1)), ValueError, "runs: expected at least 2, got 1"),
    "denoising": (lambda: references.main(references.Options(denoising=(0, 5))), ValueError, "denoising: expected at least 1, got 0"),
    "no tree": (lambda: trees.main(trees.Options((Path("/no/tree"), Path(".")))), ValueError, "trees: expected checkouts of jaxdiff, got /no/tree"),
    "rounds": (lambda: trees.main(trees.Options((Path("."), Path(".")), rounds=0)), ValueError, "rounds: expected at least 1, got 0"),
    "few": (lambda: growth.main(growth.Options(side=(8, 16))), ValueError, "side: expected at least 3 sizes in increasing order"),
    "order": (lambda: growth.main(growth.Options(batch=(8, 4, 16))), ValueError, "batch: expected at least 3 sizes in increasing order"),
})  # fmt: skip
