"""Give Sphinx the docstrings as reStructuredText, and make links of the library's names."""

import re
from typing import Any

import docstrings
import public
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert the docstring that autodoc found; a constant has the comment above it."""
    if what == "data":
        lines[:] = [docstrings.inline(public.comment(name)), ""]
    else:
        lines[:] = docstrings.convert(lines)


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool:
    """Of a class document the methods: its fields stand in its docstring."""
    method = callable(obj) or isinstance(obj, property | classmethod | staticmethod)
    return skipped or not method or name.startswith("_")


def short_names() -> dict[str, str]:
    """Where a name leads, as it is written: jd.kernels.ddim, kernels.ddim, jd.draw, Chain."""
    found = {}
    for name, home in public.homes().items():
        short = name.removeprefix("jaxdiff.")
        found |= {name: home, f"jd.{short}": home, short: home}
    for module in public.modules():
        found |= {module: module, module.replace("jaxdiff", "jd", 1): module}
    return found


def link(app: Sphinx, env: Any, node: addnodes.pending_xref, inner: Any) -> nodes.Node | None:
    """Find what a docstring calls by a short name."""
    home = env.jaxdiff_names.get(node["reftarget"].partition("(")[0])
    if home is None or node.get("refdomain") != "py":
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, inner)


def link_code(app: Sphinx, document: nodes.document) -> None:
    """Make a link of every name of the library that a page shows as code."""
    names = app.env.jaxdiff_names
    for literal in list(document.findall(nodes.literal)):
        target = re.sub(r"\(.*\)$", "", literal.astext())
        inside = isinstance(literal.parent, addnodes.pending_xref | nodes.reference | nodes.title)
        if "." not in target or target not in names or inside:
            continue
        found = addnodes.pending_xref(
            "", refdomain="py", reftype="obj", reftarget=names[target], refdoc=app.env.docname,
            refexplicit=False, refwarn=True,
        )  # fmt: skip
        literal.replace_self(found)
        found += literal


def prepare(app: Sphinx) -> None:
    """Keep the names that may be links."""
    app.env.jaxdiff_names = short_names()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", prepare)
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", link)
    app.connect("doctree-read", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
