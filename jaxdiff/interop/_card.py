"""The card of a network that is given to others: what it is, of what, and how good."""

from typing import Any

import jax

from jaxdiff.zoo import Trained

USE = """```python
import jax
import jaxdiff as jd

trained = jd.load("{folder}")
x = jd.draw(jax.random.key(0), trained.denoiser({label}), trained.schedule, {shape}).x
```"""


def card(name: str, trained: Trained, words: dict[str, Any]) -> str:
    """The text of README.md; its head is what model hubs read.

    Args:
      name: of the network.
      trained: the network.
      words: data, licence, command and figures.
    Returns:
      Markdown.
    """
    num = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    conditional = trained.num_classes is not None
    label = "jax.numpy.arange(4) % " + str(trained.num_classes) if conditional else ""
    facts = {
        "data": words["data"],
        "licence": words["licence"],
        "command": f"`{words['command']}`" if words["command"] else "not known",
        "network": f"{type(trained.model.module).__name__}, {num:,} parameters",
        "classes": trained.num_classes if conditional else "none",
        "images" if len(trained.event_shape) == 3 else "vectors": " x ".join(
            map(str, trained.event_shape)
        ),
        "predicts": trained.prediction,
        "schedule": trained.schedule.name,
    }
    parts = [
        "---",
        "library_name: jaxdiff",
        "license: other",
        f"license_name: {_quoted(words['licence'])}",
        "tags: [diffusion]",
        "---",
        f"# {name}\n",
        _table(("", ""), facts),
        "\n## Measured\n",
        _table(("figure", "value"), words["figures"])
        if words["figures"]
        else "Nothing was measured.",
        "\n## Use\n",
        USE.format(folder=name, label=label, shape=(4, *trained.event_shape)),
    ]
    return "\n".join(parts) + "\n"


def _table(head: tuple[str, str], rows: dict[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(k)} | {_cell(v)} |" for k, v in rows.items()])


def _cell(value: Any) -> str:
    """A value within one cell: without line breaks and bars."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _quoted(text: str) -> str:
    """Text as a YAML string."""
    return '"' + " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"') + '"'
