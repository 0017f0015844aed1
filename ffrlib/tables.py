"""Tables: one row a cell of the catalogue, with n, mean and 95 % interval over its seeds, from records of one scale.

The layout is the catalogue's, whatever has been run: a cell without a record says "not run". Shares are in [0, 1],
accuracies in percent, latencies in milliseconds.
"""

from __future__ import annotations

import functools
import math
from itertools import product

import numpy as np
import pandas as pd
from scipy import special

from ffrlib import catalogue, frames, jobs, literature, models
from ffrlib.frames import BOTH, FLOW, PRUNED, SPARSE, across
from ffrlib.scales import FRESH
from ffrlib.spec import CRITERIA, SCALES, FlowPenalty, Pruning, RunSpec, choose, key

NOT_RUN, NOT_REACHED, NOT_CHOSEN = "not run", "not reached", "not chosen"
TARGETS, HELD = (0.3, 0.5, 0.7, 0.9), 1.0  # sparsities to compare at; points of validation accuracy a choice may cost
GAP = 10.0  # points of accuracy below the plain net beyond which nothing is interpolated
ARM = ["net", "arm", "strength"]


def arm_of(spec: RunSpec) -> str:
    """The penalties of a run in words, without strengths: "plain", "group_lasso", "both", "l1 + control", ...; a
    mixture of two criteria is one penalty, "group_lasso mixed 0.5 with l1"."""
    flow = {(True, True): ["both"], (True, False): ["length"], (False, True): ["curvature"], (False, False): []}
    weight = spec.weight.name + f" mixed {spec.weight.mix:g} with {spec.weight.second}" * (spec.weight.mix < 1)
    parts = [weight] * (spec.weight.name != "none") + flow[spec.flow.length > 0, spec.flow.curvature > 0]
    return " + ".join(parts + ["control"] * (spec.activation.strength > 0)) or "plain"


def strengths_of(spec: RunSpec) -> list[float]:
    """The strengths of the penalties that `arm_of` names, in the same order."""
    every = (spec.weight.strength, max(spec.flow.length, spec.flow.curvature), spec.activation.strength)
    return [x for x in every if x]


def other_rate(cut: Pruning, scale: str) -> bool:
    """Whether a cut is fine-tuned with another learning rate than the scale's."""
    return cut.epochs > 0 and cut.lr != catalogue.FINE_TUNE[scale][1]


LABELS = {  # label column -> how it is read off a spec
    "net": lambda s: " ".join(filter(None, [s.data, s.model, s.shortcut, s.init.replace("default", "")]))
                     + f", {s.recipe.epochs} epochs more" * (s.init == "published" and s.recipe.epochs > 0),
    "arm": arm_of,
    "strength": lambda s: " + ".join(f"{x:.3g}" for x in strengths_of(s)),
    "grouping": lambda s: s.weight.grouping if s.weight.name in CRITERIA[1:] else "",
    "width": lambda s: f"{s.width:g}",
    "epochs": lambda s: str(s.recipe.epochs),
    "weight_decay": lambda s: f"{s.recipe.weight_decay:g}",
    "score": lambda s: s.pruning.score + ", from scratch" * (s.pruning.after == "scratch")
                       + f", lr {s.pruning.lr:g}" * other_rate(s.pruning, s.scale),
    "budget": lambda s: s.pruning.budget,
    "amount": lambda s: f"{s.pruning.amount:g}",
    "reading": lambda s: ", ".join(f"{n} {v}" for n, v in (*vars(s.flow).items(), ("tap", s.activation.tap))
                                   if isinstance(v, str) and v not in vars(FlowPenalty()).values()),
}  # fmt: skip


# -- statistics --------------------------------------------------------------------------------------------------------
def interval(values) -> tuple[float, float, float]:
    """(mean, low, high): 95 % interval of the mean, Student's t up to 30 values, percentile bootstrap (10,000 draws,
    fixed seed) beyond. One value has no limits (NaN); none at all, or one that is not finite, gives NaN throughout."""
    x = np.asarray(list(values), dtype=float)
    if not len(x) or not np.isfinite(x).all():
        return math.nan, math.nan, math.nan
    mean = float(x.mean())
    if len(x) > 30:
        draws = np.random.default_rng(0).choice(x, (10_000, len(x))).mean(axis=1)
        return mean, *np.quantile(draws, (0.025, 0.975)).tolist()
    half = float(special.stdtrit(len(x) - 1, 0.975) * x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return mean, mean - half, mean + half


def aggregate(frame: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """One row a group: `by`, n, n_diverged, stale ("†": made with other code); of each column the mean, `<column> low`
    and `<column> high` over finished runs; keys. Raises ValueError for mixed scales."""
    if len(scales := set(frame["scale"])) > 1:
        raise ValueError(f"the records' scale is {', '.join(sorted(scales))}; allowed: one scale a table.")
    rows = []
    for names, group in frame.groupby(by):
        done = group[group["status"] == "finished"].sort_values("seed")
        row = dict(zip(by, names)) | {"n": len(group), "n_diverged": int((group["status"] == "diverged").sum())}
        row["stale"] = "†" if group["stale"].any() else ""
        for column in columns:
            row |= zip((column, f"{column} low", f"{column} high"), interval(done.get(column, ())))
        rows.append(row | {"keys": " ".join(sorted(set(group["key"])))})
    return pd.DataFrame(rows)


def accuracy_at_sparsity(arm: pd.DataFrame, target: float) -> pd.DataFrame:
    """Test accuracy with small weights zeroed of each seed (index) where the share of small weights is `target`, linear
    between the two strengths whose shares are next to it; `lower`: the lower accuracy of these two. Empty unless each
    seed's own range has the target: nothing is extrapolated, and a mean over some of the seeds is not shown for all.
    `arm`: finished runs of the same strengths for each seed."""
    found, columns = {}, ["accuracy", "lower"]
    for seed, runs in arm.groupby("seed"):
        points = runs.groupby("unstructured_sparsity")["zeroed_test_accuracy"].mean()
        if not points.index.min() <= target <= points.index.max():
            return pd.DataFrame(columns=columns, dtype=float)
        lower = min(points[points.index <= target].iloc[-1], points[points.index >= target].iloc[0])
        found[seed] = float(np.interp(target, points.index, points)), float(lower)
    return pd.DataFrame.from_dict(found, "index", float, columns)


def covered(frame: pd.DataFrame, keys) -> pd.DataFrame:
    """The rows of those `keys` that have every seed that any of them has: others wait for their missing runs, since
    means over other seeds are not comparable."""
    rows = frame[frame["key"].isin(keys)]
    return rows[rows.groupby("key")["seed"].transform("nunique") == rows["seed"].nunique()]


def chosen_strength(frame: pd.DataFrame, keys, plain: str, measure: str, held: float = HELD) -> str | None:
    """The one of an arm's `covered` `keys` with the largest mean `measure` among strengths without a diverged run whose
    mean validation accuracy is at most `held` below that of the run with key `plain`, over the seeds that both have (of
    equal ones the more accurate, then the first of `keys`); None where there is none. See docs/protocol.md."""
    arm, beside = covered(frame, keys), frame[frame["key"] == plain].set_index("seed")["validation_accuracy"]
    arm = arm[arm["seed"].isin(beside.index)]
    sound = arm.groupby("key").filter(lambda group: (group["status"] == "finished").all())
    means = sound.groupby("key")[["validation_accuracy", measure]].mean().dropna().round(9)  # not the last bits
    least = round(beside[beside.index.isin(arm["seed"])].mean() - held, 9)
    means = means[means["validation_accuracy"] >= least]
    means = means.reindex([k for k in reversed(keys) if k in means.index])  # sorting keeps the order of equal ones
    return means.sort_values([measure, "validation_accuracy"], kind="stable").index[-1] if len(means) else None


# -- from records to rows ----------------------------------------------------------------------------------------------
def counterpart(criterion: str) -> str:
    """The criterion that a hierarchical one is built on; "" for the others."""
    return criterion.split("squared_")[-1].split("square_rooted_")[-1] if criterion.startswith("hierarchical_") else ""


plain_of = functools.lru_cache(maxsize=4096)(jobs.plain)  # making a spec validates it, which costs milliseconds


def uncut(spec: RunSpec) -> bool:
    return spec.pruning.score == "none"


def unseeded(name: str, scale: str) -> list[RunSpec]:
    """The cells of an experiment, each once (seed 0), in the catalogue's order."""
    choose("scale", scale, SCALES)
    choose("experiment", name, catalogue.RUNS)
    return list(dict.fromkeys(spec for _, spec in catalogue.RUNS[name](scale)))


def counted(records: list[dict], scale: str, name: str | None = None) -> list[dict]:
    """The records of a scale's (one experiment's) runs, with any seed: a reader's own are not among them."""
    keys = {key(spec) for spec in catalogue.specs(scale, name, seeds=1)}
    own = [r for r in records if r["scale"] == scale and r["key"] in keys]
    return own if name is None else seeds_of(own, name == catalogue.FIRM)


def seeds_of(records: list[dict], fresh: bool = False) -> list[dict]:
    """The records of the seeds `FRESH`, which the confirmation alone may use, or those of all others."""
    return [r for r in records if (r["seed"] in FRESH) == fresh]


def arms(specs: list[RunSpec]) -> dict[tuple[RunSpec, str], list[str]]:
    """(plain run, arm and grouping) -> the keys of its strengths, for the runs that are not cut, in the order given."""
    found: dict[tuple[RunSpec, str], list[str]] = {}
    for spec in specs:
        if uncut(spec):
            name = arm_of(spec) + " by neuron" * (spec.weight.grouping == "neuron")
            found.setdefault((plain_of(spec), name), []).append(key(spec))
    return found


# -- the tables of the experiments -------------------------------------------------------------------------------------
def cells(specs: list[RunSpec], frame: pd.DataFrame, labels: list[str], metrics: list[str]) -> pd.DataFrame:
    """One row a spec: its labels and what `aggregate` says of its records; "not run" where it has none."""
    known = {row["key"]: row for row in aggregate(frame, ["key"], metrics).to_dict("records")}
    empty = {"n": 0, "n_diverged": 0, "stale": ""} | {c: NOT_RUN for m in metrics for c in (m, f"{m} low", f"{m} high")}
    rows = [{n: LABELS[n](s) for n in labels} | known.get(key(s), empty | {"keys": key(s)}) for s in specs]
    return pd.DataFrame(rows, columns=[*labels, *empty, "keys"])


def with_chosen(specs: list[RunSpec], frame: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """`cells` with a column that says for which sparsity a strength is the chosen one."""
    table, chosen = cells(specs, frame, ARM, metrics), {}
    for ((plain, name), keys), measure in product(arms(specs).items(), BOTH):
        best = chosen_strength(frame, keys, key(plain), measure)
        chosen.setdefault(best, []).append(measure.split("_")[1] + "s" if name != "plain" else "")
    table.insert(len(ARM), "chosen for", [" ".join(chosen.get(key(s), ())).strip() for s in specs])
    return table


def beside_plain(table: pd.DataFrame, specs: list[RunSpec], frame: pd.DataFrame) -> pd.DataFrame:
    """The table with each row's change beside the plain net in the sparsities that decide and in accuracy, by seed, and
    how many of these pairs are `across` two kinds of processor."""
    done = frame[frame["status"] == "finished"]
    mixed = [across(*(done[done["key"] == key(s)] for s in (spec, plain_of(spec)))).sum() for spec in specs]
    table.insert(len(table.columns) - 1, "pairs across processors", mixed)
    done = done.set_index("seed")
    for measure in (*BOTH, "test_accuracy"):
        changes = []
        for spec in specs:
            own, plain = (done.loc[done["key"] == key(s), measure] for s in (spec, plain_of(spec)))
            paired = (own - plain).dropna()
            empty = "" if spec == plain_of(spec) else NOT_RUN
            changes.append(interval(paired) if len(paired) and empty else [empty] * 3)
        for limit, values in zip(("", " low", " high"), zip(*changes)):
            table.insert(len(table.columns) - 1, f"change in {measure}{limit}", values)
    return table


def equal_sparsity(specs: list[RunSpec], frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy after zeroing of every criterion at equal sparsity, and its lead over the counterpart's, by seed. Not
    reached where a net next to the sparsity is more than `GAP` points below the plain one of its seed: what a line to
    such a net passes through is no net."""
    rows, by_arm = [], arms(specs)

    def whole(keys: list[str]) -> pd.DataFrame:
        """Finished runs, each key with each seed: the seeds that have all keys or the keys that have all seeds."""
        rows = frame[frame["key"].isin(keys)]
        seeds = rows[rows.groupby("seed")["key"].transform("nunique") == rows["key"].nunique()]
        rows = max(seeds, covered(frame, keys), key=len)
        return rows[rows["status"] == "finished"] if rows["key"].nunique() > 1 else rows[:0]

    scales = {s.scale for s in specs}
    known = {catalogue.BASES[s][net]: names for s in scales for net, names in catalogue.criteria(s).items()}
    plains = [(p, name) for p in dict.fromkeys(p for p, _ in by_arm) for name in known.get(p, CRITERIA)]
    for (plain, name), target in product(plains, TARGETS):
        other, net = counterpart(name), LABELS["net"](plain)
        keys, others = ([*by_arm.get((plain, n), ()), key(plain)] for n in (name, other))
        runs = [whole(k) for k in (keys, others)]
        at, beside = (accuracy_at_sparsity(r, target) for r in runs)
        usual = frame[frame["key"] == key(plain)].set_index("seed")["zeroed_test_accuracy"]
        at, beside = (a[:0] if not (usual.reindex(a.index) - a["lower"] <= GAP).all() else a for a in (at, beside))
        row = {"net": net, "arm": name, "counterpart": other, "sparsity": f"{target:g}", "n": len(at)}
        leads = (at["accuracy"] - beside["accuracy"]).dropna()
        for what, values, made in (("accuracy", at["accuracy"], runs[:1]), ("lead", leads, runs)):
            missing = NOT_REACHED if all(map(len, made)) else NOT_RUN
            shown = interval(values) if len(values) else [missing] * 3
            row |= zip((what, f"{what} low", f"{what} high"), shown if other or what == "accuracy" else [""] * 3)
        lower = float(at["lower"].min()) if len(at) else ""
        rows.append(row | {"lower accuracy of the two": lower, "keys": " ".join(keys)})
    return pd.DataFrame(rows)


def experiment_tables(name: str, scale: str, records: list[dict]) -> dict[str, pd.DataFrame]:
    """The tables of one experiment at a scale, by name. Columns: labels, n, n_diverged, stale, of each metric mean, low
    and high, keys. Raises ValueError for an unknown name or scale, and for a record of another scale."""
    specs = unseeded(name, scale)
    if wrong := {r["scale"] for r in records} - {scale}:
        raise ValueError(f"the records' scale is {', '.join(sorted(wrong))}; allowed: only {scale} in its tables.")
    made = chosen_tables(name, scale, specs, frames.frame_of(seeds_of(records, name == catalogue.FIRM)))
    return {kind: with_unchosen(table, name, scale) if "strength" in table else table for kind, table in made.items()}


def with_unchosen(table: pd.DataFrame, name: str, scale: str) -> pd.DataFrame:
    """The table with a row for each arm whose strengths are not chosen yet: what is missing is seen to be missing."""
    metrics = [c for c in table if f"{c} low" in table or c.endswith((" low", " high"))]
    empty = (
        dict.fromkeys(table, "") | dict.fromkeys(metrics, NOT_RUN) | {"n": 0, "n_diverged": 0, "strength": NOT_CHOSEN}
    )
    nets = {net: LABELS["net"](base) for net, base in catalogue.BASES[scale].items()}
    rows = [empty | {"net": nets[net], "arm": arm} for net, arm in catalogue.unchosen(name, scale)]
    return pd.concat([table, pd.DataFrame(rows, columns=table.columns)]) if rows else table


def chosen_tables(name: str, scale: str, specs: list[RunSpec], frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of `experiment_tables` for the arms that have strengths."""
    bases, cuts = [*filter(uncut, specs)], [s for s in specs if not uncut(s)]
    if name == "1_hgsr_criteria":
        return {"strengths": with_chosen(bases, frame, SPARSE), "equal_sparsity": equal_sparsity(bases, frame)}
    if name == "2_hgsr_structure":
        labels = ["net", "width", "arm", "grouping", "strength"]
        nets = {(s.model, s.shortcut) for s in specs}
        most = max(len(models.counted_convolutions(models.build(net, shortcut=way))) for net, way in nets)
        layers = [f"layer_{k}" for k in range(1, most + 1)]
        return {"structure": cells(bases, frame, labels, SPARSE), "layers": cells(bases, frame, labels, layers)}
    if name in ("3_hgsr_pruning", "5_ffr_pruning"):
        papers = literature.published()
        hgsr = papers["method"].str.startswith("HGSR")
        beside = papers[hgsr if name == "3_hgsr_pruning" else ~hgsr & papers["pruned_accuracy"].notna()]
        cut = cells(cuts, frame, [*ARM, "score", "budget", "amount"], PRUNED)
        return {
            "before_cut": cells(bases, frame, ARM, FLOW),
            "cut": cut,
            "published": literature.with_ours(beside, cut),
        }
    if name == catalogue.FIRM:
        return {"runs": cells(bases, frame, ARM, [*SPARSE, "cut_30_test_accuracy"])} if bases else {}
    if name == "4_ffr_flow":
        usual = [s for s in bases if plain_of(s) in catalogue.BASES[scale].values()]
        varied = {(arm_of(s), *strengths_of(s)) for s in bases if s not in usual}
        recipes = [s for s in bases if (arm_of(s), *strengths_of(s)) in varied]
        recipes = beside_plain(cells(recipes, frame, ["epochs", "weight_decay", *ARM], FLOW), recipes, frame)
        return {"strengths": with_chosen(usual, frame, FLOW), "recipes": recipes}
    main = beside_plain(cells(bases, frame, [*ARM, "reading"], FLOW), bases, frame)
    if name == "6_ffr_readings":
        return {"readings": main}
    if name == "7_both_papers":
        return {"together": main, "equal_budget": cells(cuts, frame, [*ARM, "score", "budget", "amount"], PRUNED)}
    return {"runs": cells(bases, frame, ARM, SPARSE)}  # an experiment of a reader's own
