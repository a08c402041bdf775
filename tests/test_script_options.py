"""The scripts' options and errors: what is refused before any work, and whose fault an error is."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rates
import reproduce_2015

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import compare, errors, evaluate, interpolate, posterior, sample, train
from jaxdiff.runs import build, checks, datasets, folders, loop, records, require
from jaxdiff.runs.config import PRESETS, Config, Network, as_json
from jaxdiff.runs.probability import Probability
from jaxdiff.runs.problems import Particles
from jaxdiff.runs.seeds import another, key_of

NAN, INF = math.nan, math.inf
RUN = Path("no/such/run")  # options are refused before it is looked for
DIGITS = PRESETS["digits"][1]


def exits(call: Callable[[], Any], capsys: pytest.CaptureFixture) -> str:
    """The one line that a call ends with."""
    with pytest.raises(SystemExit) as end, errors.one_line_errors():
        call()
    assert end.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# --- the configuration ---------------------------------------------------------------------------------------------

WRONG: dict[str, list] = {
    "seed": [-1, 2**32, 2**64],
    "steps": [0, -1],
    "batch_size": [0],
    "accumulate": [0],
    "at_once": [0, 3, 40],
    "most_skipped": [0],
    "log_every": [0],
    "eval_every": [0],
    "size": [0, -1],
    "label_drop": [-0.1, 1.1, 2, NAN],
    "network.channels": [0, -8, 12],
    "network.multipliers": [(), (0,), (1, -2)],
    "network.num_blocks": [0],
    "network.attention": [(0,)],
    "network.patch": [0],
    "network.fourier": [(400,), (-1,)],
    "network.dropout": [1.0, -0.1, NAN],
    "diffusion.sigma_data": [0.0, -1.0, NAN, INF],
    "diffusion.num_steps": [0],
    "optimizer.learning_rate": [0.0, -1.0, NAN, INF],
    "optimizer.warmup": [-1],
    "optimizer.final_scale": [-1.0, 2.0, NAN],
    "optimizer.clip_norm": [0.0, -1.0, NAN, INF],
    "optimizer.b1": [-0.1, 1.0, NAN],
    "optimizer.b2": [-0.1, 1.0, NAN],
    "optimizer.weight_decay": [-1.0, NAN, INF],
    "optimizer.ema_decay": [-0.1, 1.0, NAN],
}


def with_option(config: Any, name: str, value: Any) -> Any:
    section, _, rest = name.partition(".")
    return dataclasses.replace(
        config, **{section: with_option(getattr(config, section), rest, value) if rest else value}
    )


@pytest.mark.parametrize("name", WRONG)
def test_numbers_that_mean_nothing_are_refused(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"{name}.*: expected .*, got"):
            checks.check(with_option(DIGITS, name, value))


def test_every_number_has_a_range() -> None:
    """A new option is put into the table above, or is no number."""
    numeric = (int, float, tuple, type(None))
    names = {
        n
        for n, v in records.flat(DIGITS).items()
        if isinstance(v, numeric) and not isinstance(v, bool)
    }
    assert names - {"data_dir", "folder", "diffusion.objective"} == WRONG.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_the_edges_pass(preset: str) -> None:
    config = PRESETS[preset][1]
    checks.check(config)
    edges = {
        "seed": 2**32 - 1, "label_drop": 1.0, "network.dropout": 0.0, "optimizer.b1": 0.0, "optimizer.warmup": 0,
        "optimizer.clip_norm": None, "optimizer.final_scale": 1.0,
    }  # fmt: skip
    for name, value in edges.items():
        checks.check(with_option(config, name, value))


DAMAGED = {
    "empty": ("{}", "run: expected a value, got none"),
    "list": ("[]", "all of it: expected an object, got []"),
    "null": ("null", "all of it: expected an object, got null"),
    "number": ("3", "all of it: expected an object, got 3"),
    "cut short": ('{"run": "a", "steps"', "expected JSON, got"),
    "binary": (b"\x89PNG\xff\x00", "expected JSON, got"),
    "nothing": ("", "expected JSON, got"),
    "without end": ("[" * 100_000, "expected JSON, got"),
}
EDITED: dict[str, tuple[str, Any, str]] = {
    "no network": ("network", 3, "network: expected an object, got 3"),
    "list of networks": ("network", [], "network: expected an object, got []"),
    "text": ("steps", "10", 'steps: expected int, got "10"'),
    "part of a step": ("steps", 1.5, "steps: expected int, got 1.5"),
    "truth": ("steps", True, "steps: expected int, got true"),
    "yes": ("conditional", "yes", 'conditional: expected bool, got "yes"'),
    "null seed": ("seed", None, "seed: expected int, got null"),
    "path": ("data_dir", 3, "data_dir: expected a path, got 3"),
    "choice": ("diffusion.schedule", "cosinus", "diffusion.schedule: expected one of cosine, linear"),
    "choice of lists": ("diffusion.schedule", ["cosine"], "diffusion.schedule: expected one of cosine, linear"),
    "tuple": ("network.multipliers", 2, "network.multipliers: expected a list, got 2"),
    "inside a tuple": ("network.multipliers", [1, "2"], 'network.multipliers: expected int, got "2"'),
    "not finite": ("optimizer.b1", NAN, "optimizer.b1: expected a decay in [0, 1), got nan"),
    "unknown": ("network.depth", 3, "network.depth: expected one of channels, multipliers"),
    "too small": ("batch_size", 0, "batch_size: expected at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*DAMAGED, *EDITED])
def test_a_damaged_configuration_is_named(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content, message = DAMAGED.get(case, ("", ""))
    if case in EDITED:
        name, value, message = EDITED[case]
        fields = json.loads(as_json(DIGITS))
        *sections, last = name.split(".")
        (fields[sections[0]] if sections else fields)[last] = value
        content = json.dumps(fields)
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = exits(lambda: folders.load_config(tmp_path), capsys)
    assert line.startswith(f"error: {path}: ")
    assert message in line


def test_no_run_and_a_run_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "odd" / "config.json").mkdir(parents=True)
    for run in ("nothing", "", "file"):
        assert "is no run folder" in exits(
            lambda run=run: folders.load_config(tmp_path / run), capsys
        )
    assert "Is a directory" in exits(lambda: folders.load_config(tmp_path / "odd"), capsys)


def test_an_option_that_was_not_there_yet_has_its_default(tmp_path: Path) -> None:
    """A run of an earlier version, with fewer options."""
    fields = json.loads(as_json(dataclasses.replace(DIGITS, run=tmp_path)))
    del fields["accumulate"], fields["network"]["remat"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert folders.load_config(tmp_path) == dataclasses.replace(DIGITS, run=tmp_path)


def test_configurations_come_back(tmp_path: Path) -> None:
    for _, config in PRESETS.values():
        here = dataclasses.replace(config, run=tmp_path)
        folders.save(here)
        assert folders.load_config(tmp_path) == here
        whole = dataclasses.replace(
            here, label_drop=0, optimizer=dataclasses.replace(here.optimizer, clip_norm=2)
        )
        folders.save(whole)  # 0 for 0.0, as a person writes it
        assert folders.load_config(tmp_path) == whole


# --- between two starts of a run -----------------------------------------------------------------------------------

OTHERS: dict[str, Any] = {
    "run": Path("moved"), "dataset": "swiss_roll", "data_dir": Path("elsewhere"), "steps": 3000, "batch_size": 64,
    "seed": 1, "conditional": False, "label_drop": 0.2, "log_every": 7, "eval_every": 11,
    "folder": Path("elsewhere"), "size": 16, "fit": "stretch", "colour": "rgb", "flip": True, "accumulate": 2,
    "at_once": 10, "shard_state": True, "most_skipped": 3, "network.remat": True, "network.channels": 64,
    "network.multipliers": (1, 2, 2), "network.num_blocks": 2, "network.attention": (), "network.dropout": 0.1,
    "network.patch": 2, "network.time_embedding": "fourier", "network.fourier": (7,), "network.dtype": "bfloat16",
    "diffusion.schedule": "linear", "diffusion.prediction": "eps", "diffusion.weight": "snr",
    "diffusion.objective": "vlb", "diffusion.num_steps": 50, "diffusion.time_sampling": "uniform",
    "diffusion.sigma_data": 0.4, "optimizer.learning_rate": 1e-3, "optimizer.warmup": 50, "optimizer.final_scale": 0.1,
    "optimizer.clip_norm": None, "optimizer.b1": 0.8, "optimizer.b2": 0.95, "optimizer.weight_decay": 0.1,
    "optimizer.ema_decay": 0.99,
}  # fmt: skip
GOES_ON = {
    "run", "data_dir", "steps", "log_every", "eval_every", "label_drop", "network.dropout", "optimizer.learning_rate",
    "optimizer.warmup", "optimizer.final_scale", "optimizer.clip_norm", "optimizer.b1", "optimizer.b2",
    "optimizer.weight_decay", "optimizer.ema_decay", "accumulate", "at_once", "shard_state", "most_skipped", "network.remat",
    "folder", "flip",
}  # fmt: skip


def test_what_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    """Option by option; none is forgotten, and what may not change is refused with its reason."""
    begun = dataclasses.replace(DIGITS, run=tmp_path)
    assert OTHERS.keys() == records.flat(begun).keys()
    assert folders.check_same(begun) is None
    folders.save(begun)
    assert folders.check_same(begun) == begun
    assert folders.what_changes(begun, begun, 10) == ""
    for name, value in OTHERS.items():
        other = with_option(begun, name, value)
        if name == "run":
            continue  # it is found by that
        if name in GOES_ON:
            assert folders.check_same(other) == begun
            line = folders.what_changes(begun, other, 10)
            assert (f"goes on from step 10 with {name} {value} (was" in line) == (
                name != "data_dir"
            )
        else:
            reason = folders.BETWEEN_STARTS.get(name) or folders.BETWEEN_STARTS[name.split(".")[0]]
            with pytest.raises(
                ValueError, match=rf"was begun with another {name} \({reason[1]}\); repeat"
            ):
                folders.check_same(other)


def test_what_may_change_keeps_the_state_as_it_is() -> None:
    """The structure of the state is that of the run that was begun, for every option that may change."""
    dataset = datasets.of(DIGITS)

    def state(config: Config) -> Any:
        return build.abstract_state(config, build.make_model(config, dataset), dataset.event_shape)

    begun = state(DIGITS)
    for name in GOES_ON - {"run", "data_dir"}:
        other = state(with_option(DIGITS, name, OTHERS[name]))
        assert jax.tree.structure(other) == jax.tree.structure(begun), name
        assert other == begun, name


def test_the_learning_rate_of_a_run_that_goes_on_for_longer(tmp_path: Path) -> None:
    """It is a function of the step and of the steps: at the old end it rises to that of a run of the new length."""
    longer = dataclasses.replace(DIGITS, steps=3000)
    old, new = (build.learning_rates(config) for config in (DIGITS, longer))
    np.testing.assert_allclose(old(1500), 0.02 * 2e-3, rtol=1e-5)
    cosine = 2e-3 * (0.02 + 0.98 * (1 + math.cos(math.pi * (1500 - 100) / (3000 - 100))) / 2)
    np.testing.assert_allclose(new(1500), cosine, rtol=1e-5)
    np.testing.assert_allclose(new(3000), 0.02 * 2e-3, rtol=1e-5)
    line = folders.what_changes(DIGITS, longer, 1500)
    assert f"steps 3000 (was 1500); the learning rate here is {cosine:.3g} (was 4e-05)" in line
    assert "learning rate here" not in folders.what_changes(
        DIGITS, dataclasses.replace(DIGITS, log_every=1), 1500
    )


# --- networks ------------------------------------------------------------------------------------------------------


def test_options_of_an_mlp_are_used_or_refused() -> None:
    toy = PRESETS["toy"][1]
    dataset = datasets.of(toy)
    checks.check_network(toy, dataset)
    given = {"dropout": 0.25, "time_embedding": "fourier", "dtype": "bfloat16"}
    module = build.make_model(dataclasses.replace(toy, network=Network(**given)), dataset).module
    assert {name: getattr(module, name) for name in given} == given
    used = {"channels": 64, "num_blocks": 2, **given}
    for each in dataclasses.fields(Network):
        if each.name in used:
            checks.check_network(with_option(toy, f"network.{each.name}", used[each.name]), dataset)
            continue
        with pytest.raises(
            ValueError, match=rf"network.{each.name}: expected the default, .* because the MLP"
        ):
            checks.check_network(
                with_option(toy, f"network.{each.name}", (2,) if each.name != "patch" else 2),
                dataset,
            )


def test_attention_that_never_occurs_is_said(capsys: pytest.CaptureFixture) -> None:
    dataset = datasets.of(DIGITS)
    checks.check_network(DIGITS, dataset)
    assert capsys.readouterr().err == ""
    checks.check_network(with_option(DIGITS, "network.attention", (4, 7)), dataset)
    assert "no feature map has side 7 (they have 8, 4)" in capsys.readouterr().err
    checks.check_network(
        with_option(with_option(DIGITS, "network.attention", (2,)), "network.patch", 3), dataset
    )
    assert capsys.readouterr().err == ""  # ceil(8 / 3) = 3, ceil(3 / 2) = 2
    with pytest.raises(
        ValueError, match=r"network.patch: expected at most the images' side, 8, got 9"
    ):
        checks.check_network(with_option(DIGITS, "network.patch", 9), dataset)


# --- every script's options ----------------------------------------------------------------------------------------

SEEDED = [2**32, -1]
SCRIPTS: dict[str, tuple[Callable, Callable, dict[str, list]]] = {
    "sample": (
        sample.main, lambda **o: sample.Options(run=RUN, **o),
        {"seed": SEEDED, "num": [0, -1], "steps": [0], "batch_size": [0], "labels": [(-1,)], "guidance": [NAN, INF, -INF],
         "noise": [NAN, INF, -1.0]},
    ),
    "evaluate": (
        evaluate.main, lambda **o: evaluate.Options(run=RUN, **o),
        {"seed": SEEDED, "num_times": [0], "examples": [0, 1], "samples": [-1, 9], "steps": [0], "classifier_steps": [0, -1],
         "guidance": [NAN, INF], "batch_size": [0]},
    ),
    "probability": (
        evaluate.main, lambda **o: evaluate.Options(run=RUN, probability=Probability(**o)),
        {"examples": [-1, 1], "term_examples": [0, 1], "steps": [0], "times": [0, 1], "paths": [0], "path_examples": [-1, 1], "simulated_examples": [-1, 1],
         "ode_steps": [0], "ode_examples": [-1, 1], "ais_examples": [-1, 1], "ais_temperatures": [0],
         "ais_step_size": [0.0, NAN, INF]},
    ),
    "interpolate": (
        interpolate.main, lambda **o: interpolate.Options(run=RUN, **o),
        {"seed": SEEDED, "strips": [0], "columns": [1], "steps": [1]},
    ),
    "posterior": (
        posterior.main, lambda **o: posterior.Options(run=RUN, **o),
        {"seed": SEEDED, "images": [0], "batch_size": [0], "calibration": [-1, 9], "noise": [0.0, NAN, INF], "peak": [0.0, NAN, INF]},
    ),
    "particles": (
        posterior.main, lambda **o: posterior.Options(run=RUN, sampling=Particles(**o)),
        {"draws": [0], "rows": [1], "steps": [1], "at_once": [0], "start": [NAN, -INF], "threshold": [NAN, -0.5],
         "prior_std": [0.0, NAN, INF]},
    ),
    "compare": (
        compare.main, lambda **o: compare.Options(run=RUN, **o),
        {"seed": SEEDED, "num": [0, 1], "run_num": [1], "calls": [(), (2,)]},
    ),
    "parzen": (
        reproduce_2015.mnist, lambda **o: reproduce_2015.Mnist(run=RUN, **o),
        {"seed": SEEDED, "num": [1], "examples": [1], "steps": [0], "chain_steps": [0], "guidance": [NAN, INF]},
    ),
    "heartbeat": (
        reproduce_2015.heartbeat, lambda **o: reproduce_2015.Heartbeat(run=RUN, **o),
        {"seed": SEEDED, "steps": [0], "chain_steps": [1], "batch_size": [0], "examples": [1], "width": [0], "depth": [0],
         "learning_rate": [0.0, NAN, INF]},
    ),
    "swiss_roll": (
        reproduce_2015.swiss_roll, lambda **o: reproduce_2015.SwissRoll(run=RUN, **o), {"noise": [0.0, NAN, INF, -1.0]},
    ),
    "rates": (
        rates.main, lambda **o: rates.Options(run=RUN, **o),
        {"batch": [0], "rounds": [0], "steps": [(0,), (10, -1)], "guidance": [NAN, INF]},
    ),
    "train": (
        train.main, lambda **o: dataclasses.replace(DIGITS, run=RUN, **o), {"seed": SEEDED, "steps": [0], "label_drop": [NAN]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_options_are_checked_before_any_work(
    script: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run is looked for, which is not there; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    main, options, wrong = SCRIPTS[script]
    for name, values in wrong.items():
        for value in values:
            line = exits(lambda name=name, value=value: main(options(**{name: value})), capsys)
            assert f"{name}: expected" in line, (name, value, line)
    assert not list(tmp_path.iterdir())


def test_seeds_have_random_numbers_of_their_own() -> None:
    """The reason for the range: beyond 32 bits a seed draws what another one draws."""
    data = jax.random.key_data
    assert (data(jax.random.key(2**32)) == data(jax.random.key(0))).all()
    assert (data(jax.random.key(-1)) == data(jax.random.key(2**32 - 1))).all()
    for seed in (2**32, -1):
        with pytest.raises(ValueError, match=r"seed: expected an integer in \[0, 2\^32\), got"):
            key_of(seed, "data")
    assert another(2**32 - 1) == 0
    assert (data(key_of(2**32 - 1, "data")) != data(key_of(0, "data"))).any()


# --- whose fault an error is ---------------------------------------------------------------------------------------


class Broken:
    """Mistakes of a programmer, below functions of ours."""

    @staticmethod
    def interpreter() -> None:
        require.counts(dataclasses.replace(DIGITS, steps=None), steps=None)  # type: ignore[arg-type]
        require.numbers(dataclasses.replace(DIGITS, label_drop="0.1"), label_drop=require.SHARE)  # type: ignore

    @staticmethod
    def jax_itself() -> None:
        jd.schedules.cosine().log_snr(jnp.ones(3)) + jnp.ones(4)

    @staticmethod
    def other_packages() -> None:
        optax.chain(None).init({})  # type: ignore[arg-type]

    @staticmethod
    def attribute() -> None:
        checks.check(None)  # type: ignore[arg-type]

    @staticmethod
    def division() -> None:
        training.split(np.zeros((4, 2)), 0)


@pytest.mark.parametrize("name", [name for name in vars(Broken) if not name.startswith("_")])
def test_a_fault_of_ours_shows_its_traceback(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(Exception) as caught, errors.one_line_errors():  # noqa: PT011
        getattr(Broken, name)()
    assert not isinstance(caught.value, SystemExit)
    assert caught.value.__notes__[-1] == errors.NOT_YOURS
    assert capsys.readouterr().err == ""


YOURS = {
    "a script's check": lambda: require.seed(-1),
    "a library's check": lambda: jd.grids.uniform(0),
    "a check of types": lambda: training.init_state(jax.random.PRNGKey(0), {}, optax.sgd(1.0)),
    "a check inside a compiled function": lambda: jax.jit(lambda x: jd.q_sample(jd.schedules.cosine(), x, 2.0, x))(jnp.ones(3)),
    "a check inside a mapped function": lambda: jax.pmap(lambda x: jd.grids.uniform(-1) + x)(jnp.ones(2)),
    "raised from another": lambda: records.read_json(Path(__file__)),
    "divergence": lambda: loop.require_finite(3, NAN),
    "no file": lambda: Path("no/such/file").read_text(),
}  # fmt: skip


@pytest.mark.parametrize("name", YOURS)
def test_what_the_user_can_mend_is_one_line(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exits(YOURS[name], capsys).endswith("(JAXDIFF_TRACEBACK=1 shows where)")
    monkeypatch.setenv("JAXDIFF_TRACEBACK", "1")
    with pytest.raises((ValueError, TypeError, OSError, ArithmeticError)), errors.one_line_errors():
        YOURS[name]()


def test_errors_without_a_message(capsys: pytest.CaptureFixture) -> None:
    for error in (OSError(), OSError("\n"), OSError(" \n\n")):

        def fail(error: OSError = error) -> None:
            raise error

        assert exits(fail, capsys).startswith("error: OSError (")
    assert training.first_line(ValueError("\n  one\ntwo")) == "one"


def test_exit_codes(tmp_path: Path) -> None:
    """Of a process: 1 with a line or a traceback, 130 where it was interrupted, 141 where `| head` has left."""
    bodies = {
        "line": "raise OSError('full')", "traceback": "None + 1", "interrupted": "raise KeyboardInterrupt",
        "no reader": "raise BrokenPipeError",
    }  # fmt: skip
    program = f"""
import os, sys
from jaxdiff.cli import errors
for name, body in {bodies}.items():
    child = os.fork()  # one import for all: each child goes on to the end of the program, as a script does
    if child == 0:
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
        with errors.one_line_errors():
            exec(body)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    codes = dict(zip(bodies, map(int, found.stdout.split()), strict=True))
    assert codes == {"line": 1, "traceback": 1, "interrupted": 130, "no reader": 141}
    said = {name: (tmp_path / name).read_text() for name in bodies}
    assert said["no reader"] == ""
    assert said["line"] == "error: full (JAXDIFF_TRACEBACK=1 shows where)\n"
    assert "Traceback" in said["traceback"]
    assert said["traceback"].endswith(f"{errors.NOT_YOURS}\n")
    assert said["interrupted"] == "\ninterrupted\n"
