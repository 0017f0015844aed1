"""Figures as files: PNG and SVG that are the same bytes whenever the records are."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from ffrlib.files import results_folder, write_atomically


def png(fig: Figure) -> bytes:
    """The picture as a PNG, without a date or version in it."""
    file = io.BytesIO()
    fig.savefig(file, format="png", metadata={"Software": None}, bbox_inches="tight")
    return file.getvalue()


def save(fig: Figure, name: str, scale: str, alt: str) -> list[Path]:
    """Writes figures/<scale>/<name>.png, .svg and .txt (what is to be seen, for those who cannot see it) of the store.
    The same figure gives the same bytes: the SVG's salt is fixed, and neither file holds a date or a version. One
    of a scale, with nothing in it that was run, is not kept."""
    if scale and not any(ax.has_data() for ax in fig.axes):
        for suffix in (".png", ".svg", ".txt"):
            (results_folder() / "figures" / scale / f"{name}{suffix}").unlink(missing_ok=True)
        return []
    svg, base = io.BytesIO(), results_folder() / "figures" / scale
    fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    contents = {".png": png(fig), ".svg": svg.getvalue(), ".txt": alt.strip() + "\n"}
    return [write_atomically(base / f"{name}{suffix}", content) for suffix, content in contents.items()]
