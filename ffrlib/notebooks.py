"""Runs the experiment notebooks: `python -m ffrlib.notebooks reproduce | replicate | sample | tables`."""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync

from ffrlib import catalogue
from ffrlib.files import REPOSITORY
from ffrlib.run import run_specs
from ffrlib.spec import SCALES, choose, require

EXPERIMENTS = REPOSITORY / "notebooks" / "experiments"
BUILD = REPOSITORY / "build"
SPOKEN = ("ValueError", "FileNotFoundError", "OSError", "PermissionError", "RuntimeError", "MemoryError")
# ... errors whose message says it all: what a run lacks, the disk, memory, killed workers, a scheduler that is gone.
FOLDERS = ("FFR_RESULTS", "FFR_DATA", "FFR_WEIGHTS")
TYPES = {"str": str, "int": int, "float": float, "bool": bool}


def declared(path: Path | str) -> dict[str, type]:
    """name -> type of each `name: type = value` in the one cell tagged `parameters`; ValueError for anything else."""
    tagged = [c.source for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    require(len(tagged) == 1, f"the number of cells tagged 'parameters' in {path}", len(tagged), "1")
    found = {}
    for line in ast.parse(tagged[0]).body:
        plain = isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None
        kind = TYPES.get(ast.unparse(line.annotation)) if plain else None
        require(kind is not None, f"a line of the parameters of {path}", ast.unparse(line),
                f"name: type = value, with a type of {', '.join(TYPES)}")  # fmt: skip
        found[line.target.id] = kind
    return found


def execute(path: Path | str, parameters: dict | None = None, out: Path | str | None = None, progress=True) -> Path:
    """Run a notebook from top to bottom in a fresh kernel of this Python, in its own folder; returns the executed copy.

    `parameters` replace defaults of its parameters cell; `out`: by default the same name in build/notebooks.
    Raises ValueError for a parameter that is not declared or of another type (papermill would take a misspelt one
    without a word) or with a value that a cell refuses, papermill.PapermillExecutionError where another error ends a
    cell (the copy shows it).
    """
    path, parameters, known = Path(path), parameters or {}, declared(path)
    for name, value in parameters.items():
        choose(f"a parameter of {path.name}", name, known)
        fits = type(value) is known[name] or (known[name] is float and type(value) is int)
        require(fits, f"{name} of {path.name}", value, f"a value of type {known[name].__name__}")
    out = Path(out or BUILD / "notebooks" / path.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    # No kernel folders: one that the user has installed as python3 would run another Python. Unix sockets rather than
    # ports: kernels that start side by side can pick the same port. The sockets lie in a folder that goes afterwards.
    values = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "FFR_RUNNER": "papermill"}
    # A relative folder means the same one there as here.
    values |= {name: os.path.abspath(os.environ[name]) for name in FOLDERS if os.environ.get(name)}
    with patch.dict(os.environ, values), tempfile.TemporaryDirectory() as sockets:
        reach = {"transport": "ipc", "ip": f"{sockets}/kernel"} if os.name == "posix" else {}
        manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **reach)
        try:
            papermill.execute_notebook(str(path), str(out), parameters=parameters, km=manager, kernel_name="python3",
                                       language="python", cwd=str(path.parent), start_timeout=600, iopub_timeout=600,
                                       progress_bar=progress)  # fmt: skip
        except papermill.PapermillExecutionError as error:
            if error.ename not in SPOKEN:
                raise
            more = "" if error.ename in ("ValueError", "FileNotFoundError") else f" (more in {out})"
            raise ValueError(f"{path.name}: {error.evalue}{more}") from None
        finally:  # a kernel manager that is handed in is not shut down for us
            if manager.has_kernel:
                run_sync(manager.shutdown_kernel)(now=True)
    return out


def execute_all(parameters: dict, out: Path | None = None) -> Counter:
    """Run every experiment notebook in name order, each with those of the parameters that it declares.

    Returns the sums of what their calls of `ffrlib.run.run_specs` report. Raises FileNotFoundError without a notebook.
    """
    paths, out = sorted(EXPERIMENTS.glob("*.ipynb")), out or BUILD / "notebooks"
    quick = parameters.get("scale") == "quick"
    if not paths:
        raise FileNotFoundError(f"there is no notebook in {EXPERIMENTS}")
    summary = out / f"summary-{os.getpid()}.jsonl"  # two calls may go on side by side
    summary.unlink(missing_ok=True)
    try:
        for number, path in enumerate(paths, 1):
            print(f"[{number}/{len(paths)}] {path.name}", flush=True)
            wanted = {name: value for name, value in parameters.items() if name in declared(path)}
            first = number == 1 and quick  # makes the runs of all: they are short and many
            with patch.dict(os.environ, {"FFR_SUMMARY": str(summary)} | ({"FFR_AHEAD": "quick"} if first else {})):
                execute(path, wanted, out / path.name)
        totals = Counter()
        for number, line in enumerate(summary.read_text().splitlines() if summary.exists() else []):
            again = {"reused": 0} if quick and number else {}  # the first reports those of all
            totals.update(json.loads(line) | again)
    finally:
        summary.unlink(missing_ok=True)
    return totals


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ffrlib.notebooks", description=__doc__)
    parser.add_argument("task", choices=("reproduce", "replicate", "sample", "tables"))
    parser.add_argument("--scale", default="quick", help=", ".join(SCALES))
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")
    parser.add_argument("--seeds", type=int, help="seeds a cell; default: the notebook's own")
    parser.add_argument("--device", help="cpu or cuda; default: the notebook's own")
    given = parser.parse_args(arguments)
    choose("--scale", given.scale, SCALES)
    if given.device:
        choose("--device", given.device, ("cpu", "cuda"))
    require(given.workers >= 0, "--workers", given.workers, "a number of processes, 0 for one a core")
    require((given.seeds or 0) >= 0, "--seeds", given.seeds, "a number of seeds, 0 for the notebook's own")
    own = {"seeds": given.seeds, "device": given.device}
    parameters = {"scale": given.scale, "workers": given.workers} | {n: v for n, v in own.items() if v}
    fresh = BUILD / given.task if given.task in ("replicate", "sample") else None
    values = {"tables": {"FFR_TRAIN": "never"}, "sample": {"FFR_SAMPLE": "1"}}.get(given.task, {})
    if fresh:
        shutil.rmtree(fresh, ignore_errors=True)  # trained from nothing, and kept afterwards for who wants to look
        parameters["scale"] = "quick"
        values |= {"FFR_RESULTS": str(fresh / "results"), "FFR_PICTURES": "never"}
    ahead = Counter()  # hours of runs are made (`tables`: counted) before the notebooks: by priority over all of them
    with patch.dict(os.environ, values):
        if fresh is None and given.scale != "quick":
            specs = catalogue.specs(given.scale, seeds=given.seeds or 0)
            ahead.update(asdict(run_specs(specs, workers=given.workers, device=given.device or "")))
        totals = execute_all(parameters, fresh and fresh / "notebooks")
    totals = ahead or totals
    # Only here: regenerating what speaks of all records at once is no business of a single notebook.
    from ffrlib import check, pictures, store, verdicts

    if fresh is None:
        store.write_index()
        verdicts.main()
        pictures.main()
    more = "".join(f", {totals[name]} {name}" for name in ("diverged", "missing") if totals[name])
    if fresh is None:
        print("Read next: results/verdicts.md, results/tables, and the executed notebooks in build/notebooks")
    print(f"{totals['reused']} records reused, {totals['trained']} trained{more}")
    if fresh is None:
        return 0
    return check.compare(committed=REPOSITORY / "results", fresh=fresh / "results")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, RuntimeError, papermill.PapermillExecutionError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted: finished records are kept, call it again to go on.")
