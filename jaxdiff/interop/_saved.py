"""A trained network as a folder: safetensors, a configuration and a card; and back, exactly."""

import dataclasses
import inspect
import json
import shutil
import uuid
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import kernels, models, prediction, schedules
from jaxdiff.interop import _card, _files, _safetensors
from jaxdiff.interop._unet2d import OPTIONS, UNet2D, unet2d
from jaxdiff.models.mlp import MLP
from jaxdiff.models.unet import UNet
from jaxdiff.posterior import Spread
from jaxdiff.zoo import Trained

VERSION = 1  # of the format
MARK = "jaxdiff_network"  # the entry of config.json that tells these folders from others
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# The networks, by the name of what builds them from their options.
NETWORKS: dict[str, tuple[type, Any, tuple[str, ...]]] = {
    "unet": (UNet, models.unet, tuple(inspect.signature(models.unet).parameters)),
    "mlp": (MLP, models.mlp, tuple(inspect.signature(models.mlp).parameters)),
    "unet2d": (UNet2D, unet2d, OPTIONS),
}
# Pytrees with named fields, by the name that their class or its maker has.
SCHEDULES: dict[str, type] = {
    kind.name: kind
    for kind in schedules.Schedule.__subclasses__()
    if kind.__module__.startswith(schedules.__name__)
}
THRESHOLDS: dict[str, type] = {name: type(make()) for name, make in prediction.THRESHOLDS.items()}
PREDICTIONS = (*prediction.PREDICTIONS, "levels")
VARIANCES: list[str | None] = [*kernels.VARIANCES, None]
PLAIN = ("prediction", "event_shape", "levels", "sigma_data", "variance")


@dataclasses.dataclass(frozen=True)
class Described:
    """What config.json holds."""

    jaxdiff_network: int
    network: dict
    schedule: dict
    prediction: str
    event_shape: tuple[int, ...]
    levels: int | None
    sigma_data: float
    variance: str | None
    threshold: dict | None
    about: dict
    card: dict


def save(
    trained: Trained,
    folder: str | PathLike,
    *,
    data: str,
    licence: str,
    command: str = "",
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Write a trained network to a new folder, for other people.

        jd.interop.save(
            jd.load("runs/mine"), "mine", data="the digits of scikit-learn", licence="CC BY 4.0",
            command="jaxdiff train digits", figures={"bits per dimension, at most": bits},
        )

    model.safetensors holds the arrays, config.json everything else that `load` needs, and README.md
    is the card: what the network is, and the words given here. Folders of this machine, which the
    configuration of a run names, are left out. The new folder appears whole or not at all.

    Args:
      trained: the network, of `models.unet`, `models.mlp`, `diffusers` or `guided_diffusion`.
      folder: a path where nothing is yet.
      data: what it was trained on.
      licence: of the weights.
      command: what trained it, "" if that is not known.
      figures: what was measured of it: name -> number or text.
    Raises:
      FileExistsError: the folder exists.
      TypeError: the network is of another kind, its schedule or threshold is of one's own, or
        `about` holds what JSON cannot.
      ValueError: data or licence is empty.
      OSError: it cannot be written.
    """
    folder = Path(folder)
    for name, value in (("data", data), ("licence", licence)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name}: expected words for the card, got {value!r}")
    if folder.exists():
        raise FileExistsError(
            f"folder: expected a path where nothing is, got {folder}, which exists"
        )
    arrays = _flat("params", trained.params)
    if trained.spread is not None:
        arrays |= _flat("spread", _fields(trained.spread))
    described = Described(
        jaxdiff_network=VERSION,
        network=_network(trained),
        schedule=_object("schedule", trained.schedule, SCHEDULES, arrays),
        threshold=None
        if trained.threshold is None
        else _object("threshold", trained.threshold, THRESHOLDS, arrays),
        about=_without_places(trained.about),
        card={
            "data": data,
            "licence": licence,
            "command": command,
            "figures": dict(figures or {}),
        },
        **{name: getattr(trained, name) for name in PLAIN},
    )
    try:
        text = json.dumps(dataclasses.asdict(described), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"about, figures: expected what JSON can hold, got {error}") from error
    card = _card.card(folder.name, trained, described.card)
    _write(folder, {CONFIG: text + "\n", CARD: card}, arrays)


def load(folder: str | PathLike) -> Trained:
    """Read a folder that `save` wrote.

    Args:
      folder: the folder.
    Returns:
      Trained, with the very numbers that were saved; about["card"] has the words of the card.
    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or an array is missing, left over or misshapen. The message
        names the file.
    """
    folder = Path(folder)
    path, weights = folder / CONFIG, folder / WEIGHTS
    for each in (path, weights):
        if not each.is_file():
            raise FileNotFoundError(f"{folder}: expected {each.name}, which is not there")
    described = _files.read_options(Described, _files.read_json(path), path)
    if described.jaxdiff_network != VERSION:
        raise ValueError(f"{path}: {MARK}: expected {VERSION}, got {described.jaxdiff_network}")
    _files.require_choice(path, "prediction", described.prediction, PREDICTIONS)
    _files.require_choice(path, "variance", described.variance, VARIANCES)
    model = _model(described.network, path)
    arrays = _safetensors.read(weights)
    schedule = _made("schedule", described.schedule, SCHEDULES, arrays, path)
    threshold = None
    if described.threshold is not None:
        threshold = _made("threshold", described.threshold, THRESHOLDS, arrays, path)
    spread = _spread(arrays, weights)
    return Trained(
        model=model,
        params=_params(model, described.event_shape, arrays, weights),
        schedule=schedule,
        threshold=threshold,
        spread=spread,
        about=described.about | {"card": described.card},
        **{name: getattr(described, name) for name in PLAIN},
    )


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that `save` wrote."""
    path = folder / CONFIG
    try:
        return path.is_file() and MARK in _files.read_json(path)
    except ValueError:  # a damaged file is another reader's
        return False


def _write(folder: Path, texts: dict[str, str], arrays: dict[str, np.ndarray]) -> None:
    """Fill a draft beside the folder, which then gets its name."""
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        for name, text in texts.items():
            (draft / name).write_text(text)
        _safetensors.write(draft / WEIGHTS, arrays)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _without_places(about: dict[str, Any]) -> dict[str, Any]:
    """What is known of the network, without the folders of this machine."""
    config = about.get("config")
    if not isinstance(config, dict):
        return about
    places = {"run": f"runs/{Path(config.get('run', '')).name}", "data_dir": None}
    return about | {"config": config | places}


def _network(trained: Trained) -> dict[str, Any]:
    module = trained.model.module
    for kind, (cls, _, options) in NETWORKS.items():
        if type(module) is cls:
            return {"kind": kind, "options": {name: getattr(module, name) for name in options}}
    raise TypeError(
        f"trained: expected a network of {', '.join(NETWORKS)}, got {type(module).__name__}"
    )


def _model(fields: dict[str, Any], path: Path) -> models.Model:
    kind, options = fields.get("kind"), fields.get("options")
    _files.require_choice(path, "network.kind", kind, NETWORKS)
    _, build, names = NETWORKS[str(kind)]
    if not isinstance(options, dict) or set(options) != set(names):
        raise ValueError(
            f"{path}: network.options: expected {', '.join(names)}, got {_files.shown(options)}"
        )
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    with _files.naming(path):
        return build(**given)


def _fields(tree: Any) -> dict[str, Any]:
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}


def _object(
    name: str, value: Any, kinds: Mapping[str, type], arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The kind and the numbers of a pytree; its arrays go to the others."""
    kind = next((kind for kind, cls in kinds.items() if type(value) is cls), None)
    if kind is None:
        raise TypeError(f"{name}: expected one of {', '.join(kinds)}, got {type(value).__name__}")
    numbers = {}
    for field, each in _fields(value).items():
        if each is None or isinstance(each, int | float):
            # JSON has no infinity.
            numbers[field] = each if each is None or np.isfinite(each) else str(float(each))
        else:
            arrays[f"{name}/{field}"] = np.asarray(each)
    return {"kind": kind, "numbers": numbers}


def _made(
    name: str,
    fields: dict[str, Any],
    kinds: Mapping[str, type],
    arrays: dict[str, np.ndarray],
    path: Path,
) -> Any:
    """The pytree again; its arrays are taken out of the others."""
    kind, numbers = fields.get("kind"), fields.get("numbers")
    _files.require_choice(path, f"{name}.kind", kind, kinds)
    cls = kinds[str(kind)]
    names = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(numbers, dict) or not set(numbers) <= set(names):
        raise ValueError(
            f"{path}: {name}.numbers: expected those of {', '.join(names)}, "
            f"got {_files.shown(numbers)}"
        )
    values = {}
    for field in names:
        where = f"{name}/{field}"
        if field in numbers:
            values[field] = _number(numbers[field], f"{path}: {name}.numbers.{field}")
        elif where in arrays:
            values[field] = _as_it_was(arrays.pop(where))
        else:
            raise ValueError(f"{path}: {name}.numbers: expected {field}, or an array {where}")
    with _files.naming(path):
        return cls(**values)


def _number(value: Any, where: str) -> Any:
    if value in ("inf", "-inf"):
        return float(value)
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"{where}: expected a number, got {_files.shown(value)}")
    return value


def _as_it_was(array: np.ndarray) -> Any:
    """A JAX array where that has the same dtype: without 64 bits it would lose digits."""
    return (
        jnp.asarray(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array
    )


def _named(name: str, tree: Any) -> dict[str, Any]:
    """name/outer/inner -> leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in leaves
    }


def _flat(name: str, tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in _named(name, tree).items()}


def _spread(arrays: dict[str, np.ndarray], path: Path) -> Spread | None:
    """The spread, whose arrays are taken out of the others."""
    names = [field.name for field in dataclasses.fields(Spread)]
    found = {name: arrays.pop(f"spread/{name}", None) for name in names}
    missing = [name for name, array in found.items() if array is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise ValueError(f"{path}: expected an array spread/{missing[0]}, which it does not have")
    return Spread(**{name: _as_it_was(array) for name, array in found.items() if array is not None})


def _params(
    model: models.Model, event_shape: tuple[int, ...], arrays: dict[str, np.ndarray], path: Path
) -> Any:
    """The rest of the arrays in their places: those of the network's own parameters."""
    with _files.naming(path):
        wanted = jax.eval_shape(lambda: model.init(jax.random.key(0), event_shape))
    places = _named("params", wanted)
    extra = sorted(set(arrays) - set(places))
    if extra:
        raise ValueError(
            f"{path}: expected no array {_files.shown(extra[0])}: the network has no place for it"
        )
    leaves = []
    for name, leaf in places.items():
        if name not in arrays:
            raise ValueError(f"{path}: expected an array {name}, which it does not have")
        if arrays[name].shape != leaf.shape:
            raise ValueError(
                f"{path}: {name}: expected shape {leaf.shape}, got {arrays[name].shape}"
            )
        leaves.append(_as_it_was(arrays[name]))
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)
