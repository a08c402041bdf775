"""What jaxdiff offers: its public modules, their names, and where each name is documented."""

import importlib
import inspect
import pkgutil
from types import FunctionType, ModuleType
from typing import Any

import jaxdiff

COMMANDS = "jaxdiff.cli"  # its page is that of the command line


def modules() -> dict[str, list[str]]:
    """The public modules and the names that each offers, modules aside.

    Returns:
      Names by module, in the order of the pages.
    """
    found: dict[str, list[str]] = {"jaxdiff": []}
    infos = pkgutil.iter_modules(jaxdiff.__path__, "jaxdiff.")
    waiting = [info.name for info in infos if "._" not in info.name and "__" not in info.name]
    waiting.remove(COMMANDS)
    while waiting:
        module = importlib.import_module(waiting.pop(0))
        names = _names(module)
        inner = [name for name in names if isinstance(getattr(module, name), ModuleType)]
        waiting += [f"{module.__name__}.{name}" for name in inner]
        found[module.__name__] = [name for name in names if name not in inner]
    offered = [*jaxdiff.__all__, "load"]
    found["jaxdiff"] = [n for n in offered if not isinstance(getattr(jaxdiff, n), ModuleType)]
    return dict(sorted(found.items()))


def _names(module: ModuleType) -> list[str]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__)
    return [name for name in own if not name.startswith("_")]


def homes() -> dict[str, str]:
    """Where each public name is documented: a name of `jaxdiff` at the module that defines it.

    Returns:
      Full names by full name, such as jaxdiff.drawing.draw by jaxdiff.draw.
    """
    found = {}
    for module, names in modules().items():
        if module != "jaxdiff":
            found |= {f"{module}.{name}": f"{module}.{name}" for name in names}
    defined = {id(value(name)): name for name in found}
    return found | {
        f"jaxdiff.{name}": defined[id(getattr(jaxdiff, name))] for name in modules()["jaxdiff"]
    }


def value(full_name: str) -> Any:
    """Return what a full name stands for."""
    module, _, name = full_name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def functions() -> dict[str, FunctionType]:
    """The public functions, each once, by the full name where it is documented."""
    found = {name: inspect.unwrap(value(name)) for name in sorted(set(homes().values()))}
    return {name: v for name, v in found.items() if isinstance(v, FunctionType)}


def summary(full_name: str) -> str:
    """The first line of a docstring, or of the comment above a constant."""
    found = value(full_name)
    if isinstance(found, FunctionType | type) or callable(found):
        return (inspect.getdoc(found) or "").partition("\n")[0]
    return comment(full_name).partition(". ")[0]


def comment(full_name: str) -> str:
    """The comment above a constant, in the module or in the file that its package took it from."""
    module, _, name = full_name.rpartition(".")
    loaded = importlib.import_module(module)
    package = [loaded, *(importlib.import_module(f"{module}.{m}") for m in _inside(loaded))]
    for source in map(inspect.getsource, package):
        lines = source.splitlines()
        starts = (f"{name} =", f"{name}:")
        for number in (i for i, line in enumerate(lines) if line.startswith(starts)):
            above = []
            while number and lines[number - 1].startswith("#"):
                number -= 1
                above.insert(0, lines[number].lstrip("# "))
            beside = lines[number].partition("  # ")[2] if not above else ""
            if above or beside:
                return " ".join(above) or beside
    return ""


def _inside(module: ModuleType) -> list[str]:
    path = getattr(module, "__path__", [])
    return [info.name for info in pkgutil.iter_modules(path) if not info.ispkg]
