"""The site: what is turned into pages, and that the pages hold together without a network.

The build is tested on a small store of made-up records; only its links and its looks are asked for, not its numbers.
"""

import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffrlib import figures, rendering, saving, store, tables, verdicts
from ffrlib.files import REPOSITORY
from ffrlib.spec import key

SPEC = importlib.util.spec_from_file_location("site_build", REPOSITORY / "site" / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)
EXPERIMENT = "1_hgsr_criteria"


# -- single steps ------------------------------------------------------------------------------------------------------
@given(st.text("ab<>`\n &"))
def test_a_docstring_holds_no_tags_but_loses_nothing(text):
    shown = build.as_markdown(text)
    assert shown.replace("&lt;", "<").replace("\n", "") == text.replace("\n", "")
    assert "<" not in re.sub(r"`[^`]*`", "", shown)


def test_what_follows_a_list_is_no_part_of_it():
    assert build.as_markdown("- a\n  b\n- c\nValueError: d\ne") == "- a\n  b\n- c\n\nValueError: d\ne"


def test_a_function_is_shown_with_its_arguments_text_and_source():
    source = 'def f(x: int, *, y=2) -> str:\n    """Says x < y."""\n    return ""\n'
    shown = build.entry(build.ast.parse(source).body[0], source)
    assert "{py:function} f(x: int, *, y=2) -> str" in shown
    assert "Says x &lt; y." in shown and "```python\ndef f(x: int" in shown


def test_a_method_is_shown_without_self_and_nothing_private():
    source = 'class C:\n    """A class."""\n    def m(self, x):\n        """Does."""\n    def _p(self): pass\n'
    directives = re.findall(r"\{py:\w+\} .*", build.entry(build.ast.parse(source).body[0], source))
    assert directives == ["{py:class} C", "{py:method} m(x)"]


def test_every_public_function_has_its_place_on_the_page_of_its_module():
    pages = build.module_pages()
    for module, name in (("regularizers.weight", "penalty"), ("pruning.removal", "shrink"), ("spec", "RunSpec")):
        assert re.search(rf"\{{py:(function|class)\}} {name}\b", pages[f"api/ffrlib.{module}"])
    assert not any(re.search(r"\{py:\w+\} _", page) for page in pages.values())


def test_known_keys_become_links_and_others_stay(tmp_path):
    page, text = Path("results/tables/quick/1_a.md"), "| 0123456789 aaaaaaaaaa |"
    shown = build.linked(tmp_path, page, text, {"records/0123456789": ""})
    assert shown == "| [0123456789](../../../records/0123456789.md) aaaaaaaaaa |"
    assert build.linked(tmp_path, Path("docs/a.md"), text, {"records/0123456789": ""}) == text


def test_links_to_modules_and_folders_lead_to_pages(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n")
    text = "[c](../ffrlib/pruning/removal.py) [m](../ffrlib/models/__init__.py) [d](../docs/) [a](a.md)"
    shown = build.linked(tmp_path.resolve(), Path("docs/a.md"), text, {})
    modules = "[c](../api/ffrlib.pruning.removal.md) [m](../api/ffrlib.models.md)"
    assert shown == f"{modules} [d](../docs/index.md) [a](a.md)"
    assert "(a.md)" in (tmp_path / "docs" / "index.md").read_text()


def test_a_key_stands_in_front_of_its_row_and_nothing_is_lost():
    text = "# T\n\n| net_a | x | keys |\n| --- | --- | --- |\n|  | 1.5 [1, 2] | [k](k.md) |\n"
    shown = build.compact(text).split("\n")
    assert "| keys | net_\u200ba | x |" in shown
    assert "| [k](k.md) |  | 1.5 [1,\u00a02] |" in shown
    several = build.compact(text.replace("[k](k.md)", "[k](k.md) [m](m.md)"))
    assert "1.5 [1,\u00a02] | [k](k.md) [m](m.md) |" in several


def test_a_notebook_is_shown_with_folded_solutions_and_without_widgets(tmp_path):
    widget = {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.jupyter.widget-view+json": {}}}
    picture = {"output_type": "display_data", "metadata": {"image/png": {"alt": "A line"}}, "data": {"image/png": ""}}
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["solution"]},
        "source": ["x\n", "y"],
        "outputs": [widget, picture],
    }
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {"widgets": {}}}))
    shown = json.loads(build.notebook_page(path))
    (only,) = shown["cells"]
    assert only["outputs"] == [picture] and "hide-input" in only["metadata"]["tags"] and only["source"] == "x\ny"
    assert only["metadata"]["mystnb"]["image"] == {"alt": "A line"} and shown["metadata"] == {}


def test_a_notebook_without_outputs_says_so(tmp_path):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "# T"}]
    cells.append({"cell_type": "code", "metadata": {}, "source": "1", "outputs": []})
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}}))
    assert "Shown without outputs" in json.loads(build.notebook_page(path))["cells"][1]["source"]


def test_the_notebook_that_explores_runs_is_shown_with_its_stills():
    shown = json.loads(build.notebook_page(REPOSITORY / "notebooks" / "explore.ipynb"))
    assert sum("image/png" in o.get("data", {}) for c in shown["cells"] for o in c.get("outputs", [])) == 3
    assert not any("Shown without outputs" in cell["source"] for cell in shown["cells"])


# -- the whole ---------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it offers."""

    LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name") if tag == "a" else None}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if attrs.get(self.LOADS.get(tag, "")):
            self.loads.append(attrs[self.LOADS[tag]])
        if tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.loads.append(attrs["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of the repository, with a store of a few records: (folder of the site, folder of the store)."""
    missing = [name for name in build.PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"the site's packages are not installed ({', '.join(missing)}): make site, or requirements-site.lock"
        )
    results, out = tmp_path_factory.mktemp("store") / "results", tmp_path_factory.mktemp("site") / "site"
    metrics = dict.fromkeys((*tables.SPARSE, *tables.FLOW), 0.5) | {"parameters": 10, "macs": 20}
    curve = {"loss": [1.0], "penalty": [0.0], "validation_accuracy": [50.0], "seconds": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FFR_RESULTS", str(results))
        for spec in tables.unseeded(EXPERIMENT, "quick")[:3]:
            for seed in (0, 1):
                changed = {n: v + (90 if "accuracy" in n else 0.1) + seed / 8 for n, v in metrics.items()}
                store.save(replace(spec, seed=seed), "finished", curve, changed, {"code": "-", "seconds": 1.0})
        records, problems = store.load_all()
        assert len(records) == 6 and not problems
        own = [r for r in records if r["scale"] == "quick"]
        rendering.write(tables.experiment_tables(EXPERIMENT, "quick", own), EXPERIMENT, "quick")
        verdicts.write(records)
        store.write_index()
        fig = figures.layer_sparsity(figures.rows(records).iloc[:0])
        saving.save(fig, "made_up", "quick", "Nothing to be seen")
        shutil.copy(results / "figures/quick/made_up.png", results / "figures/readme.png")
    done = subprocess.run([sys.executable, str(REPOSITORY / "site" / "build.py"), "--out", str(out)], text=True,
                          capture_output=True, env=os.environ | {"FFR_RESULTS": str(results)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr  # any link that Sphinx cannot follow
    return out, results


@pytest.mark.slow
def test_no_link_of_the_site_leads_nowhere(site):
    pages = {path: Page(path) for path in site[0].rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in map(urlsplit, (*page.links, *page.loads)):
            if link.scheme:
                continue
            target = Path(os.path.normpath(path.parent / unquote(link.path))) if link.path else path
            known = target.is_file() and (target not in pages or not link.fragment)
            if not known and not (target in pages and unquote(link.fragment) in pages[target].anchors):
                broken.append((path.relative_to(site[0]).as_posix(), link.geturl()))
    assert len(pages) > 40 and not broken


@pytest.mark.slow
def test_nothing_is_loaded_from_another_machine(site):
    remote, loads = re.compile(r"(https?:)?//"), defaultdict(list)
    for path in site[0].rglob("*.html"):
        loads[path.name] += [load for load in Page(path).loads if remote.match(load)]
        loads[path.name] += re.findall(r"<style[^>]*>[^<]*(?:@import|url\()[^<]*//[^<]*", path.read_text())
    for path in site[0].rglob("*.css"):
        loads[path.name] += re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//[^)"']*""", path.read_text())
    for path in site[0].rglob("*.js"):  # MathJax's come from modules that it loads only from its menu, which is off
        found = re.findall(
            r"""(?:\.src|\.href|import|fetch|open)\s*[=(]*\s*["'`](?:https?:)?//[^"'`]*""", path.read_text()
        )
        loads[path.name] += found
    assert not {name: found for name, found in loads.items() if found}
    assert (site[0] / "_static/mathjax/tex-svg-full.js").stat().st_size > 1e6
    formulas = (site[0] / "formulas.html").read_text()
    assert '"enableMenu": false' in formulas and "_static/mathjax/tex-svg-full.js" in formulas


@pytest.mark.slow
def test_a_table_row_leads_to_its_record_and_that_to_the_files(site):
    out, results = site
    spec = tables.unseeded(EXPERIMENT, "quick")[0]
    rows = Page(out / "results/tables/quick" / f"{EXPERIMENT}-strengths.html")
    assert f"../../../records/{key(spec)}.html" in rows.links
    page = Page(out / "records" / f"{key(spec)}.html")
    files = [out / "records" / link for link in page.links if link.endswith(".json")]
    stored = [store.record_path(replace(spec, seed=seed), results) for seed in (0, 1)]
    assert [path.resolve().read_bytes() for path in files] == [path.read_bytes() for path in stored]
    assert any(link.endswith(f"records/{key(spec)}.html") for link in Page(out / "results/INDEX.html").links)


@pytest.mark.slow
def test_formulas_and_lessons_lead_to_functions(site):
    formulas = Page(site[0] / "formulas.html").links
    for name in (
        ("regularizers.weight", "penalty"),
        ("regularizers.flow", "flow_penalty"),
        ("pruning.removal", "shrink"),
    ):
        assert f"api/ffrlib.{name[0]}.html#ffrlib.{'.'.join(name)}" in formulas
    lesson = Page(site[0] / "notebooks/lessons/5_cutting_for_real.html").links
    assert "../../api/ffrlib.pruning.removal.html#ffrlib.pruning.removal.shrink" in lesson


@pytest.mark.slow
def test_the_start_page_is_the_readme_and_search_finds_functions_and_lessons(site):
    assert (site[0] / "index.html").read_bytes() == (site[0] / "README.html").read_bytes()
    index = (site[0] / "searchindex.js").read_text()
    assert all(word in index for word in ("notebooks/lessons/4_feature_flow", '"curvatur"', "flow_penalty"))


@pytest.mark.slow
def test_a_browser_without_network_draws_the_formulas_and_has_nothing_to_complain(site, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium on this machine")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Nothing on the screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site[0]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
             "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--enable-logging=stderr", "--dump-dom",
             "--virtual-time-budget=20000"]  # fmt: skip
    try:
        for name in ("formulas.html", "notebooks/lessons/4_feature_flow.html"):
            url = f"http://127.0.0.1:{server.server_port}/{name}"
            done = subprocess.run([chromium, *flags, url], capture_output=True, text=True, timeout=120)
            written = (site[0] / name).read_text().count('class="math ')
            assert done.stdout.count("<mjx-container") == written > 5 and "data-mjx-error" not in done.stdout
            assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    finally:
        server.shutdown()
        server.server_close()
