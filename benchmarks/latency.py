"""MACs removed against time saved: VGG16 and ResNet-56 with 0, 50 and 75 % fewer channels or as many scattered zeros.

    python benchmarks/latency.py [--threads 1] [--rounds 7] [--device cpu] [--onnx]
    python benchmarks/latency.py --cuts

Writes results/benchmarks/latency.json and .md; with `--cuts` latency_cuts, of the nets that stored cuts have left (seed
0), whose records were often made on a busy machine. The nets have random weights: only shapes and zeros matter here.
The variants of a net take turns, so that whatever else the machine does hits them alike; a figure is the median over
the rounds, the spread the distance between their quartiles. About two minutes on one quiet thread. With `--onnx` (the
extra of that name) the same nets also run in onnxruntime, as rows of their own.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
from importlib.metadata import version

import torch

from ffrlib import measure, models, store, tables
from ffrlib.files import results_folder, write_atomically
from ffrlib.pruning import budgets

NETS = {"vgg16": None, "resnet56": "A"}
SHARES = (0.5, 0.75)
BATCHES = (1, 64)
SHAPE = (3, 32, 32)
SHAPES = {"digits": (1, 8, 8)}  # of the sets whose images are others


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


class InOnnxruntime(torch.nn.Module):
    """A net as an onnxruntime session with one thread count for all of it; takes and returns tensors."""

    def __init__(self, net: torch.nn.Module, batch: int, threads: int):
        import onnxruntime

        super().__init__()
        self.weight, file = (
            torch.nn.Parameter(torch.zeros(1)),
            io.BytesIO(),
        )  # a parameter tells `latency` dtype and device
        plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format).eval()
        torch.onnx.export(plain, (torch.rand(batch, *SHAPE),), dynamo=True, verbose=False).save(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (name,) = (given.name for given in self.session.get_inputs())
        return torch.from_numpy(self.session.run(None, {name: x.contiguous().numpy()})[0])


def stored_cuts() -> dict[tuple[str, str, tuple], list]:
    """(net, shortcut, shape of an image) -> dense net and those of stored cuts, as `variants` gives them; each once,
    random weights at the widths that the record tells."""
    found: dict[tuple, dict] = {}
    for r in store.load_all()[0]:
        spec, widths = r["spec"], tuple(r["metrics"].get("widths", ()))
        if widths and spec.seed == 0 and spec.pruning.score != "none":
            place = (spec.model, spec.shortcut, SHAPES.get(spec.data, SHAPE))
            label = [tables.LABELS[n](spec) for n in ("net", "arm", "strength", "score", "budget", "amount")]
            found.setdefault(place, {}).setdefault(widths, []).append(" ".join(filter(None, label)))
    out = {}
    for (name, shortcut, shape), cuts in found.items():
        dense = models.build(name, shortcut=shortcut or None)
        whole, out[name, shortcut, shape] = measure.macs(dense, shape), [("dense", 0.0, dense, 0.0)]
        for widths, labels in sorted(cuts.items(), key=lambda item: item[1]):
            small = models.build(name, shortcut=shortcut or None, widths=widths)
            removed = 1 - measure.macs(small, shape) / whole
            out[name, shortcut, shape].append(("; ".join(sorted(labels)), removed, small, removed))
    return out


def measured(nets: list, batch: int, rounds: int, shape=SHAPE, **labels) -> list[dict]:
    """One row for each (kind, share, net, MACs removed) of `nets`, the first of which is the dense one."""
    times: list[list[float]] = [[] for _ in nets]
    for _ in range(rounds):
        for (_, _, net, _), own in zip(nets, times):
            own.append(measure.latency(net, batch, shape, seconds=0.0, least=2 if batch > 1 else 10)["median"])
    rows, dense = [], statistics.median(times[0])
    for (kind, share, _, removed), own in zip(nets, times):
        low, middle, high = statistics.quantiles(own, n=4, method="inclusive")
        rows.append({**labels, "kind": kind, "share": share, "batch": batch, "macs_removed": removed,
                     "median_ms": middle, "spread_ms": high - low, "time_saved": 1 - middle / dense})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--onnx", action="store_true", help="also in onnxruntime, on the CPU")
    parser.add_argument("--cuts", action="store_true", help="the nets that stored cuts have left, instead")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error(f"--rounds is {given.rounds}; allowed: 2 or more, for a spread")
    if given.cuts and given.onnx:
        parser.error("--onnx times the nets of NETS, not those of --cuts")
    torch.set_num_threads(given.threads)
    rows, others = [], []
    families = stored_cuts() if given.cuts else {(n, s, SHAPE): variants(n, s) for n, s in NETS.items()}
    for (name, shortcut, shape), nets in families.items():
        nets = [(k, s, net.to(given.device, memory_format=torch.channels_last), removed) for k, s, net, removed in nets]
        for batch in BATCHES:
            labels = {"net": name, "shortcut": shortcut or ""}
            rows += measured(nets, batch, given.rounds, shape, **labels)
            if given.onnx:
                exported = [(k, s, InOnnxruntime(net, batch, given.threads), removed) for k, s, net, removed in nets]
                others += measured(exported, batch, given.rounds, **labels)
    cuda = torch.device(given.device).type == "cuda"
    made = {"device": torch.cuda.get_device_name() if cuda else "cpu", "cpu": store.cpu_type(),
            "threads": given.threads, "rounds": given.rounds, "precision": "float32",
            "torch": torch.__version__}  # fmt: skip
    if given.onnx:
        made["onnxruntime"] = version("onnxruntime")
    text = [
        "# Latency of cut nets",
        f"Device {made['device']} ({made['cpu']}), {made['threads']} thread(s), {made['precision']}, "
        f"torch {made['torch']}, median of {made['rounds']} rounds. Written by `benchmarks/latency.py`.\n",
        "| net | engine | kind | share | batch | MACs removed, or multiplied by zero | ms | spread | time saved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r, engine in [(r, "eager") for r in rows] + [(r, f"onnxruntime {made.get('onnxruntime')}") for r in others]:
        text.append(
            f"| {r['net']} {r['shortcut']} | {engine} | {r['kind']} | {r['share']:.0%} | {r['batch']} "
            f"| {r['macs_removed']:.1%} | {r['median_ms']:.2f} | {r['spread_ms']:.2f} | {r['time_saved']:.1%} |"
        )
    folder, stem = results_folder() / "benchmarks", "latency_cuts" if given.cuts else "latency"
    write_atomically(
        folder / f"{stem}.json",
        json.dumps(store.tidy({"provenance": made, "rows": rows, "onnxruntime": others}), indent=1) + "\n",
    )
    print(write_atomically(folder / f"{stem}.md", "\n".join(text) + "\n"))


if __name__ == "__main__":
    main()
