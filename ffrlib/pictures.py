"""README's picture and that of the latencies: `python -m ffrlib.pictures`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from ffrlib import store, tables
from ffrlib.catalogue import BASES, FFR_NETS, FLOW_ARMS, HGSR_NETS, HSQ_GL12
from ffrlib.figures import BESIDE, BLUE, GREY, LOOKS, OTHERS, RED, near, panels, plot, rows
from ffrlib.files import results_folder
from ffrlib.saving import save
from ffrlib.spec import CRITERIA, SCALES, RunSpec, key

FIRST = {"1_hgsr_criteria": HGSR_NETS, "4_ffr_flow": FFR_NETS}  # the experiment that README shows of each paper
SHOWN = {"1_hgsr_criteria": CRITERIA, "4_ffr_flow": FLOW_ARMS}  # ... and the arms that it must have


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


def on_first_net(name: str, scale: str) -> list[RunSpec]:
    """The cells of one of the two papers' first experiments on its first net: plain, and with each penalty."""
    base = BASES[scale][FIRST[name][scale][0]]
    return [s for s in tables.unseeded(name, scale) if tables.plain_of(s) == base]


def readme(scale: str) -> Figure:
    """README's picture: what some of HGSR's criteria (left) and FFR's arms (right) free at what accuracy, without the
    strengths that cost more than five points."""
    records, _ = store.load_all(scale=scale)
    fig, (axes,) = panels(1, 2, 4.4, 2.9, 1.2)
    looks = BESIDE | {"group_lasso": ("group lasso", BLUE, "-", "o"), HSQ_GL12: ("squared GL12", RED, "--", "s")}
    flow = LOOKS | {"both": ("FFR: both terms", *LOOKS["both"][1:])}
    titles = ("penalties on weights", "on the feature flow")
    for ax, name, own, title in zip(axes, FIRST, (looks, flow), titles):
        specs = on_first_net(name, scale)
        base, keys = tables.plain_of(specs[0]), {key(s) for s in specs}
        frame = rows([r for r in tables.seeds_of(records) if r["key"] in keys])
        plot(ax, near(frame, 5), own, "removable_weight_share", "test_accuracy", "strength")
        ax.set(title=f"{title}: {base.model}, {base.data}")
    return fig


def drawable(scale: str, name: str) -> bool:
    """Whether each arm of a paper's first experiment has three seeds at all its strengths: half a grid is no curve."""
    specs = on_first_net(name, scale)
    stored = all(store.record_path(replace(spec, seed=seed)).exists() for spec in specs for seed in range(3))
    return stored and {"plain", *SHOWN[name]} <= {tables.arm_of(spec) for spec in specs}


def main() -> None:
    """Makes README's picture, of the largest scale at which both papers are `drawable`, and that of the latencies."""
    folder = results_folder()
    scale = next((s for s in reversed(SCALES) if all(drawable(s, name) for name in FIRST)), "quick")
    alt = f"Test accuracy against the share of prunable weights, HGSR left, FFR right; scale {scale};"
    alt += " strengths that cost over 5 points left out."
    paths = save(readme(scale), "readme", "", alt)
    if (latency := folder / "benchmarks" / "latency.json").exists():
        alt = "Time saved against MACs removed, for nets with fewer channels and for nets with scattered zeros."
        paths += save(time_saved(json.loads(latency.read_text())["rows"]), "latency", "", alt)
    print(*paths, sep="\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
