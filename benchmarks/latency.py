"""MACs removed against time saved: VGG16 and ResNet-56 with 0, 50 and 75 % fewer channels or as many scattered zeros.

    python benchmarks/latency.py [--threads 1] [--rounds 7] [--device cpu]

Writes results/benchmarks/latency.json and .md. The nets have random weights, since only shapes and zeros matter here.
The variants of a net take turns, so that whatever else the machine does hits them alike; a figure is the median over
the rounds, the spread the distance between their quartiles. About two minutes on one quiet thread.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from ffrlib import measure, models, store
from ffrlib.files import results_folder, write_atomically
from ffrlib.pruning import budgets

NETS = {"vgg16": None, "resnet56": "A"}
SHARES = (0.5, 0.75)
BATCHES = (1, 64)
SHAPE = (3, 32, 32)


def variants(name: str, shortcut: str | None) -> list[tuple[str, float, torch.nn.Module, float]]:
    """(kind, share, net, share of the dense net's MACs that it does without, or that multiply a zero)."""
    torch.manual_seed(0)
    dense = models.build(name, shortcut=shortcut)
    whole, out = measure.macs(dense, SHAPE), [("dense", 0.0, dense, 0.0)]
    for share in SHARES:
        small = models.build(name, shortcut=shortcut, widths=models.scaled_widths(name, 1 - share, shortcut))
        out.append(("fewer channels", share, small, 1 - measure.macs(small, SHAPE) / whole))
    for share in SHARES:
        masks, zeros = budgets.magnitude_mask(dense, share), measure.cut_weights(dense, share)
        where = budgets.positions(dense, SHAPE)
        idle = sum(int((~mask).sum()) * where[weight.removesuffix(".weight")] for weight, mask in masks.items())
        out.append(("scattered zeros", share, zeros, idle / whole))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name, shortcut in NETS.items():
        nets = [
            (kind, share, net.to(given.device, memory_format=torch.channels_last), removed)
            for kind, share, net, removed in variants(name, shortcut)
        ]
        for batch in BATCHES:
            times: list[list[float]] = [[] for _ in nets]
            for _ in range(given.rounds):
                for (_, _, net, _), own in zip(nets, times):
                    own.append(measure.latency(net, batch, SHAPE, seconds=0.0, least=2 if batch > 1 else 10)["median"])
            dense = statistics.median(times[0])
            for (kind, share, _, removed), own in zip(nets, times):
                low, middle, high = statistics.quantiles(own, n=4, method="inclusive")
                rows.append({"net": name, "shortcut": shortcut or "", "kind": kind, "share": share, "batch": batch,
                             "macs_removed": removed, "median_ms": middle, "spread_ms": high - low,
                             "time_saved": 1 - middle / dense})  # fmt: skip
                print(rows[-1], flush=True)
    cuda = torch.device(given.device).type == "cuda"
    made = {"device": torch.cuda.get_device_name() if cuda else "cpu", "cpu": store.cpu_type(),
            "threads": given.threads, "rounds": given.rounds, "precision": "float32",
            "torch": torch.__version__}  # fmt: skip
    text = [
        "# Latency of cut nets",
        f"Device {made['device']} ({made['cpu']}), {made['threads']} thread(s), {made['precision']}, "
        f"torch {made['torch']}, median of {made['rounds']} rounds. Written by `benchmarks/latency.py`.\n",
        "| net | kind | share | batch | MACs removed | ms | spread | time saved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        text.append(
            f"| {r['net']} {r['shortcut']} | {r['kind']} | {r['share']:.0%} | {r['batch']} | {r['macs_removed']:.1%} "
            f"| {r['median_ms']:.2f} | {r['spread_ms']:.2f} | {r['time_saved']:.1%} |"
        )
    folder = results_folder() / "benchmarks"
    write_atomically(
        folder / "latency.json", json.dumps(store.tidy({"provenance": made, "rows": rows}), indent=1) + "\n"
    )
    print(write_atomically(folder / "latency.md", "\n".join(text) + "\n"))


if __name__ == "__main__":
    main()
