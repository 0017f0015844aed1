"""Verdicts on the claims H1-H4 and F1-F4 by the rules of docs/protocol.md.

`python -m ffrlib.verdicts` writes results/verdicts.md, verdicts.json and values.json, and refreshes the numbers in
prose (see `ffrlib.prose`). All effects are in points: of accuracy, or of a share in percent.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ffrlib import catalogue, prose, store, tables
from ffrlib.files import REPOSITORY, results_folder, write_atomically
from ffrlib.spec import CRITERIA, SCALES, RunSpec, base_of, key

LEVEL, PAIRS, MOST = 0.025, 5, 100  # one-sided level of a test, fewest pairs that decide, most seeds worth naming
SPARSER, NOT_LOST, AT_LEAST = (0.0, 1.0), (-0.3, -0.3), (-0.3, 0.0)  # (b, m) of docs/protocol.md, in points
WEIGHTS, CHANNELS = tables.BOTH
EQUAL_ACCURACY = {  # claim -> (arm, other arm, sparsity, decides) of each part
    "H1": [(c, tables.counterpart(c), m, True) for c in CRITERIA if tables.counterpart(c) for m in tables.BOTH],
    "F1": [("both", "plain", WEIGHTS, True)],
    "F2": [("both", "plain", CHANNELS, True)],
    "F4": [(arm, "control", m, arm == "both") for arm in ("both", "length", "curvature") for m in tables.BOTH],
}
UNTRIED = [*product(("F1", "F2"), ("vgg16", "resnet56"), ("tiny_imagenet",))]


@dataclass(frozen=True)
class Part:
    """One comparison: differences in points by seed, the limits (b, m), the keys of both arms ("" for none, "?" and its
    name for an arm that has no run to compare yet)."""

    name: str
    differences: pd.Series
    limits: tuple[float, float]
    keys: tuple[str, ...]
    decides: bool = True


# -- statistics --------------------------------------------------------------------------------------------------------
def p_value(differences, boundary: float, above: bool) -> float:
    """One-sided t test: small where the mean is `above` (else below) `boundary`. Without spread 0 or 1, by the side."""
    x = (np.asarray(differences, dtype=float) - boundary) * (1 if above else -1)
    if len(x) < 2 or np.ptp(x) < 1e-9:
        return 0.0 if len(x) > 1 and x[0] > 1e-9 else 1.0
    return float(stats.ttest_1samp(x, 0, alternative="greater").pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p values (Scandinavian Journal of Statistics 6, 1979), in the order given."""
    ascending = pd.Series(p_values, dtype=float).sort_values()
    adjusted = (ascending * np.arange(len(p_values), 0, -1)).cummax().clip(upper=1)
    return adjusted.sort_index().tolist()


def seeds_needed(x: np.ndarray, limits: tuple[float, float], parts: int) -> int:
    """Seeds that an undecided part still needs: up to 5, then to pass the first step of Holm's correction at the
    present mean and spread; `MOST` + 1 stands for more than `MOST`."""
    if len(x) < PAIRS:
        return PAIRS - len(x)
    distance, spread = abs(x.mean() - limits[0 if x.mean() >= limits[1] else 1]), x.std(ddof=1)
    n = len(x) + np.arange(1, MOST + 1)
    enough = distance * np.sqrt(n) > spread * stats.t.isf(LEVEL / parts, n - 1)
    return int(enough.argmax()) + 1 if enough.any() else MOST + 1


def judge(parts: list[Part]) -> list[dict]:
    """Each part's mean, interval, n, Holm-corrected verdict and the seeds it still needs."""
    up = holm([p_value(p.differences, p.limits[0], True) for p in parts])
    down = holm([p_value(p.differences, p.limits[1], False) for p in parts])
    out = []
    for part, p_up, p_down in zip(parts, up, down):
        x = part.differences.to_numpy(dtype=float)
        mean, low, high = (None if math.isnan(v) else round(v, 3) for v in tables.interval(x))
        verdict, needed = "undecided", 0
        if len(x) >= PAIRS and p_up < LEVEL and x.mean() >= part.limits[1]:
            verdict = "supported"
        elif len(x) >= PAIRS and p_down < LEVEL:
            verdict = "not supported"
        else:
            needed = seeds_needed(x, part.limits, len(parts))
        out.append({"part": part.name, "decides": part.decides, "verdict": verdict, "at_least": part.limits[1],
                    "mean": mean, "low": low, "high": high, "n": len(x), "p_above": f"{p_up:.2g}",
                    "p_below": f"{p_down:.2g}", "seeds_needed": needed,
                    "records": [k for k in part.keys if k and k[0] != "?"]})  # fmt: skip
    return out


def conclude(claim: str, judged: list[dict]) -> str:
    """Supported if all deciding parts are, not supported if one is not, else undecided. H2: see `crossing`."""
    found = [j["verdict"] for j in judged if j["decides"]]
    if claim == "H2":
        crossed = any(a == b == "supported" for a, b in zip(found[::2], found[1::2]))
        leads = [j["verdict"] == "supported" for j in judged if not j["decides"]]
        return "supported" if crossed else "not supported" if len(leads) > 1 and all(leads) else "undecided"
    if "not supported" in found:
        return "not supported"
    return "supported" if set(found) == {"supported"} else "undecided"


@functools.cache
def protocol() -> str:
    """Which version of the protocol these verdicts follow: the start of its SHA-256."""
    return hashlib.sha256((REPOSITORY / "docs" / "protocol.md").read_bytes()).hexdigest()[:10]


def entry(claim: str, scale: str, net: str, data: str, parts: list[Part]) -> dict:
    """The verdict on a claim for one net and set at one scale; its effect is that of the weakest part that decides."""
    judged = judge(parts)
    verdict = conclude(claim, judged)
    deciding = [j for j in judged if j["decides"]] or judged
    failing = [j for j in deciding if verdict == "not supported" == j["verdict"]]
    weakest = min(failing or deciding, key=lambda j: (j["n"] > 0, (j["mean"] or 0) - j["at_least"]), default=None)
    waiting = [j for j in deciding if j["verdict"] == "undecided"]
    seeds = max((j["seeds_needed"] for j in waiting), default=PAIRS) if verdict == "undecided" else 0
    arms = {k for p, j in zip(parts, judged) if j in waiting for k in p.keys if k}
    effect = weakest and {name: weakest[name] for name in ("part", "mean", "low", "high", "n")}
    return {"claim": claim, "net": net, "set": data, "scale": scale, "verdict": verdict, "effect": effect,
            "rule": f"docs/protocol.md ({protocol()}), {claim}",
            "seeds_needed": seeds, "runs_needed": seeds * max(2, len(arms)), "parts": judged,
            "records": sorted({k for j in judged for k in j["records"]})}  # fmt: skip


# -- the parts of each claim -------------------------------------------------------------------------------------------
def by_seed(frame: pd.DataFrame, cell: str, column: str) -> pd.Series:
    """A metric of the finished runs with this key, in points, by seed."""
    rows = frame[(frame["key"] == cell) & (frame["status"] == "finished")].set_index("seed").sort_index()
    return rows[column] * (1 if "accuracy" in column else 100)


def compare(frame, first: str, second: str, column: str, limits, name: str, decides: bool = True) -> Part:
    """The part `first` - `second` (keys) in one metric, paired by seed."""
    differences = (by_seed(frame, first, column) - by_seed(frame, second, column)).dropna()
    return Part(name, differences, limits, (first, second), decides)


def at_equal_accuracy(frame: pd.DataFrame, base: RunSpec, claim: str) -> list[Part]:
    """H1, F1, F2, F4: the parts of `EQUAL_ACCURACY` on one net, each arm at its chosen strength."""
    specs = tables.unseeded("1_hgsr_criteria" if claim == "H1" else "4_ffr_flow", base.scale)
    by_arm, plain = tables.arms(specs), key(base)

    def chosen(arm: str, measure: str) -> str:
        keys = by_arm.get((base, arm), ())
        return plain if arm == "plain" else tables.chosen_strength(frame, keys, plain, measure) or f"?{arm}"

    asked = EQUAL_ACCURACY[claim]
    return [compare(frame, chosen(a, m), chosen(b, m), m, SPARSER, f"{a} - {b}, {m}", d) for a, b, m, d in asked]


def crossing(frame: pd.DataFrame, scale: str) -> list[Part]:
    """H2, arms at their middle strengths: for every two contexts (net and width) whose best arms among those that both
    ran differ, the lead of each in its own context. Where one arm is best in all contexts, its leads (not deciding)."""
    by_arm, contexts = {}, {}
    for name in ("1_hgsr_criteria", "2_hgsr_structure"):
        for place, keys in tables.arms(tables.unseeded(name, scale)).items():
            by_arm.setdefault(place, catalogue.middle(keys)[0])
    for (plain, arm), cell in by_arm.items():
        if arm != "plain" and tables.chosen_strength(frame, [cell], key(plain), WEIGHTS):
            contexts.setdefault(plain, {})[arm] = frame[frame["key"] == cell][WEIGHTS].mean()

    def lead(plain, first, second, decides=True):
        name = f"{first} - {second}, {plain.model} width {plain.width:g}"
        return compare(frame, by_arm[plain, first], by_arm[plain, second], WEIGHTS, SPARSER, name, decides)

    parts, tops, pairs = [], [], [*combinations(contexts, 2)]
    for p, q in pairs:
        common = set(contexts[p]) & set(contexts[q])
        if len(common) > 1:
            (a, a2), (b, b2) = (sorted(common, key=lambda arm: (-contexts[c][arm], arm))[:2] for c in (p, q))
            parts += [lead(p, a, b), lead(q, b, a)] if a != b else []
            tops += [(p, a, a2), (q, b, b2)]
    same = len({best for _, best, _ in tops}) == 1 and len(tops) == 2 * len(pairs)
    return parts + [lead(*top, decides=False) for top in dict.fromkeys(tops) if same]


def best_cut(frame: pd.DataFrame, cells: list[str]) -> str:
    """Key of the cut with the best mean validation accuracy after fine-tuning, without a diverged run; "" for none."""
    runs = tables.covered(frame, cells).groupby("key")
    means = runs["validation_accuracy"].agg(lambda v: v.mean(skipna=False))
    return means.idxmax() if means.notna().any() else ""


def cut_by_loss(frame: pd.DataFrame, claim: str, base: RunSpec) -> list[Part]:
    """H3 and H4: the share of parameters that loss increase removes, and what it costs."""
    share, limits = (0.5, NOT_LOST) if claim == "H3" else (0.34, AT_LEAST)
    specs = [s for s in tables.unseeded("3_hgsr_pruning", base.scale) if tables.plain_of(s) == base]
    start = next((s for s in specs if s.weight.name == catalogue.HSQ_GL12), None)
    cuts = [key(s) for s in specs if start and s != start and base_of(s) == start]
    removed = tables.covered(frame, cuts).groupby("key")["parameters_removed"].mean().dropna()
    above = removed[removed > share]
    cell = best_cut(frame, list(above.index)) if len(above) else removed.idxmax() if len(removed) else ""
    before, plain, what = key(start) if start else "", key(base), "parameters_removed"
    parts = [Part(f"{what}, more than {share:g}", by_seed(frame, cell, what), (100 * share,) * 2, (cell,)),
             compare(frame, cell, plain, "test_accuracy", limits, "test accuracy, cut - plain"),
             compare(frame, before, plain, "zero_channels", SPARSER, "zero channels, penalised - plain")]  # fmt: skip
    return parts if claim == "H3" else parts[:2]


def against_baselines(frame: pd.DataFrame, base: RunSpec) -> list[Part]:
    """F3: pruned FFR nets against baselines of our own harness and, at scale paper, published changes of accuracy."""
    specs, papers, parts = tables.unseeded("5_ffr_pruning", base.scale), tables.published(), []
    cuts = [s for s in specs if not tables.uncut(s) and tables.plain_of(s) == base]
    papers = papers[(papers["dataset"] == base.data) & (papers["model"] == base.model) & (base.scale == "paper")]
    better = ("bn_scale", "l1_norm")
    others = {"plain net by L1": ("plain", ("l1_norm",)), "geometric median": ("plain", ("geometric_median",)),
              "random": ("plain", ("random",)), "network slimming": ("network_slimming", better),
              "group lasso": ("group_lasso", better), "from scratch": ("plain", ("l1_norm",), "scratch")}  # fmt: skip

    def best(amount: float, arm: str, scores, after: str = "finetune") -> str:
        ways = [s for s in cuts if tables.arm_of(s) == arm and (s.pruning.amount, s.pruning.after) == (amount, after)]
        return best_cut(frame, [key(s) for s in ways if s.pruning.score in scores])

    for amount in sorted({s.pruning.amount for s in cuts}):
        ours = best(amount, "both", better)
        for name, other in others.items():
            title = f"FFR - {name}, {amount:g} of the MACs removed"
            parts.append(compare(frame, ours, best(amount, *other), "test_accuracy", NOT_LOST, title))
        near = (papers["macs_removed_pct"] - by_seed(frame, ours, "macs_removed").mean()).abs() <= 5
        changes = papers[near]["accuracy_change"].dropna()
        if len(changes):
            title = f"FFR's change - median of {len(changes)} published, {amount:g} of the MACs removed"
            own = compare(frame, ours, key(base), "test_accuracy", NOT_LOST, title)
            parts.append(replace(own, differences=own.differences - changes.median()))
    return parts


def verdicts(records: list[dict]) -> list[dict]:
    """The verdict on every claim for each net and set of the catalogue, scales apart, and on what no run covers yet."""
    out = [entry(claim, "paper", net, data, []) for claim, net, data in UNTRIED]
    for scale, known in catalogue.BASES.items():
        frame = tables.frame_of([r for r in records if r["scale"] == scale])
        hgsr, ffr = ([known[n] for n in nets[scale]] for nets in (catalogue.HGSR_NETS, catalogue.FFR_NETS))
        cut = dict.fromkeys(map(tables.plain_of, tables.unseeded("3_hgsr_pruning", scale)))
        asked = [("H2", hgsr[0], crossing(frame, scale))]
        asked += [(claim, base, cut_by_loss(frame, claim, base)) for claim, base in product(("H3", "H4"), cut)]
        asked += [("F3", base, against_baselines(frame, base)) for base in ffr]
        for claim, base in [*product(["H1"], hgsr), *product(["F1", "F2", "F4"], ffr)]:
            asked.append((claim, base, at_equal_accuracy(frame, base, claim)))
        for claim, base, parts in asked:
            net = "all nets and widths" if claim == "H2" else f"{base.model} {base.shortcut}".strip()
            out.append(entry(claim, scale, net, base.data, parts))
            for judged in out[-1]["parts"]:
                judged["stale"] = bool(frame.loc[frame["key"].isin(judged["records"]), "stale"].any())
    return sorted(out, key=lambda v: (v["claim"][0] != "H", v["claim"], SCALES.index(v["scale"])))


# -- writing -----------------------------------------------------------------------------------------------------------
def effect_text(e: dict | None) -> str:
    """Mean, interval and n of an effect, in points."""
    if not e or e["mean"] is None:
        return "no pair"
    limits = "" if e["low"] is None else f" [{e['low']:+.2f}, {e['high']:+.2f}]"
    return f"{e['mean']:+.2f}{limits}, n = {e['n']}"


def markdown(found: list[dict]) -> str:
    """verdicts.md: one row a verdict, then the parts of each that has any pair."""
    lines = ["# Verdicts", "", "Generated from the records by the rules of [the protocol](../docs/protocol.md).",
             "Effects are in points of accuracy, or of a share in percent.", "",
             f"With fewer than {PAIRS} pairs a part is undecided, whatever it shows. Runs needed = seeds x arms.",
             "In the parts, b is the boundary that an effect must exceed for `supported`, m the least of interest.",
             "† marks records made with other code. H4 is about a Tiny ImageNet ResNet: other nets are analogues.", "",
             "| claim | net | set | scale | verdict | weakest deciding part | effect [95 % interval] | runs needed |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    some = [v for v in found if any(j["n"] for j in v["parts"])]
    analogue = lambda v: ", an analogue" * (v["claim"] == "H4" and "tiny" not in v["net"])  # noqa: E731
    for v in some:
        seeds = f"over {MOST}" if v["seeds_needed"] > MOST else v["seeds_needed"]
        needed = f"at least {v['runs_needed']} ({seeds} seeds)" if v["runs_needed"] else ""
        lines.append(f"| {v['claim']}{analogue(v)} | {v['net']} | {v['set']} | {v['scale']} | **{v['verdict']}** "
                     f"| {v['effect']['part']} | {effect_text(v['effect'])} | {needed} |")  # fmt: skip
    waiting = [f"{v['claim']} {v['net']} on {v['set']} ({v['scale']}, at least {v['runs_needed']} runs)"
               for v in found if v not in some]  # fmt: skip
    why = "Undecided for want of any pair (not run, or no strength within a point of the plain net): "
    lines += ["", why + "; ".join(waiting) + "."] if waiting else []
    for v in some:
        lines += ["", f"## {v['claim']}{analogue(v)}, {v['net']}, {v['set']}, scale {v['scale']}: {v['verdict']}", "",
                  "| part | decides | verdict | effect [95 % interval] | p above b, below m (Holm) | records |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for j in v["parts"]:
            decides, mark = "yes" if j["decides"] else "no", " †" * j["stale"]
            lines.append(f"| {j['part']} | {decides} | {j['verdict']} | {effect_text(j)}{mark} "
                         f"| {j['p_above']}, {j['p_below']} | {' '.join(j['records'])} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def write(records: list[dict], root: Path | None = None) -> list[Path]:
    """Writes verdicts.md, verdicts.json and values.json under `root` (results/): equal records, equal bytes."""
    found, root = verdicts(records), Path(root or results_folder())
    dump = lambda what: json.dumps(what, indent=1, sort_keys=True) + "\n"  # noqa: E731
    numbers = prose.values(records, found)
    files = {"verdicts.md": markdown(found), "verdicts.json": dump(found), "values.json": dump(numbers)}
    return [write_atomically(root / name, content) for name, content in files.items()]


def main() -> None:
    records, problems = store.load_all()
    if problems:  # a damaged record is never silently left out
        sys.exit("\n".join(problem.why for problem in problems))
    paths = write(records)
    known = json.loads(paths[-1].read_text())
    for path in prose.files():
        if (text := prose.refreshed(path.read_text(), known)) != path.read_text():
            paths.append(write_atomically(path, text))
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
