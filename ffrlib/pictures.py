"""README's picture and that of the latencies: `python -m ffrlib.pictures`."""

from __future__ import annotations

import argparse
import json

import pandas as pd
from matplotlib.figure import Figure

from ffrlib import store, tables
from ffrlib.catalogue import BASES, HSQ_GL12
from ffrlib.figures import BLUE, GREY, LOOKS, OTHERS, RED, near, panels, plot, rows
from ffrlib.files import results_folder
from ffrlib.saving import save
from ffrlib.spec import key

DIGITS = BASES["quick"]["digits_cnn"]
SHOWN = {  # of each paper's first experiment: the title, and what is drawn
    "1_hgsr_criteria": ("HGSR: penalties on weights", LOOKS | {
        "l1": ("L1, no groups", GREY, "-.", "v"), "group_l12": ("GL12, flat", BLUE, "-", "o"),
        HSQ_GL12: ("squared GL12", RED, "--", "s")}),
    "4_ffr_flow": ("FFR: penalties on the feature flow", LOOKS | {"both": ("FFR, both terms", *LOOKS["both"][1:])}),
}  # fmt: skip


def time_saved(measured: list[dict]) -> Figure:
    """MACs removed against time saved, a panel a net; `measured`: the rows of benchmarks/latency.json. On the dotted
    line time goes as MACs go."""
    frame = pd.DataFrame([r for r in measured if r["share"]])
    frame[["macs_removed", "time_saved"]] *= 100
    frame["group"] = frame["kind"] + ", batch " + frame["batch"].astype(str)
    looks = {group: (group, *OTHERS[k]) for k, group in enumerate(sorted(set(frame["group"])))}
    fig, (axes,) = panels(1, frame["net"].nunique(), 4.6, 2.8, 1.6)
    for ax, (net, own) in zip(axes, frame.groupby("net")):
        ax.plot([0, 100], [0, 100], ":", color=GREY, linewidth=0.8)
        plot(ax, own, looks, "macs_removed", "time_saved", "share", "group")
        ax.set(title=net, xlabel="MACs removed, or multiplied by zero (%)")
    return fig


def readme() -> Figure:
    """README's picture, of the digits, the one scale that is complete: what a pair of H1 (left) and FFR's arms (right)
    free at what accuracy, without the strengths that cost more than five points. Both axes of x are the same."""
    records, _ = store.load_all(scale="quick")
    fig, (axes,) = panels(1, 2, 4.4, 2.9, 1.2)
    frame = rows(tables.seeds_of(records))
    drawn = []
    for name, (_, looks) in SHOWN.items():
        own = frame[frame["key"].isin([key(s) for s in tables.unseeded(name, "quick") if tables.plain_of(s) == DIGITS])]
        drawn.append(near(own[own["arm"].isin(looks)], 5))
    reach = pd.concat(drawn).groupby(["arm", "strength"])["removable_weight_share"].mean()
    for ax, own, (title, looks) in zip(axes, drawn, SHOWN.values()):
        if len(reach):
            ax.set_xlim(reach.min() - 5, reach.max() + 5)
        plot(ax, own, looks, "removable_weight_share", "test_accuracy", "strength")
        ax.set(title=title)
    return fig


def main() -> None:
    """Makes README's picture and that of the latencies."""
    alt = "Test accuracy against the share of prunable weights on the digits, HGSR left, FFR right; strengths that cost"
    paths = save(readme(), "readme", "", f"{alt} over 5 points left out.")
    if (latency := results_folder() / "benchmarks" / "latency.json").exists():
        alt = "Time saved against MACs removed, for nets with fewer channels and for nets with scattered zeros."
        paths += save(time_saved(json.loads(latency.read_text())["rows"]), "latency", "", alt)
    print(*paths, sep="\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
