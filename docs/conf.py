"""How `make docs` builds the book: MyST pages, a reference from the docstrings, furo's theme."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from afxdp_pool import __version__

project = "afxdp_pool"
version = release = __version__
language = "en"
smartquotes_action = "D"  # dashes, not quotes

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "commands",
    "sphinx_copybutton",
    "docstrings",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_ambiguous", "ref.python"]  # `type` of a field is one of several headers
copybutton_prompt_text = r"\$ |# |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

# In docstrings `Name` is a name of the library where there is one of that name, and code where there is not.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    # Of others.
    ("py:class", r"(numpy|np|npt|collections|mmap|os|pathlib|socket|threading|types)\..*|Path|Bytes|(.*\.)?Columns"),
    ("py:class", r"prometheus_client\..*"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "native, table"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"afxdp_pool {version}"
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
