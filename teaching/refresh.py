"""Run lessons and store their outputs, small and without what changes from run to run.

    python teaching/refresh.py                      the start notebook, explore and all lessons
    python teaching/refresh.py notebooks/lessons/4_feature_flow.ipynb

Pictures are stored with a palette of 128 colours (a third of the bytes), cells tagged `widget` without output (a widget
is nothing without its kernel; a picture stands beside it), and so are cells tagged `live` (they show a file that has a
place of its own and changes without the lesson); warnings and timestamps not at all.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = REPOSITORY / "notebooks"
PATTERNS = ("00_start_here.ipynb", "explore.ipynb", "lessons/*.ipynb")


def smaller(png: str) -> str:
    """A base64 PNG with at most 128 colours, or the old one where that is no smaller."""
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    text = base64.b64encode(small.getvalue()).decode()
    return text if len(text) < len(png) else png


def merged(outputs: list) -> list:
    """The outputs without stderr, neighbouring prints in one: how a kernel splits them depends on its speed."""
    kept = []
    for output in (o for o in outputs if o.get("name") != "stderr"):
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The executed notebook as it is committed; in place."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        fleeting = {"widget", "live"} & set(cell.metadata.get("tags", []))
        cell.outputs = [] if fleeting else merged(cell.outputs)
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def refresh(path: Path) -> float:
    """Execute one notebook in its folder from a clean kernel and write it back; returns the seconds it took.

    nbclient sometimes waits for ever for a cell with widgets that has long ended (jupyter/nbclient, issue 312): a cell
    that takes two minutes is given up, and the notebook begun anew, twice.
    """
    where = {"metadata": {"path": str(path.parent)}}
    for left in (2, 1, 0):
        notebook, start = nbformat.read(path, 4), time.monotonic()
        client = NotebookClient(notebook, kernel_name="python3", record_timing=False, resources=where, timeout=120,
                                startup_timeout=600)  # fmt: skip
        try:
            client.execute()
            break
        except CellTimeoutError:
            if not left:
                raise
            print(f"{path.name}: a cell took more than two minutes; once more ...", flush=True)
    seconds = time.monotonic() - start
    nbformat.write(tidy(notebook), path)
    return seconds


if __name__ == "__main__":
    everything = [path for pattern in PATTERNS for path in sorted(NOTEBOOKS.glob(pattern))]
    for path in [Path(name) for name in sys.argv[1:]] or everything:
        print(f"{path.name}: {refresh(path):.1f} s, {path.stat().st_size / 1000:.0f} kB")
