"""Make reStructuredText of jaxdiff's docstrings.

A docstring is ASCII: sentences, indented equations, and the sections Args, Returns, Raises, Fields,
Yields, Numerics and Source. This makes reStructuredText of it, in which names are links, equations
are as they are printed in a terminal, and papers are links to arXiv.
"""

import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

SECTION = re.compile(r"(Args|Returns|Raises|Fields|Yields|Numerics|Source):(?: (.*))?$")
ENTRY = re.compile(r"  (\*{0,2}[\w, .*]+): (.*)$")
NAME = re.compile(r"`[\w.]+`$")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
# A shape such as [B, *D], but no link of reStructuredText.
SHAPE = re.compile(r"\[(?:[A-Za-z0-9_ ,+*/.]*)\](?!_)")


class Section(NamedTuple):
    """A part of a docstring: its name, empty for what stands before the first, and its lines."""

    name: str
    lines: list[str]


def sections(lines: list[str]) -> list[Section]:
    """Divide a docstring at its sections.

    Args:
      lines: the docstring, without the indentation of its source.
    Returns:
      The parts. The text of `Source: text` is the first line of its part.
    """
    found = [Section("", [])]
    for line in lines:
        match = SECTION.match(line)
        if match is not None:
            found.append(Section(match[1], [match[2]] if match[2] else []))
        else:
            found[-1].lines.append(line)
    return found


def equations(lines: list[str]) -> list[str]:
    """The indented blocks of a docstring before its first section.

    Args:
      lines: the docstring.
    Returns:
      Blocks, as they are printed.
    """
    paragraphs = "\n".join(sections(lines)[0].lines).split("\n\n")
    return [textwrap.dedent(p).rstrip() for p in paragraphs if p.lstrip("\n").startswith("    ")]


def part(lines: list[str], name: str) -> str:
    """The text of one section, its lines joined; empty if there is none."""
    texts = [" ".join(s.lines) for s in sections(lines) if s.name == name]
    return " ".join(" ".join(texts).split())


def inline(text: str) -> str:
    """Escape a sentence, and mark what is code in it.

    Args:
      text: a sentence of a docstring.
    Returns:
      reStructuredText on one line or more.
    """
    pieces = re.split(r"(`[^`]+`)", text)
    for i in range(0, len(pieces), 2):
        parts = re.split(f"({SHAPE.pattern})", pieces[i])
        for j in range(0, len(parts), 2):
            words = re.sub(r"([*|\\])", r"\\\1", parts[j])
            words = re.sub(r"(\w)_(?=\W|$)", r"\1\\_", words)
            parts[j] = ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", words)
        parts[1::2] = [f"``{shape}``" for shape in parts[1::2]]
        pieces[i] = "".join(parts)
    # What is no name is code and not a link.
    pieces[1::2] = [p if NAME.match(p) else f"`{p}`" for p in pieces[1::2]]
    # reStructuredText wants a space or punctuation around what is marked.
    joined = "".join(pieces)
    joined = re.sub(r"(?<=[\w)])(?=``\[)", r"\\ ", joined)
    return re.sub(r"(?<=\]``)(?=[\w(])", r"\\ ", joined)


def body(lines: list[str]) -> Iterator[str]:
    """The sentences and equations before the first section."""
    for paragraph in re.split(r"\n\n+", "\n".join(lines).strip("\n")):
        if paragraph.startswith("    "):
            yield from (".. code-block:: text", "   :class: equation", "")
            yield from textwrap.indent(textwrap.dedent(paragraph), "   ").splitlines()
        elif paragraph.startswith("- "):
            yield from map(inline, paragraph.splitlines())
        else:
            yield from inline(" ".join(paragraph.splitlines())).splitlines()
        yield ""


def entries(lines: list[str]) -> list[tuple[str, str]]:
    """The names of a section and what it says about them."""
    found: list[list[str]] = []
    for line in filter(str.strip, lines):
        match = ENTRY.match(line)
        if match is not None:
            found.append([match[1], match[2]])
        elif found:
            found[-1][1] += " " + line.strip()
    return [(name, text) for name, text in found]


def convert(lines: list[str]) -> list[str]:
    """Make reStructuredText of a docstring.

    Args:
      lines: the docstring.
    Returns:
      Lines.
    """
    out: list[str] = []
    after: list[str] = []
    for name, inner in sections(lines):
        text = inline(" ".join(" ".join(inner).split()))
        if not name:
            out += body(inner)
        elif name in ("Args", "Fields"):
            for names, words in entries(inner):  # Sphinx takes `a, b` for a name with a type
                out += [f":param {n.strip(' *')}: {inline(words)}" for n in names.split(",")]
        elif name == "Raises":
            out += [f":raises {n}: {inline(t)}" for n, t in entries(inner)]
        elif name in ("Returns", "Yields"):
            out.append(f":{name.lower()}: {text}")
        else:
            after += ["", f"**{name}.** {text}"]
    return [*out, *after, ""]
