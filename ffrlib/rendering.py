"""How a table is written: cells as text, CSV and Markdown, and a styled view for notebooks."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ffrlib import catalogue, firmness
from ffrlib.files import results_folder, write_atomically
from ffrlib.tables import NOT_CHOSEN, NOT_REACHED, NOT_RUN, experiment_tables

BUSY = (
    " Latencies were taken while other runs shared the machine: compare them only with those before the cut in the "
    "same row (`latency_left` is their ratio), and where few runs stand behind a row not even those. Quiet ones: "
    "results/benchmarks/latency_cuts.md, of the same nets (seed 0), and latency.md."
)
MEANS = "Mean [95 % interval] of n runs; shares in [0, 1]."
NOTES = {  # what a reader of a table must know beside it
    "equal_sparsity": " Accuracy with |w| < 0.001 zeroed, interpolated between those two strengths of a seed whose "
                      "shares are next to the sparsity, where every seed reaches it with nets no more than 10 points "
                      "below the plain one; the last column but one is the lowest accuracy of these. Decides nothing.",
    "published": "Numbers of other papers and codes, not ours, with their sources (data/published.csv); other recipes, "
                 "and other shares cut. An empty cell was not available to us. Below those of a net our own cuts of it "
                 "at this scale, where there are runs: means, with the number of runs and their record keys as source; "
                 "at laptop they are fine-tuned for one epoch (`2 epochs more` is training before the cut), at paper "
                 "for twenty.",
    "cut": BUSY, "equal_budget": BUSY,
    "confirmation": " Leads in points: of prunable weights, before (on the seeds that chose the strengths) and on n "
                    "fresh seeds, of which the verdict is; and, on these, of test accuracy: with channels cut and no "
                    "fine-tuning, as trained, and with each net's own prunable weights removed.",
    "other_choices": " Leads in points of prunable weights, with strengths chosen by other rules than the protocol's "
                     "(within 1). Decides nothing.",
    "one_left_out": " Leads in points of prunable weights, with strengths chosen by the protocol's rule; in brackets, "
                    "in place of an interval, the least and the largest lead where any one of the n seeds is left out "
                    "of choice and comparison; `same strengths`: in how many of these cases the rule takes the "
                    "strengths that it takes on all seeds (where it takes none, there is no lead). Decides nothing.",
}  # fmt: skip


def text(column: str, value) -> str:
    """One cell: text and whole numbers as they are, accuracies with 2 decimals, others to 4 digits or whole."""
    if not isinstance(value, float) or math.isnan(value):
        return "" if value != value else str(value)
    value = 0.0 if abs(value) < 1e-12 else value  # what is left of a difference of equal numbers depends on the machine
    digits = 2 if "accuracy" in column or column.startswith("lead") else 0
    return f"{round(value, digits) + 0.0:.{digits}f}" if digits or abs(value) >= 100 else f"{value:.4g}"


def readable(table: pd.DataFrame, merged: bool = True) -> pd.DataFrame:
    """The table as text; `merged`: mean and limits in one cell, "91.25 [90.98, 91.52]"."""
    out = pd.DataFrame({c: [text(c, v) for v in table[c].tolist()] for c in table.columns}, dtype=object)
    for c in [c for c in out.columns if merged and f"{c} low" in out]:
        limits = zip(out[c], out.pop(f"{c} low"), out.pop(f"{c} high"))
        bare = {"", NOT_RUN, NOT_REACHED}  # of one run, or none: without limits
        same = not c.startswith("lead")  # equal numbers of all seeds need no interval where n stands in the row
        out[c] = [m if low in bare | ({m} if same else set()) else f"{m} [{low}, {high}]" for m, low, high in limits]
    return out


def styled(table: pd.DataFrame):
    """The table for a notebook: readable, without index and keys; what was not run or not reached is grey."""
    shown = readable(table).drop(columns="keys", errors="ignore").style.hide(axis="index")
    return shown.map(lambda cell: "color: #888" if cell in (NOT_RUN, NOT_REACHED, NOT_CHOSEN) else "")


def write(tables: dict[str, pd.DataFrame], experiment: str, scale: str, root: Path | None = None) -> list[Path]:
    """Writes tables/<scale>/<experiment>-<table>.csv and .md under `root` (results/): equal records, equal bytes."""
    folder, written = Path(root or results_folder()) / "tables" / scale, []
    for name, table in tables.items():
        shown = readable(table)
        about = NOTES[name].strip() if name in ("published", "one_left_out") else MEANS + NOTES.get(name, "")
        head = [f"# {experiment}, {name}, scale {scale}", "", about, ""]
        body = [list(shown), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
        lines = "\n".join([*head, *("| " + " | ".join(row) + " |" for row in body)]) + "\n"
        columns = readable(table, merged=False).to_csv(index=False, lineterminator="\n")
        place = folder / f"{experiment}-{name}"
        written += [write_atomically(f"{place}.md", lines), write_atomically(f"{place}.csv", columns)]
    return written


def write_all(scale: str, records: list[dict], root: Path | None = None) -> list[Path]:
    """Writes all tables of a scale, from its records among `records`."""
    own = tables_of(scale, [r for r in records if r["scale"] == scale])
    return [path for name, made in own.items() for path in write(made, name, scale, root)]


def tables_of(scale: str, records: list[dict]) -> dict[str, dict[str, pd.DataFrame]]:
    """Experiment -> its tables, from the records of a scale."""
    found = {name: experiment_tables(name, scale, records) for name in catalogue.RUNS if name != catalogue.FIRM}
    return found | {catalogue.FIRM: firmness.firm_tables(scale, records)}
