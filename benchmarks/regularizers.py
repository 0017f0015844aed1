"""What the penalties cost beside a plain training step at batch 128: time, bytes kept for backward, peak memory.

    python benchmarks/regularizers.py [--threads 1] [--rounds 10] [--nets resnet20 ...]

All variants take turns within one run. One thread is timed in CPU time, which other processes disturb least; several in
wall time. Each figure is the least over the rounds. Writes results/benchmarks/regularizers.json and .md.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from ffrlib import models, training  # noqa: E402
from ffrlib.regularizers.flow import activation_penalty, flow_penalty  # noqa: E402
from ffrlib.regularizers.weight import CRITERIA, FORMS, weight_penalty  # noqa: E402

BATCH = 128
LIMITS = {"weights": 0.05, "block_output": 0.15, "post_activation": 0.40, "bytes": 0.10}
NETS = ("alexnet_small", "vgg11_small", "resnet20", "vgg16")
TAPS = {"resnet20": ("block_output", "post_activation"), "vgg16": ("post_activation",)}
LOW = training.fast_bfloat16()


def naive_weight_penalty(model, name, grouping):
    """Layer by layer through autograd, as one writes it first (its gradient is NaN at a zero kernel or group)."""
    norm, inner, outer = FORMS[name]
    total = 0
    for _, conv in models.counted_convolutions(model):
        kernels = (conv.weight.abs() if norm == 1 else conv.weight**2).sum((2, 3))
        total = total + ((kernels**inner).sum(0 if grouping == "feature" else 1) ** outer).sum()
    return total


def naive_flow_penalty(features):
    """Length and curvature, mean L1, strengths 0.1, as one writes them first."""
    total = 0
    for x, y in pairwise(features):
        if x.shape == y.shape:
            total = total + 0.1 * (y - x).abs().mean()
    for x, y, z in zip(features, features[1:], features[2:]):
        if x.shape == y.shape == z.shape:
            total = total + 0.1 * (z - 2 * y + x).abs().mean()
    return total


FLOWS = {
    "ours": lambda features: flow_penalty(features, 0.1, 0.1),
    "naive": naive_flow_penalty,
    "activation control": lambda features: 0.1 * activation_penalty(features),
}


class Step:
    """A training step of one net on random images, channels_last, in the precision that training would take."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.model = models.build(name, shortcut="A" if name in TAPS and name != "vgg16" else None)
        self.model.to(memory_format=torch.channels_last)
        self.x = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
        self.y = torch.randint(10, (BATCH,))
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)

    def loss(self, tap=None, penalty=None):
        with torch.autocast("cpu", dtype=torch.bfloat16) if LOW else nullcontext():
            logits, features = self.model.flow(self.x, tap) if tap else (self.model(self.x), None)
        loss = F.cross_entropy(logits.float(), self.y)
        return loss + penalty(features) if penalty else loss

    def run(self, tap=None, penalty=None):
        self.optimiser.zero_grad(set_to_none=True)
        self.loss(tap, penalty).backward()
        self.optimiser.step()

    def kept_bytes(self, tap=None, penalty=None):
        """Bytes of the storages that autograd keeps; one that several tensors share counts once."""
        kept = {}

        def pack(t):
            kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)  # t stays alive: no address twice
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            self.loss(tap, penalty)
        return sum(size for size, _ in kept.values())


def least(functions, rounds, clock):
    """Seconds of each function, the least over the rounds, in which all take turns."""
    for f in functions.values():
        f()
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, f in functions.items():
            start = clock()
            f()
            best[name] = min(best[name], clock() - start)
    return best


def weights(name, rounds, clock):
    """Forward and backward of each criterion over all convolutions, gradients added to those there / plain step."""
    step = Step(name)
    functions = {"plain": step.run}
    for criterion in CRITERIA:
        for grouping in ("feature", "neuron"):

            def ours(criterion=criterion, grouping=grouping):
                weight_penalty(step.model, criterion, 1e-6, grouping).backward()

            def naive(criterion=criterion, grouping=grouping):
                (1e-6 * naive_weight_penalty(step.model, criterion, grouping)).backward()

            functions[criterion, grouping, "ours"], functions[criterion, grouping, "naive"] = ours, naive
    seconds = least(functions, rounds, clock)
    rows = []
    for criterion in CRITERIA:
        for grouping in ("feature", "neuron"):
            mine, theirs = (seconds[criterion, grouping, which] for which in ("ours", "naive"))
            share = mine / seconds["plain"]
            rows.append({"net": name, "criterion": criterion, "grouping": grouping, "plain_ms": 1e3 * seconds["plain"],
                         "ms": 1e3 * mine, "share": share, "naive_over_ours": theirs / mine,
                         "limit": LIMITS["weights"], "met": share <= LIMITS["weights"]})  # fmt: skip
    return rows


def peak(name, tap, which):
    """Peak resident bytes of three steps in a process of its own."""
    arguments = [sys.executable, __file__, "--peak", name, tap, which, "--threads", str(torch.get_num_threads())]
    return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def flows(name, rounds, clock):
    """A whole step with a penalty / the plain step, and bytes likewise."""
    step, rows = Step(name), []
    variants = {(tap, which): (tap, f) for tap in TAPS[name] for which, f in FLOWS.items()}
    seconds = least({k: lambda v=v: step.run(*v) for k, v in {"plain": (), **variants}.items()}, rounds, clock)
    kept, most = step.kept_bytes(), peak(name, "none", "plain")
    for (tap, which), variant in variants.items():
        more_time, more_bytes = seconds[tap, which] / seconds["plain"] - 1, step.kept_bytes(*variant) / kept - 1
        rows.append({"net": name, "tap": tap, "penalty": which, "plain_ms": 1e3 * seconds["plain"],
                     "more_time": more_time, "more_bytes": more_bytes,
                     "more_peak": peak(name, tap, which) / most - 1, "limit": LIMITS[tap],
                     "met": more_time <= LIMITS[tap] and more_bytes <= LIMITS["bytes"]})  # fmt: skip
    return rows


def cpu_name():
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in info]
    return " ".join([names[0] if names else platform.processor() or platform.machine(), *flags])


def table(result):
    """The figures as Markdown."""
    m = result["machine"]
    lines = [
        "# What the penalties cost", "",
        f"CPU: {m['cpu']}; {m['threads']} thread(s), {m['clock']}; batch {BATCH}, {m['precision']}; "
        f"torch {m['torch']}, Python {m['python']}. Load of the machine while measuring: {m['load']}.", "",
        "## Weight penalties: forward and backward over all convolutions, beside the plain step", "",
        "| net | plain step | criterion, grouping | time | share of the step | limit | naive / ours |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in result["weights"]:
        verdict = "met" if r["met"] else "**MISSED**"
        lines.append(
            f"| {r['net']} | {r['plain_ms']:.1f} ms | {r['criterion']}, {r['grouping']} | {r['ms']:.2f} ms "
            f"| {r['share']:.1%} | {r['limit']:.0%} {verdict} | {r['naive_over_ours']:.2f} |"
        )
    lines += ["", "## Flow penalties: the whole step, length and curvature, mean L1", "",
              "| net | tap | penalty | plain step | more time | limit | more bytes kept | peak memory |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in result["flow"]:
        verdict = ("met" if r["met"] else "**MISSED**") if r["penalty"] == "ours" else ""
        lines.append(
            f"| {r['net']} | {r['tap']} | {r['penalty']} | {r['plain_ms']:.1f} ms | {r['more_time']:+.1%} "
            f"| {r['limit']:.0%} {verdict} | {r['more_bytes']:+.1%} | {r['more_peak']:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--nets", nargs="*", default=NETS, choices=NETS)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    parser.add_argument("--peak", nargs=3, metavar=("NET", "TAP", "PENALTY"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.peak:
        name, tap, which = a.peak
        step = Step(name)
        for _ in range(3):
            step.run(*((tap, FLOWS[which]) if which in FLOWS else ()))
        unit = 1 if sys.platform == "darwin" else 1024
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
        return
    clock = time.process_time if a.threads == 1 else time.perf_counter
    result = {"format": 1, "weights": [], "flow": []}
    for name in a.nets:
        rounds = max(3, a.rounds // 3) if name == "vgg16" else a.rounds
        result["weights"] += weights(name, rounds, clock)
        result["flow"] += flows(name, rounds, clock) if name in TAPS else []
    result["machine"] = {
        "cpu": cpu_name(), "threads": a.threads, "clock": "CPU time" if a.threads == 1 else "wall time",
        "precision": "bfloat16 autocast" if LOW else "float32", "torch": torch.__version__,
        "python": platform.python_version(), "rounds": a.rounds, "load": " ".join(f"{v:.1f}" for v in os.getloadavg()),
    }  # fmt: skip
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "regularizers.md").write_text(table(result))
    (a.out / "regularizers.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
