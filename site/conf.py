"""Sphinx settings of the site; `site/build.py` lays out the pages and calls Sphinx with them."""

from pathlib import Path

from docutils import nodes
from sphinx.util.nodes import make_refnode

project = html_title = "ffrlib"
author = "the ffrlib authors"
extensions = ["myst_nb"]
root_doc = "README"
exclude_patterns = ["teaching/student"]
templates_path: list[str] = []

# Notebooks are shown with the outputs that are stored in them. No script for widgets: theirs comes from a CDN.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_code_prompt_show = "Show {type}"
nb_code_prompt_hide = "Hide {type}"
myst_enable_extensions = ["amsmath", "deflist", "dollarmath", "fieldlist", "html_image"]
myst_heading_anchors = 4
add_module_names = False
maximum_signature_line_length = 90
# A heading may skip a level in a notebook; type names of other packages are not looked up.
suppress_warnings = ["myst.header", "ref.python", "mystnb.unknown_mime_type"]

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_show_copyright = html_show_sphinx = html_copy_source = html_show_sourcelink = False
mathjax_path = "mathjax/tex-svg-full.js"  # put there by build.py; letters are drawn as SVG, so no font is loaded
mathjax3_config = {"options": {"enableMenu": False}}  # its menu would load more files


def places(app) -> dict[str, tuple[str, str]]:
    """What inline code may mean, where it is unique: names of the library, paths of pages -> (page, anchor)."""
    found: dict[str, set[tuple[str, str]]] = {}
    for name, entry in app.env.domains["py"].objects.items():
        parts = name.split(".")
        for start in range(len(parts)):
            short = ".".join(parts[start:])
            if "." in short or "_" in short:  # a single plain word is too often just a word
                found.setdefault(short, set()).add((entry.docname, entry.node_id))
        if entry.objtype == "module":
            for end in (".py", "/__init__.py"):
                path = name.replace(".", "/") + end
                for known in (path, path.removeprefix("ffrlib/")):
                    found.setdefault(known, set()).add((entry.docname, entry.node_id))
    for page in app.env.found_docs:
        path = Path(app.env.doc2path(page, base=False)).as_posix()
        if not path.startswith(("api/", "records/")):
            short = {Path(path).name, Path(path).stem} if path.startswith("notebooks/") else set()
            for known in {path, *short}:
                found.setdefault(known, set()).add((page, ""))
    return {name: targets.pop() for name, targets in found.items() if len(targets) == 1}


def link_code(app, tree, page: str) -> None:
    """`removal.shrink` or `ffrlib/pruning/removal.py` in any text becomes a link to where it is explained."""
    if not hasattr(app, "places"):
        app.places = places(app)
    for node in [n for n in tree.findall(nodes.literal) if not isinstance(n.parent, nodes.reference)]:
        target, anchor = app.places.get(node.astext().split("(")[0].strip(), (page, ""))
        if (target, anchor) != (page, "") and "code" not in node["classes"]:
            node.replace_self(make_refnode(app.builder, page, target, anchor, node.deepcopy()))


def setup(app) -> dict:
    app.connect("doctree-resolved", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
