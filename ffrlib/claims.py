"""What each claim is judged by: its parts, as docs/protocol.md names them, from records of one scale.

All effects are in points: of accuracy, or of a share in percent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from ffrlib import catalogue, frames, literature, measure, tables
from ffrlib.spec import CRITERIA, RunSpec, base_of, key

SPARSER, NOT_LOST, AT_LEAST = (0.0, 1.0), (-0.3, -0.3), (-0.3, 0.0)  # (b, m) of docs/protocol.md, in points
WEIGHTS, CHANNELS = tables.BOTH
STEP = 100 * measure.GRID[0] / 2**measure.HALVINGS  # points: to what both shares are found
EQUAL_ACCURACY = {  # claim -> (arm, other arm, sparsity, decides) of each part
    "H1": [(c, tables.counterpart(c), m, True) for c in CRITERIA if tables.counterpart(c) for m in tables.BOTH],
    "F1": [("both", "plain", WEIGHTS, True)],
    "F2": [("both", "plain", CHANNELS, True)],
    "F4": [(arm, "control", m, arm == "both") for arm in ("both", "length", "curvature") for m in tables.BOTH],
}


@dataclass(frozen=True)
class Part:
    """One comparison: differences in points by seed, the limits (b, m), the keys of both arms ("" for none, "?" and its
    name for an arm that has no run to compare yet). One that `only_refutes` is never supported; `step` is the step in
    which the metric was measured (points), 0 for one without; `mixed`: how many pairs cross two processors; `within`:
    the differences of the others."""

    name: str
    differences: pd.Series
    limits: tuple[float, float]
    keys: tuple[str, ...]
    decides: bool = True
    only_refutes: bool = False
    step: float = 0.0
    mixed: int = 0
    within: tuple[float, ...] = ()


def by_seed(frame: pd.DataFrame, cell: str, column: str) -> pd.Series:
    """A metric of the finished runs with this key, in points, by seed."""
    rows = frame[(frame["key"] == cell) & (frame["status"] == "finished")].set_index("seed").sort_index()
    return rows[column] * (1 if "accuracy" in column else 100)


def compare(frame, first: str, second: str, column: str, limits, name: str, decides: bool = True) -> Part:
    """The part `first` - `second` (keys) in one metric, paired by seed."""
    differences = (by_seed(frame, first, column) - by_seed(frame, second, column)).dropna()
    mixed = frames.across(*(frame[frame["key"] == cell] for cell in (first, second)))
    mixed, step = mixed.reindex(differences.index), STEP * (column in tables.BOTH)
    within = tuple(differences[~mixed.astype(bool)])
    return Part(name, differences, limits, (first, second), decides, False, step, int(mixed.sum()), within)


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
    """H2, arms at the strengths `compared`: for every two contexts (net and width) whose best arms, of those that both
    ran, differ, the lead of each in its own context. If one arm is best in all contexts, its leads (not deciding)."""
    by_arm, contexts = {}, {}
    for place, keys in tables.arms(tables.unseeded("2_hgsr_structure", scale)).items():
        by_arm[place] = catalogue.compared(scale, keys)[0]
    for (plain, arm), cell in by_arm.items():
        if arm != "plain" and tables.chosen_strength(frame, [cell], key(plain), WEIGHTS):
            contexts.setdefault(plain, {})[arm] = by_seed(frame, cell, WEIGHTS)

    def best_two(context, arms):  # over the seeds that all of them have
        means = pd.DataFrame({arm: contexts[context][arm] for arm in sorted(arms)}).dropna().mean()
        return means.sort_values(ascending=False, kind="stable").index[:2]

    def lead(plain, first, second, decides=True):
        name = f"{first} - {second}, {plain.model} width {plain.width:g}"
        return compare(frame, by_arm[plain, first], by_arm[plain, second], WEIGHTS, SPARSER, name, decides)

    parts, tops, pairs = [], [], [*combinations(contexts, 2)]
    for p, q in pairs:
        common = set(contexts[p]) & set(contexts[q])
        if len(common) > 1:
            (a, a2), (b, b2) = best_two(p, common), best_two(q, common)
            parts += [lead(p, a, b), lead(q, b, a)] if a != b else []
            tops += [(p, a, a2), (q, b, b2)]
    same = len({best for _, best, _ in tops}) == 1 and len(tops) == 2 * len(pairs)
    return parts + [lead(*top, decides=False) for top in dict.fromkeys(tops) if same]


def best_cut(frame: pd.DataFrame, cells: list[str]) -> str:
    """Key of the cut with the best mean validation accuracy after fine-tuning, without a diverged run (of equal ones
    the first of `cells`); "" for none."""
    runs = tables.covered(frame, cells).groupby("key")
    means = runs["validation_accuracy"].agg(lambda v: v.mean(skipna=False)).reindex(cells)
    return means.idxmax() if means.notna().any() else ""


def vanished(frame: pd.DataFrame, penalised: str, plain: str) -> Part:
    """H3's part (a). Records made before 2026-11-27 lack the count of writers alone: where one does, `zero_channels`
    stands in, which counts what the penalty pushes, too, and can only refute (docs/protocol.md)."""
    column, runs = "zero_output_channels", frame[frame["key"].isin([penalised, plain])]
    runs = runs[runs["status"] == "finished"]
    if column in runs and len(runs) and runs[column].notna().all():
        return compare(frame, penalised, plain, column, SPARSER, "zero output channels, penalised - plain")
    part = compare(frame, penalised, plain, "zero_channels", SPARSER, "zero channels, penalised - plain")
    return replace(part, only_refutes=True)


def cut_by_loss(frame: pd.DataFrame, claim: str, base: RunSpec) -> list[Part]:
    """H3 and H4: the share of parameters that loss increase removes, and what it costs."""
    share, limits = (0.5, NOT_LOST) if claim == "H3" else (0.34, AT_LEAST)
    specs = [s for s in tables.unseeded("3_hgsr_pruning", base.scale) if tables.plain_of(s) == base]
    start = next((s for s in specs if s.weight.name == catalogue.HSQ_GL12), None)
    cuts = [key(s) for s in specs if start and s != start and base_of(s) == start]
    removed = tables.covered(frame, cuts).groupby("key")["parameters_removed"].mean().reindex(cuts).dropna()
    above = removed[removed > share]
    cell = best_cut(frame, list(above.index)) if len(above) else removed.idxmax() if len(removed) else ""
    before, plain, what = key(start) if start else "", key(base), "parameters_removed"
    parts = [Part(f"{what} - {100 * share:g} %", by_seed(frame, cell, what) - 100 * share, (0.0, 0.0), (cell,)),
             compare(frame, cell, plain, "test_accuracy", limits, "test accuracy, cut - plain"),
             vanished(frame, before, plain)]  # fmt: skip
    return parts if claim == "H3" else parts[:2]


def against_baselines(frame: pd.DataFrame, base: RunSpec) -> list[Part]:
    """F3: pruned FFR nets against baselines of our own harness and, at scale paper, published changes of accuracy."""
    specs, papers, parts = tables.unseeded("5_ffr_pruning", base.scale), literature.published(), []
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
            shift, within = changes.median(), pd.Series(own.within, dtype=float)
            parts.append(replace(own, differences=own.differences - shift, within=tuple(within - shift)))
    return parts
