"""The folder of a run: its configuration, and what may change when it goes on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxdiff import training
from jaxdiff.runs import build, records
from jaxdiff.runs.checks import check
from jaxdiff.runs.config import Config, as_json, from_fields
from jaxdiff.runs.datasets import Facts

# Whether an option may change when a run goes on, and why. The name of a section stands for all of
# its options that are not named themselves.
BETWEEN_STARTS: dict[str, tuple[bool, str]] = {
    "run": (True, "the folder may be moved"),
    "data_dir": (True, "the same data may lie elsewhere"),
    "steps": (True, "the learning rate is that of a run of the new length"),
    "most_skipped": (True, "the updates do not depend on it"),
    "log_every": (True, "the updates do not depend on it"),
    "eval_every": (True, "the updates do not depend on it"),
    "accumulate": (True, "the gradient is the same, up to the order of a sum"),
    "at_once": (True, "the updates are the same, up to rounding"),
    "shard_state": (True, "the updates do not depend on it"),
    "label_drop": (True, "the parameters keep their places and their meaning"),
    "network.dropout": (True, "the parameters keep their places and their meaning"),
    "network.remat": (True, "the gradient is the same"),
    "optimizer": (True, "Adam's moments and the moving average are kept, whatever the rates"),
    "folder": (True, "the fingerprint of its data is compared"),
    "flip": (True, "the parameters keep their places and their meaning"),
    "size": (False, "the parameters were fitted to another"),
    "fit": (False, "the parameters were fitted to another"),
    "colour": (False, "the parameters were fitted to others"),
    "dataset": (False, "the parameters were fitted to another"),
    "batch_size": (False, "a place in the order of the examples is counted in batches"),
    "seed": (False, "the order of the examples and the noise would begin anew"),
    "conditional": (False, "the parameters have other places"),
    "network": (False, "the parameters have other places, or another meaning"),
    "diffusion": (False, "the parameters have learnt to predict something else"),
}


def save(config: Config) -> None:
    """Write config.json, from which the run can be read back."""
    training.write_json(config.run / "config.json", json.loads(as_json(config)))


def save_facts(run: Path, facts: Facts) -> None:
    """Write data.json, with which the run is read without its data."""
    training.write_json(run / "data.json", dataclasses.asdict(facts))


def load_facts(run: Path) -> Facts:
    """Read what the run knows of its data."""
    path = run / "data.json"
    if not path.exists():
        raise FileNotFoundError(f"run: {run} has no data.json; train it with `jaxdiff train`")
    fields = records.read_json(path)
    try:
        facts = records.read(Facts, fields)
        _check_facts(facts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; train again with another --run") from error
    return facts


def _check_facts(facts: Facts) -> None:
    numbers = {
        "event_shape": (1, facts.event_shape),
        "num_classes": (1, (facts.num_classes,)),
        "levels": (2, (facts.levels,)),
    }
    for name, (least, values) in numbers.items():
        if not values or any(value is not None and value < least for value in values):
            raise ValueError(f"{name}: expected at least {least}, got {values}")


def check_data(run: Path, facts: Facts) -> None:
    """Require that your own data of an existing run are those that it was begun with."""
    if not (run / "data.json").exists():
        return
    before, now = load_facts(run).source.fingerprint, facts.source.fingerprint
    if before and now and before != now:
        raise ValueError(
            f"run: {run} was begun with data of the fingerprint {before}, and it is {now} now: "
            "files were added, removed or changed, or --size, --fit or --colour was; "
            "take it back, or give another --run"
        )


def load_config(run: Path) -> Config:
    """Read the configuration of a run folder."""
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"run: {run} is no run folder (it has no config.json); train one with `jaxdiff train`"
        )
    fields = records.read_json(path)
    try:
        config = from_fields(fields, run)
        check(config)
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}; repair it, or train again with another --run"
        ) from error
    return config


def check_same(config: Config) -> Config | None:
    """Require that an existing run can go on with this configuration.

    Returns the configuration of the existing run; None for a new run.
    """
    if not (config.run / "config.json").exists():
        return None
    before = load_config(config.run)
    fixed = [f"{name} ({reason})" for name, reason in _changed(before, config, may=False).items()]
    if fixed:
        raise ValueError(
            f"run: {config.run} was begun with another {', '.join(fixed)}; "
            "repeat its own command to go on with it, or give another --run"
        )
    return before


def of_run(config: Config) -> dict[str, Any]:
    """The options that a run never changes, as JSON holds them: its checkpoints name them."""
    fixed = {name: value for name, value in records.flat(config).items() if not _rule(name)[0]}
    return json.loads(json.dumps(fixed))


def what_changes(before: Config, config: Config, step: int) -> str:
    """Describe the options that differ from before, and the learning rate; "" if none differ."""
    old, new = records.flat(before), records.flat(config)
    changed = [
        name for name in _changed(before, config, may=True) if name not in ("run", "data_dir")
    ]
    if not changed:
        return ""
    options = ", ".join(f"{name} {new[name]} (was {old[name]})" for name in changed)
    line = f"{config.run} goes on from step {step} with {options}"
    rate, rate_before = (float(build.learning_rates(each)(step)) for each in (config, before))
    if rate != rate_before:
        line += f"; the learning rate here is {rate:.3g} (was {rate_before:.3g})"
        line += f", as in a run of {config.steps} steps"
    return f"{line}; Adam's moments and the moving average are kept"


def _changed(before: Config, config: Config, *, may: bool) -> dict[str, str]:
    """The options that differ and that may (or may not) change, each with its reason."""
    old, new = records.flat(before), records.flat(config)
    return {
        name: _rule(name)[1] for name in new if new[name] != old[name] and _rule(name)[0] == may
    }


def _rule(name: str) -> tuple[bool, str]:
    return BETWEEN_STARTS.get(name) or BETWEEN_STARTS[name.split(".")[0]]
