"""The numbers that prose may cite, each written `<!--value:NAME-->98.3<!--/value-->` in README, docs and notebooks."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

import pandas as pd

from ffrlib import catalogue, rendering, tables
from ffrlib.files import REPOSITORY, results_folder
from ffrlib.spec import SCALES, require

SHARES = ("_share", "_channels", "_sparsity", "_removed", "_kernels")  # how the names of metrics end that are shares
CITED = (("1_hgsr_criteria", "strengths"), ("4_ffr_flow", "strengths"), ("3_hgsr_pruning", "cut"),
         ("5_ffr_pruning", "cut"), ("5_ffr_pruning", "before_cut"), ("4_ffr_flow", "recipes"),
         ("6_ffr_readings", "readings"), ("7_both_papers", "together"),
         ("7_both_papers", "equal_budget"))  # fmt: skip
NAMED = {"cut": ("score", "budget", "amount"), "equal_budget": ("score", "budget", "amount"),
         "recipes": ("epochs", "weight_decay"), "readings": ("reading",)}  # fmt: skip
PROSE = ("README.md", "docs/*.md", "notebooks/*.ipynb", "notebooks/*/*.ipynb", "teaching/*.md")
VALUE = re.compile(r"<!--value:([^>]+?)-->((?:(?!<!--).)*)<!--/value-->")  # a mark left open takes no other with it


def values(records: list[dict], found: list[dict]) -> dict[str, str]:
    """Name -> text of each number that prose may cite, shares in percent: plain runs, every arm at the strength chosen
    for weights, every cut, what is cut, recipe and reading, the verdicts `found`; e.g.
    `quick.digits_digits_cnn.both.test_accuracy`."""
    own = {scale: tables.counted(records, scale) for scale in SCALES}  # a reader's own runs change no number
    out = {"records": str(sum(map(len, own.values())))}
    for scale, runs in own.items():
        seconds = sum(r["provenance"]["seconds"] for r in runs)
        out |= {f"{scale}.records": str(len(runs)), f"{scale}.minutes": f"{seconds / 60:.0f}"}
    made = {scale: rendering.tables_of(scale, own[scale]) for scale in SCALES}
    for scale, (experiment, kind) in product(SCALES, CITED):
        first: dict[tuple, str] = {}  # (net, arm) -> strength: those of other strengths have it in their names
        for row in made[scale][experiment][kind].to_dict("records"):
            other = first.setdefault((row["net"], row["arm"]), row["strength"]) != row["strength"]
            at = f" at {row['strength']}" * (other and kind != "strengths")
            place = [scale, row["net"], row["arm"] + at, *([] if kind == "strengths" else [kind])]
            place += [row[n] or "default" for n in NAMED.get(kind, ())]
            wanted = row["n"] and (kind != "strengths" or row["arm"] == "plain" or "weights" in row["chosen for"])
            metrics = [c for c in row if f"{c} low" in row and isinstance(row[c], float) and math.isfinite(row[c])]
            metrics += [f"{c} {limit}" for c in metrics if c.startswith("change in") for limit in ("low", "high")]
            metrics = [c for c in metrics if math.isfinite(row[c])]  # one seed has no interval
            for metric in ["n", *metrics] if wanted else ():
                value = row[metric]
                share = metric.removesuffix(" low").removesuffix(" high").endswith(SHARES)
                shown = f"{100 * value:.1f}" if share else rendering.text(metric, value)
                name = ".".join([*place, metric]).replace(", ", "_").replace(" ", "_")
                require(out.setdefault(name, shown) == shown, f"the value {name}", shown, f"only {out[name]}")
    for scale, kind in product(SCALES, ("confirmation", "other_choices", "one_left_out")):
        for row in made[scale][catalogue.FIRM].get(kind, pd.DataFrame()).to_dict("records"):
            place = f"{scale}.{row['net']}.{kind}.{row['claim']}.{row['part']}".replace(" - ", "-").replace(" ", "_")
            leads = {n.replace(" ", "_"): f"{x:.1f}" for n, x in row.items() if isinstance(x, float) and x == x}
            out |= {f"{place}.{n}": x for n, x in leads.items()}
            out |= {
                f"{place}.{n}".replace(" ", "_"): str(row[n]) for n in ("n", "verdict", "same strengths") if n in row
            }
    for v in found:
        place = f"{v['claim']}.{v['scale']}.{v['set']}_{v['net']}".replace(" ", "_")
        out |= {f"{place}.verdict": v["verdict"], f"{place}.runs_needed": str(v["runs_needed"])}
        out |= {f"{place}.{n}": f"{x:.2f}" for n, x in (v["effect"] or {}).items() if isinstance(x, float)}
    return dict(sorted(out.items()))


def numbers(text: str, known: dict[str, str]) -> list[tuple[str, str, str | None]]:
    """(name, written, right) of each cited number that is not the known one; right is None for an unknown name."""
    return [(name, shown, known.get(name)) for name, shown in VALUE.findall(text) if known.get(name) != shown]


def files() -> list[Path]:
    """The files whose cited numbers are refreshed and checked: none where FFR_RESULTS names another store, since the
    repository's prose speaks of the repository's records."""
    ours = results_folder().resolve() == (REPOSITORY / "results").resolve()
    return [path for pattern in PROSE * ours for path in sorted(REPOSITORY.glob(pattern))]


def refreshed(text: str, known: dict[str, str]) -> str:
    """The text with every cited number as known; one with an unknown name is left as it is (`check` reports it)."""
    return VALUE.sub(lambda m: f"<!--value:{m[1]}-->{known.get(m[1], m[2])}<!--/value-->", text)
