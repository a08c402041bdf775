"""Libraries that an extra brings: what is missing names the command that installs it."""

import importlib
import importlib.util
from typing import Any


def needs(name: str, *, extra: str) -> Any:
    """Import a library of an extra, at the place where it is first used.

    Args:
      name: of the module, such as "tensorflow_datasets".
      extra: the extra of jaxdiff that brings it.
    Returns:
      The module.
    Raises:
      ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    top = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != top:
            raise  # the library is there, and something that it needs is not
        raise ModuleNotFoundError(
            f'{top} is not installed: pip install "jaxdiff[{extra}]"', name=error.name
        ) from None
