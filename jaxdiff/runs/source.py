"""Where the examples of a run come from, as the run keeps it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """What a run keeps of its own data, beside their shape.

    Fields:
      fingerprint: it changes with the data; "" where they have a name.
      classes: the names of the classes, in the order of their labels.
      centre: what was subtracted from the columns of a table.
      scale: by what they were divided then.
    """

    fingerprint: str = ""
    classes: tuple[str, ...] = ()
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
