"""What a network's file says of it in words: JSON, checked field by field."""

import inspect
import json
import math
from typing import Any

import numpy as np

from jaxdiff import _checks, schedules
from jaxdiff.prediction import PREDICTIONS

SCHEDULES = ("cosine", "linear", "sigmoid", "edm", "rectified_flow")
FIELDS = ("unet", "schedule", "prediction", "sigma_data", "event_shape", "levels")


def read_about(text: np.ndarray | None) -> dict[str, Any]:
    """Read the fields of `Trained` but its arrays.

    Args:
      text: JSON in an array of text, []; None where the file has none.
    Returns:
      model, schedule, prediction, sigma_data, event_shape, levels, and about: what is left.
    Raises:
      ValueError, TypeError: a field is missing or means nothing.
    """
    from jaxdiff import models  # the network library is loaded where a network is wanted

    about = _object("about", _parsed(text))
    missing = [name for name in FIELDS if name not in about]
    if missing:
        raise ValueError(f"about: expected {', '.join(FIELDS)}, got no {', '.join(missing)}")
    found = {name: about.pop(name) for name in FIELDS}
    _check(found)
    _object("config", about.get("config", {}))
    if type(about.get("step", 0)) is not int:
        raise ValueError(f"step: expected an int, got {_shown(about['step'])}")
    options = _object("unet", found.pop("unet"))
    for name in options.keys() - inspect.signature(models.unet).parameters.keys():
        raise ValueError(f"unet: expected arguments of models.unet, got {_shown(name)}")
    try:
        model = models.unet(**options)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"unet: {error}") from error
    schedule = getattr(schedules, found.pop("schedule"))()
    shape = tuple(found.pop("event_shape"))
    return found | {"model": model, "schedule": schedule, "event_shape": shape, "about": about}


def _parsed(text: np.ndarray | None) -> Any:
    if text is None or text.dtype.kind != "U" or text.shape:
        got = "none" if text is None else f"{text.dtype} {text.shape}"
        raise ValueError(f"about: expected text, got {got}")
    try:
        return json.loads(str(text))
    except RecursionError as error:
        raise ValueError("about: expected JSON, got one nested too deep") from error


def _check(found: dict[str, Any]) -> None:
    _checks.choice("schedule", found["schedule"], SCHEDULES)
    _checks.choice("prediction", found["prediction"], (*PREDICTIONS, "levels"))
    number, shape, levels = (found[name] for name in ("sigma_data", "event_shape", "levels"))
    if type(number) not in (int, float) or not 0 < number < math.inf:
        raise ValueError(f"sigma_data: expected a number above 0, got {_shown(number)}")
    sides = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not sides or len(shape) != 3:
        raise ValueError(f"event_shape: expected [H, W, C], got {_shown(shape)}")
    if levels is not None:
        _checks.positive_int("levels", levels)
    elif found["prediction"] == "levels":
        raise ValueError("levels: expected a number of levels with that prediction, got none")


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value from JSON in at most 40 characters; only its kind where it may be large."""
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
