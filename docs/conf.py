"""The site of jaxdiff, made by Sphinx.

Neither building nor reading it needs the network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import jaxdiff

project = "jaxdiff"
author = "jaxdiff developers"
copyright = "the jaxdiff developers, Apache-2.0"
release = version = jaxdiff.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinxcontrib.katex",
    "links",
    "pages",
]
exclude_patterns = ["extensions", "README.md"]

# Names in docstrings are links where the library has them.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = [
    "amsmath",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
]
myst_heading_anchors = 3
# Notebooks are shown with the outputs that they hold.
nb_execution_mode = "off"
nb_merge_streams = True

# KaTeX comes with the extension. Its style and fonts, of the same version, lie in
# _static.
katex_css_path = "katex/katex.min.css"
katex_options = "macros: {'\\\\E': '\\\\mathbb{E}', '\\\\KL': '\\\\operatorname{KL}'}"
math_eqref_format = "({number})"

html_theme = "pydata_sphinx_theme"
html_title = "jaxdiff"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 7,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
}
# Pages without others below them.
ALONE = ["index", "mathematics/index", "gallery", "errors", "contributing"]
html_sidebars: dict[str, list[str]] = {page: [] for page in ALONE}
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True
