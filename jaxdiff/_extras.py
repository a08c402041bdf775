"""Libraries that an extra brings: what is missing names the command that installs it."""

import importlib
from typing import Any


def needs(name: str, *, extra: str) -> Any:
    """Import a library of an extra, at the place where it is first used.

    Args:
      name: of the module, such as "tensorflow_datasets".
      extra: the extra of jaxdiff that brings it.
    Returns:
      The module.
    Raises:
      ModuleNotFoundError: the library, or another one that it needs, is not installed; the message
        says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f'{missing} is not installed: pip install "jaxdiff[{extra}]"', name=missing
        ) from None
