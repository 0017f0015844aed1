"""Renders the companion as static HTML that works offline: `python site/build.py [--out build/site]` (`make site`).

The pages are laid out in build/site-source under the same paths as in the repository, so that links between files stay
links between pages, and Sphinx renders them with the settings of site/conf.py. Notebooks are shown with the outputs
that are stored in them and never executed. Added are a page for each module of the library (read from the source, not
imported), a page for each record key, to which the rows of tables lead, and a page with all figures. A link that leads
nowhere fails the build.
"""

from __future__ import annotations

import argparse
import ast
import html
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

SITE = Path(__file__).resolve().parent
REPOSITORY = SITE.parent
sys.path.insert(0, str(REPOSITORY))

from ffrlib.files import results_folder  # noqa: E402
from ffrlib.spec import from_dict, non_defaults  # noqa: E402

HIDDEN = shutil.ignore_patterns(".*", "_*", "cache")
KEY = re.compile(r"\b[0-9a-f]{10}\b")
RECORD_LINK = re.compile(r"\]\(runs/[^)\s]*--([0-9a-f]{10})-s\d+\.json\)")
INTERVAL = re.compile(r"\[([^\s,\]]+), ([^\s\]]+)\]")
LIST_END = re.compile(r"^((?:- |  ).*)\n(?=[^\s-])", re.MULTILINE)
LINK = re.compile(r"\]\(([\w./-]+)\)")
MODULE_LINK = re.compile(r"\]\(((?:\.\./)*)ffrlib/([\w/]+)\.py\)")
PACKAGES = ("sphinx", "myst_nb", "furo", "mathjax")
UNEXECUTED = "*Shown without outputs: none are stored. {} shows them.*"


# -- notebooks ---------------------------------------------------------------------------------------------------------
def lines(cell: dict) -> str:
    return "".join(cell["source"])


def executed_copy(path: Path) -> Path:
    """The copy in build/notebooks that `make reproduce` or `make tables` left, if its cells are those of `path`."""
    copy = REPOSITORY / "build" / "notebooks" / path.name
    if "experiments" not in path.parts or not copy.exists():
        return path
    cells = [json.loads(p.read_text())["cells"] for p in (path, copy)]
    own, other = ([lines(c) for c in cs if "injected-parameters" not in c["metadata"].get("tags", [])] for cs in cells)
    return copy if own == other else path


def notebook_page(path: Path) -> str:
    """A notebook as the site shows it: solutions folded, no widgets (pictures stand beside them), texts for images."""
    notebook = json.loads(executed_copy(path).read_text())
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell["source"], tags = lines(cell), cell["metadata"].setdefault("tags", [])
        if cell["cell_type"] != "code":
            continue
        shown = cell["metadata"].setdefault("mystnb", {})
        if "solution" in tags:
            tags.append("hide-input")
            shown |= {"code_prompt_show": "Show a solution", "code_prompt_hide": "Hide the solution"}
        kept = []
        for output in cell["outputs"]:
            data = output.get("data", {})
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                shown.setdefault("image", {}).setdefault("alt", alt)
            if not any("widget" in kind for kind in data):
                kept.append(output)
        cell["outputs"] = kept
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    if not any(c["outputs"] for c in code):
        how = "`make tables` before `make site`" if "experiments" in path.parts else "Running it in `make lab`"
        note = {"cell_type": "markdown", "metadata": {}, "source": UNEXECUTED.format(how)}
        notebook["cells"].insert(1, note | ({"id": "unexecuted"} if "id" in notebook["cells"][0] else {}))
    return json.dumps(notebook)


# -- the library -------------------------------------------------------------------------------------------------------
def as_markdown(docstring: str | None) -> str:
    """A docstring as Markdown text: `<` outside of code is no tag, a line that is not indented ends a list."""
    parts = re.split(r"(`[^`]*`)", LIST_END.sub(r"\1\n\n", docstring or ""))  # every second one is code
    return "".join(part if n % 2 else part.replace("<", "&lt;") for n, part in enumerate(parts))


def entry(node: ast.AST, source: str) -> str:
    """A public function or class of a module as a MyST directive, with its source lines folded below it."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    text = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    body, inner = as_markdown(ast.get_docstring(node)), []
    if isinstance(node, ast.ClassDef):
        kind, signature = "class", node.name
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                explained = as_markdown(ast.get_docstring(part))
                inner.append(directive("method", called(part, skip_first=True), explained, 4))
    else:
        kind, signature = "function", called(node)
    fold = f'<details class="source"><summary>source</summary>\n\n```python\n{text}\n```\n\n</details>'
    return directive(kind, signature, "\n\n".join([body, *inner, fold]), 6)


def called(function: ast.FunctionDef, skip_first: bool = False) -> str:
    """`name(arguments) -> result`; a method's `self` is left out."""
    arguments = function.args
    if skip_first and arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args.pop(0)
    result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({ast.unparse(arguments)}){result}"


def directive(kind: str, signature: str, body: str, ticks: int) -> str:
    return f"{'`' * ticks}{{py:{kind}}} {signature}\n\n{body}\n{'`' * ticks}"


def module_pages() -> dict[str, str]:
    """Page name -> Markdown, for each module of the library."""
    pages = {}
    for path in sorted((REPOSITORY / "ffrlib").rglob("*.py")):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        source = path.read_text()
        tree = ast.parse(source)
        found = [f"# {name}\n", directive("module", name, "", 6), "", as_markdown(ast.get_docstring(tree)), ""]
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                found += [entry(node, source), ""]
            elif isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
                text = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
                found += [directive("data", target.id, f"```python\n{text}\n```", 6), ""]
        pages[f"api/{name}"] = "\n".join(found)
    return pages


# -- results -----------------------------------------------------------------------------------------------------------
def row(*values) -> str:
    return "| " + " | ".join(str(v).replace("|", "\\|") for v in values) + " |"


def flat(settings: dict, before: str = "") -> dict:
    """Nested settings as `weight.strength` and so on."""
    out = {}
    for name, value in settings.items():
        out |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return out


def number(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def record_pages(results: Path) -> dict[str, str]:
    """Page name -> Markdown, for each key: its settings, the metrics of its seeds side by side, its files."""
    by_key: dict[str, list[tuple[Path, dict]]] = {}
    for path in sorted(results.glob("runs/*/*/*.json")):
        record = json.loads(path.read_text())
        by_key.setdefault(record["key"], []).append((path, record))
    pages = {}
    for key, runs in by_key.items():
        runs.sort(key=lambda run: run[1]["seed"])
        path, first = runs[0]
        seeds = [r["seed"] for _, r in runs]
        files = [f"[seed {r['seed']}](../results/{p.relative_to(results).as_posix()}) ({r['status']})" for p, r in runs]
        settings = flat(non_defaults(from_dict(first["settings"]))) or {"all": "defaults"}
        names = dict.fromkeys(n for _, r in runs for n, v in flat(r["metrics"]).items() if not isinstance(v, list))
        pages[f"records/{key}"] = "\n".join([
            "---", "orphan: true", "---", f"# Record {key}", "",
            f"{path.stem.split('--')[0]}, {path.parent.name}, scale {first['scale']}. "
            f"Files, with curves and provenance: {', '.join(files)}.", "",
            "## Settings that differ from the defaults", "",
            row("setting", "value"), row("---", "---"), *(row(f"`{n}`", v) for n, v in settings.items()), "",
            "## Metrics", "", "Shares in [0, 1], accuracies in percent, latencies in milliseconds.", "",
            row("metric", *(f"seed {s}" for s in seeds)), row(*["---"] * (1 + len(seeds))),
            *(row(f"`{n}`", *(number(flat(r["metrics"]).get(n)) for _, r in runs)) for n in names), "",
        ])  # fmt: skip
    return pages


def linked(source: Path, page: Path, text: str, records: dict[str, str]) -> str:
    """Links that lead to modules, records or folders lead to pages about them; in results, keys become links."""
    text = MODULE_LINK.sub(lambda m: f"]({m[1]}api/ffrlib.{m[2].replace('/', '.').removesuffix('.__init__')}.md)", text)
    text = LINK.sub(lambda m: f"]({folder_page(source, page, m[1])})", text)
    if page.parts[0] != "results":
        return text
    up = "../" * (len(page.parts) - 1)
    text = RECORD_LINK.sub(lambda m: f"]({up}records/{m[1]}.md)" if f"records/{m[1]}" in records else m[0], text)
    if page.name == "INDEX.md":
        return text
    return KEY.sub(lambda m: f"[{m[0]}]({up}records/{m[0]}.md)" if f"records/{m[0]}" in records else m[0], text)


def folder_page(source: Path, page: Path, target: str) -> str:
    """`target`, or where that is a folder, a page that lists what is in it."""
    folder = (source / page.parent / target).resolve()
    if not folder.is_dir() or not folder.is_relative_to(source):
        return target
    if not (folder / "index.md").exists():
        found = [p.relative_to(folder) for kind in ("md", "ipynb") for p in sorted(folder.rglob(f"*.{kind}"))]
        shown = [f"- []({p.as_posix()})" for p in found if "student" not in p.parts]
        title = folder.relative_to(source).as_posix()
        (folder / "index.md").write_text("\n".join(["---", "orphan: true", "---", f"# {title}", "", *shown, ""]))
    return f"{target.rstrip('/')}/index.md"


def compact(text: str) -> str:
    """A page of results/tables: keys in front where one names a row, and places to break long names and intervals."""
    lines = text.split("\n")
    table = [n for n, line in enumerate(lines) if line.startswith("| ")]
    front = bool(table) and lines[table[0]].endswith("| keys |") and all(lines[n].count("](") < 2 for n in table)
    for n in table:
        cells = lines[n][2:-2].split(" | ")
        if n == table[0]:
            cells = [cell.replace("_", "_\u200b") for cell in cells]
        cells = [INTERVAL.sub("[\\1,\u00a0\\2]", cell) for cell in cells]
        lines[n] = "| " + " | ".join([*cells[-1:], *cells[:-1]] if front else cells) + " |"
    return "\n".join([lines[0], "", '<div class="wide">', "", *lines[1:], "", "</div>", ""])


def figures_page(source: Path) -> str:
    """All pictures of results/figures, with the text that stands in for each."""
    found = ["# Figures", "", "Drawn from the records alone (`make tables SCALE=...`).", ""]
    for path in sorted((source / "results" / "figures").glob("*/*.svg")):
        place, text = f"{path.parent.name}/{path.name}", path.with_suffix(".txt")
        alt = html.escape(text.read_text().strip() if text.exists() else path.stem)
        found += [
            f"## {path.stem}, scale {path.parent.name}",
            "",
            f'<img src="figures/{place}" alt="{alt}">',
            "",
            alt,
            "",
        ]
    return "\n".join(found)


# -- the whole ---------------------------------------------------------------------------------------------------------
def toctree(caption: str, pages: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]) if pages else ""


def lay_out(source: Path) -> None:
    """Copies and writes all pages into the folder `source`, which is made anew."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for path in REPOSITORY.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, source)
    for name in ("docs", "notebooks", "teaching"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=HIDDEN, dirs_exist_ok=True)
    for path in (REPOSITORY / "data").glob("*.*"):
        (source / "data").mkdir(exist_ok=True)
        shutil.copy2(path, source / "data")
    if results_folder().is_dir():
        shutil.copytree(results_folder(), source / "results", ignore=HIDDEN)
    records, modules = record_pages(results_folder()), module_pages()
    if any((source / "results").glob("figures/*/*.svg")):
        (source / "results" / "figures.md").write_text(figures_page(source))
    shutil.copy2(SITE / "formulas.md", source)
    for path in sorted(source.rglob("*.ipynb")):
        path.write_text(notebook_page(REPOSITORY / path.relative_to(source)))

    def pages(*patterns: str) -> list[str]:
        found = [p for pattern in patterns for p in sorted(source.glob(pattern))]
        return list(dict.fromkeys(p.relative_to(source).with_suffix("").as_posix() for p in found))

    scales = []
    for folder in sorted((source / "results" / "tables").glob("*/")):
        listed = pages(f"results/tables/{folder.name}/*.md")
        (folder / "index.md").write_text(f"# Tables, scale {folder.name}\n\n```{{toctree}}\n:maxdepth: 1\n\n"
                                         + "\n".join(f"/{p}" for p in listed) + "\n```\n")  # fmt: skip
        scales.append(folder.relative_to(source).as_posix() + "/index")
    start = source / "README.md"
    (source / "api").mkdir()
    (source / "api" / "index.md").write_text(
        "# Reference\n\nEvery module of the library; the chain of imports is told in `docs/design.md`.\n\n"
        "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(f"/{p}" for p in modules) + "\n```\n"
    )
    for path in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        page = path.relative_to(source)
        text = linked(source, page, path.read_text(), records)
        path.write_text(compact(text) if page.match("results/tables/*/[0-9]*.md") else text)
    for name, text in (records | modules).items():
        (source / f"{name}.md").parent.mkdir(exist_ok=True)
        (source / f"{name}.md").write_text(text)
    results = pages("results/verdicts.md", "results/*.md") + scales + pages("results/benchmarks/*.md")
    start.write_text(
        start.read_text()
        + toctree("Start", pages("notebooks/*.ipynb"))
        + toctree("Lessons", pages("notebooks/lessons/*.ipynb"))
        + toctree("Experiments", pages("notebooks/experiments/*.ipynb"))
        + toctree("Results", results)
        + toctree("Background", pages("docs/*.md", "CHANGELOG.md"))
        + toctree("Teaching", pages("teaching/*.md", "teaching/notes/*.md"))
        + toctree("Reference", ["formulas", "api/index"])
    )


def build(out: Path, source: Path) -> int:
    """Renders the site into the folder `out`; returns Sphinx's exit status (1 for any warning)."""
    from sphinx.cmd.build import build_main

    lay_out(source)
    shutil.rmtree(out, ignore_errors=True)
    mathjax = Path(importlib.util.find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5" / "tex-svg-full.js"
    (out / "_static" / "mathjax").mkdir(parents=True)
    shutil.copy2(mathjax, out / "_static" / "mathjax")
    status = build_main(["-q", "-E", "-W", "--keep-going", "-j", str(os.cpu_count() or 1), "-c", str(SITE),
                         "-d", str(out.with_name(f"{out.name}-doctrees")), str(source), str(out)])  # fmt: skip
    if (out / "README.html").exists():
        shutil.copy2(out / "README.html", out / "index.html")  # what a browser opens first
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Render the companion as static HTML.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "site")
    out, start = parser.parse_args().out.resolve(), time.monotonic()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"The site needs {', '.join(missing)}: pip install -r requirements-site.lock", file=sys.stderr)
        return 1
    status = build(out, out.with_name(f"{out.name}-source"))
    files = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    pages = sum(1 for _ in out.rglob("*.html"))
    print(f"{out / 'index.html'}: {pages} pages, {sum(files) / 1e6:.1f} MB, {time.monotonic() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
