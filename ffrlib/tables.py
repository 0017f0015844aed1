"""Tables: one row a cell of the catalogue, with n, mean and 95 % interval over its seeds, from the records of one scale.

The layout is that of the catalogue, whatever has been run: a cell without a record says "not run". Shares are in [0, 1],
accuracies in percent, latencies in milliseconds. `python -m ffrlib.tables --scale quick` writes all tables of a scale.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ffrlib import catalogue, models, store
from ffrlib.files import REPOSITORY, results_folder, write_atomically
from ffrlib.spec import CRITERIA, SCALES, FlowPenalty, RunSpec, base_of, choose, key

NOT_RUN, NOT_REACHED, NOT_AVAILABLE = "not run", "not reached", "not available"
TARGETS = (0.3, 0.5, 0.7, 0.9)  # sparsities at which criteria are compared
HELD = 1.0  # points of validation accuracy that an arm may lose to be chosen
BOTH = ("removable_weight_share", "removable_channel_share")
SPARSE = ["validation_accuracy", "test_accuracy", "zeroed_test_accuracy", "unstructured_sparsity", "zero_kernels", "zero_channels",
          "removable_channels", *BOTH, "parameters_left", "macs_left"]  # fmt: skip
FLOW = ["validation_accuracy", "test_accuracy", "zeroed_test_accuracy", "unstructured_sparsity", "zero_channels", "removable_channels",
        "silent_channels", *BOTH, "cut_30_test_accuracy", "cut_50_test_accuracy", "flow_length", "flow_curvature", "straightness",
        "turning_angle", "activation_mean"]  # fmt: skip
PRUNED = ["base_test_accuracy", "cut_test_accuracy", "validation_accuracy", "test_accuracy", "accuracy_change", "parameters_removed",
          "macs_removed", "parameters_left", "macs_left", "held_back", "worst_deviation", "latency_ms.batch_1",
          "latency_ms.batch_1_before", "latency_ms.batch_64", "latency_ms.batch_64_before"]  # fmt: skip
ARM = ["net", "arm", "strength"]
LABELS = {  # label column -> how it is read off a spec
    "net": lambda s: f"{s.data} {s.model}{' ' + s.shortcut if s.shortcut else ''}{' published weights' if s.init == 'published' else ''}",
    "arm": lambda s: arm_of(s),
    "strength": lambda s: " + ".join(f"{x:.3g}" for x in strengths_of(s)) or "0",
    "grouping": lambda s: "" if s.weight.name in ("none", "l1", "network_slimming") else s.weight.grouping,
    "width": lambda s: f"{s.width:g}",
    "epochs": lambda s: s.recipe.epochs,
    "weight_decay": lambda s: f"{s.recipe.weight_decay:g}",
    "score": lambda s: s.pruning.score.replace("none", "uncut") + (", from scratch" if s.pruning.after == "scratch" else ""),
    "amount": lambda s: f"{s.pruning.amount:g}" if s.pruning.amount else "",
    "reading": lambda s: ", ".join(f"{n} {v}" for n, v in vars(s.flow).items() if n not in ("length", "curvature")
                                   and v != getattr(FlowPenalty(), n)) or ("default" if s.flow.length else ""),
}  # fmt: skip


# -- statistics --------------------------------------------------------------------------------------------------------
def interval(values) -> tuple[float, float, float]:
    """(mean, low, high) of the mean's 95 % interval: Student's t up to 30 values, percentile bootstrap (10,000 draws, fixed
    seed) beyond. One value has no limits (NaN); no value, or one that is not finite, gives NaN throughout."""
    x = np.asarray(list(values), dtype=float)
    if not len(x) or not np.isfinite(x).all():
        return math.nan, math.nan, math.nan
    mean = float(x.mean())
    if len(x) > 30:
        draws = np.random.default_rng(0).choice(x, (10_000, len(x))).mean(axis=1)
        return mean, *(float(q) for q in np.quantile(draws, [0.025, 0.975]))
    if len(x) == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half


def paired(first: pd.Series, second: pd.Series) -> pd.Series:
    """first - second by seed (the index of both), for the seeds that have both; ascending. Raises ValueError for a seed twice."""
    for series in (first, second):
        if series.index.has_duplicates:
            raise ValueError(f"seed {series.index[series.index.duplicated()][0]} occurs twice; allowed: one value a seed.")
    return (first - second).dropna().sort_index()


def paired_interval(first: pd.Series, second: pd.Series) -> tuple[float, float, float]:
    """`interval` of the seed-paired differences first - second; both indexed by seed."""
    return interval(paired(first, second))


def aggregate(frame: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """One row a group: `by`, n, n_diverged, stale ("†" where a record was made with other code), then for each column its
    mean, `<column> low` and `<column> high` over the finished runs, and `keys` of the records. Raises ValueError for mixed scales."""
    if len(scales := set(frame.get("scale", ()))) > 1:
        raise ValueError(f"the records' scale is {', '.join(sorted(scales))}; allowed: one scale a table.")
    rows = []
    for names, group in frame.groupby(by, sort=True) if len(frame) else ():
        done = group[group["status"] == "finished"].sort_values("seed")
        row = dict(zip(by, names)) | {"n": len(group), "n_diverged": len(group) - len(done), "stale": "†" if group["stale"].any() else ""}
        for column in columns:
            row |= zip((column, f"{column} low", f"{column} high"), interval(done[column] if column in done else ()))
        rows.append(row | {"keys": " ".join(sorted(set(group["key"])))})
    return pd.DataFrame(rows)


def accuracy_at_sparsity(arm: pd.DataFrame, target: float, sparsity="unstructured_sparsity", accuracy="zeroed_test_accuracy") -> pd.Series:
    """Accuracy of each seed at sparsity `target`, linear between that seed's two neighbouring runs; index: seed.

    `arm`: finished runs of one arm at several strengths. Empty unless every seed's own range of sparsity contains the
    target: nothing is extrapolated, and a mean over some of the seeds is not shown for all.
    """
    found = {}
    for seed, runs in arm.dropna(subset=[sparsity, accuracy]).groupby("seed"):
        points = runs.groupby(sparsity)[accuracy].mean()
        if not points.index.min() <= target <= points.index.max():
            return pd.Series(dtype=float)
        found[seed] = float(np.interp(target, points.index, points))
    return pd.Series(found, dtype=float)


def chosen_strength(arm: pd.DataFrame, plain: pd.DataFrame, measure: str) -> str | None:
    """Key of the runs of an arm at its chosen strength: the largest mean `measure` among strengths without a diverged run
    whose mean validation accuracy is at most `HELD` below the plain runs'. None where there is none (docs/protocol.md)."""
    plain = plain[plain["status"] == "finished"]
    if arm.empty or plain.empty or measure not in arm or "validation_accuracy" not in arm:
        return None
    sound = arm.groupby("key").filter(lambda group: (group["status"] == "finished").all())
    means = sound.groupby("key")[["validation_accuracy", measure]].mean().dropna()
    means = means[means["validation_accuracy"] >= plain["validation_accuracy"].mean() - HELD]
    return means[measure].idxmax() if len(means) else None


# -- from records to rows ----------------------------------------------------------------------------------------------
def arm_of(spec: RunSpec) -> str:
    """The penalties of a run in words, without strengths and grouping: "plain", "group_lasso", "both", "l1 + control" ..."""
    f, flow = spec.flow, {(True, True): ["both"], (True, False): ["length"], (False, True): ["curvature"], (False, False): []}
    parts = [spec.weight.name] * (spec.weight.name != "none") + flow[f.length > 0, f.curvature > 0]
    return " + ".join(parts + ["control"] * (spec.activation.strength > 0)) or "plain"


def strengths_of(spec: RunSpec) -> list[float]:
    """The strengths of the penalties that `arm_of` names, in the same order."""
    return [x for x in (spec.weight.strength, max(spec.flow.length, spec.flow.curvature), spec.activation.strength) if x]


def counterpart(criterion: str) -> str:
    """The criterion that a hierarchical one is built on; empty for the others."""
    return criterion.split("squared_")[-1].split("square_rooted_")[-1] if criterion.startswith("hierarchical_") else ""


def frame_of(records: list[dict]) -> pd.DataFrame:
    """One row a record: every number of its metrics (`layer_1` ..: the layers' sparsity), shares derived from them, and key,
    seed, scale, status, stale, path. A metric that a record lacks is NaN."""
    every = [{n: v for n, v in r["metrics"].items() if not isinstance(v, (dict, list)) and n != "failure"}
             | {f"layer_{k}": v for k, v in enumerate(r["metrics"].get("layer_sparsity", ()), 1)}
             | {f"latency_ms.{n}": v for n, v in r["metrics"].get("latency_ms", {}).items()} for r in records]  # fmt: skip
    columns = dict.fromkeys([*SPARSE, *FLOW, *PRUNED, "parameters", "macs"])
    frame = pd.DataFrame(every).reindex(columns=[*columns, *(c for c in pd.DataFrame(every).columns if c not in columns)])
    frame = frame.apply(pd.to_numeric, errors="coerce")
    for name in ("key", "seed", "scale", "status", "stale", "path"):
        frame[name] = [r[name] for r in records]
    for what in ("parameters", "macs"):
        frame[f"{what}_removed"] = 1 - frame[f"{what}_left"] / frame[what]
    frame["accuracy_change"] = frame["test_accuracy"] - frame["base_test_accuracy"]
    return frame


def unseeded(name: str, scale: str) -> list[RunSpec]:
    """The cells of an experiment, in the catalogue's order, each once (seed 0)."""
    choose("scale", scale, SCALES)
    choose("experiment", name, catalogue.RUNS)
    return list(dict.fromkeys(spec for _, spec in catalogue.RUNS[name](scale)))


def cells(specs: list[RunSpec], frame: pd.DataFrame, labels: list[str], metrics: list[str]) -> pd.DataFrame:
    """One row a spec: its labels and what `aggregate` says of its records; "not run" where it has none."""
    known = aggregate(frame, ["key"], metrics)
    known = {row["key"]: row for row in known.to_dict("records")}
    empty = {"n": 0, "n_diverged": 0, "stale": ""} | {c: NOT_RUN for m in metrics for c in (m, f"{m} low", f"{m} high")}
    rows = [{label: LABELS[label](s) for label in labels} | (known.get(key(s)) or empty | {"keys": key(s)}) for s in specs]
    return pd.DataFrame(rows, columns=[*labels, *empty, "keys"])


def plain_of(spec: RunSpec) -> RunSpec:
    """The same net and recipe without penalties and cut."""
    bare = RunSpec()
    return replace(spec, weight=bare.weight, flow=bare.flow, activation=bare.activation, pruning=bare.pruning)


def arms(specs: list[RunSpec]) -> dict[tuple[RunSpec, str], list[str]]:
    """(plain run, arm and grouping) -> keys of its strengths, for the runs that are not cut, in the order given."""
    found: dict[tuple[RunSpec, str], list[str]] = {}
    for spec in specs:
        if spec == base_of(spec):
            name = arm_of(spec) + (" by neuron" if spec.weight.grouping == "neuron" else "")
            found.setdefault((plain_of(spec), name), []).append(key(spec))
    return found


# -- the tables of the experiments -------------------------------------------------------------------------------------
def with_chosen(specs: list[RunSpec], frame: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """`cells` with a column that says for which sparsity a strength is the chosen one."""
    table, chosen = cells(specs, frame, ARM, metrics), {}
    for (plain, name), keys in arms(specs).items():
        for measure in BOTH if name != "plain" else ():
            best = chosen_strength(frame[frame["key"].isin(keys)], frame[frame["key"] == key(plain)], measure)
            chosen.setdefault(best, []).append(measure.split("_")[1] + "s")
    table.insert(len(ARM), "chosen for", [" and ".join(chosen.get(key(s), ())) for s in specs])
    return table


def equal_sparsity(specs: list[RunSpec], frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy after zeroing of every criterion at equal sparsity, and its lead over the non-hierarchical counterpart."""
    rows, by_arm, done = [], arms(specs), frame[frame["status"] == "finished"]
    for plain, name, target in product(dict.fromkeys(p for p, _ in by_arm), CRITERIA, TARGETS):
        other, keys = counterpart(name), [*by_arm.get((plain, name), ()), key(plain)]
        at = accuracy_at_sparsity(done[done["key"].isin(keys)], target)
        beside = accuracy_at_sparsity(done[done["key"].isin([*by_arm.get((plain, other), ()), key(plain)])], target)
        row = {"net": LABELS["net"](plain), "arm": name, "sparsity": f"{target:g}", "counterpart": other, "n": len(at)}
        missing = NOT_REACHED if done["key"].isin(keys[:-1]).any() else NOT_RUN
        for what, values in {"accuracy": at, "lead": paired(at, beside) if other else at[:0]}.items():
            empty = [missing if other or what == "accuracy" else ""] * 3
            row |= zip((what, f"{what} low", f"{what} high"), interval(values) if len(values) else empty)
        rows.append(row | {"keys": " ".join(keys)})
    return pd.DataFrame(rows)


def published() -> pd.DataFrame:
    """data/published.csv with the change of accuracy beside; an empty cell was not available to us."""
    rows = pd.read_csv(REPOSITORY / "data" / "published.csv")
    return rows.assign(accuracy_change=(rows["pruned_accuracy"] - rows["baseline_accuracy"]).round(2))


def experiment_tables(name: str, scale: str, records: list[dict]) -> dict[str, pd.DataFrame]:
    """The tables of one experiment at a scale: labels, n, n_diverged, stale, then mean, low and high of each metric, keys.

    Raises ValueError for an unknown experiment or scale, and where a record is of another scale.
    """
    specs = unseeded(name, scale)
    if wrong := {r["scale"] for r in records} - {scale}:
        raise ValueError(f"the records' scale is {', '.join(sorted(wrong))}; allowed: only {scale} in its tables.")
    wanted = {key(s) for s in specs}
    records = [r for r in records if r["key"] in wanted]
    frame, papers = frame_of(records), published()
    uncut, cut = [s for s in specs if s == base_of(s)], [s for s in specs if s != base_of(s)]
    usual = [s for s in uncut if plain_of(s) in catalogue.BASES[scale].values()]
    ours = papers["method"].str.startswith("HGSR")
    if name == "1_hgsr_criteria":
        return {"strengths": with_chosen(uncut, frame, SPARSE), "equal_sparsity": equal_sparsity(uncut, frame)}
    if name == "2_hgsr_structure":
        depth = max(len(models.counted_convolutions(models.build(s.model, shortcut=s.shortcut or None))) for s in uncut[:1])
        labels = ["net", "width", "arm", "grouping", "strength"]
        return {"structure": cells(uncut, frame, labels, SPARSE),
                "layers": cells(uncut, frame, labels, [f"layer_{k}" for k in range(1, depth + 1)])}  # fmt: skip
    if name in ("3_hgsr_pruning", "5_ffr_pruning"):
        paper = papers[ours] if name.startswith("3") else papers[papers["macs_removed_pct"].notna()]
        return {"before_cut": cells(uncut, frame, ARM, FLOW), "cut": cells(cut, frame, [*ARM, "score", "amount"], PRUNED), "published": paper}
    if name == "4_ffr_flow":
        varied = {(arm_of(s), *strengths_of(s)) for s in uncut if s not in usual}
        recipes = [s for s in uncut if (arm_of(s), *strengths_of(s)) in varied]
        return {"strengths": with_chosen(usual, frame, FLOW), "recipes": cells(recipes, frame, ["net", "epochs", "weight_decay", *ARM[1:]], FLOW)}
    return {"readings" if name == "6_ffr_readings" else "together": cells(uncut, frame, [*ARM, "reading"], FLOW)}


# -- writing -----------------------------------------------------------------------------------------------------------
def text(column: str, value) -> str:
    """One cell: accuracies and changes with 2 decimals, shares with 4, numbers above 100 whole, others to 4 digits."""
    if isinstance(value, (str, int, np.integer)) or value is None:
        return str(value or "") if isinstance(value, (str, type(None))) else str(value)
    if not math.isfinite(value):
        return ""
    digits = 2 if "accuracy" in column or "lead" in column else 0 if abs(value) >= 100 else 4
    return f"{value:.{digits}f}" if abs(value) >= 1e-4 or not value else f"{value:.3g}"


def written(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every cell as the text that is shown: fixed decimals, whatever the platform."""
    return pd.DataFrame({c: [text(c, v) for v in table[c]] for c in table.columns}, dtype=object)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`written`, with mean and limits in one cell: "91.25 [90.98, 91.52]"."""
    out = written(table)
    for c in [c for c in out.columns if f"{c} low" in out]:
        low, high = out.pop(f"{c} low"), out.pop(f"{c} high")
        out[c] = [f"{m} [{a}, {b}]" if a and b and a != m else m for m, a, b in zip(out[c], low, high)]
    return out


def styled(table: pd.DataFrame):
    """The table for a notebook: readable cells, no index, keys left out, cells that were not run in grey."""
    shown = readable(table).drop(columns=["keys"], errors="ignore")
    return shown.style.hide(axis="index").map(lambda v: "color: #999" if v in (NOT_RUN, NOT_REACHED) else "")


def write(tables: dict[str, pd.DataFrame], experiment: str, scale: str, root: Path | None = None) -> list[Path]:
    """Writes results/tables/<scale>/<experiment>-<table>.csv and .md; the same records give the same bytes."""
    folder, paths = (Path(root) if root else results_folder()) / "tables" / scale, []
    for name, table in tables.items():
        shown = readable(table)
        lines = [f"# {experiment}, {name}, scale {scale}", "", "Mean [95 % interval] over n seeds; shares in [0, 1], accuracies in percent.", ""]
        lines += ["| " + " | ".join(row) + " |" for row in [list(shown), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]]
        paths.append(write_atomically(folder / f"{experiment}-{name}.md", "\n".join(lines) + "\n"))
        paths.append(write_atomically(folder / f"{experiment}-{name}.csv", written(table).to_csv(index=False, lineterminator="\n")))
    return paths


def write_all(scale: str, root: Path | None = None, records: list[dict] | None = None) -> list[Path]:
    """All tables of a scale from the store. Raises ValueError for a damaged record: it is never silently left out."""
    if records is None:
        records, problems = store.load_all(scale=scale)
        if problems:
            raise ValueError("; ".join(problem.why for problem in problems))
    return [p for name in catalogue.RUNS for p in write(experiment_tables(name, scale, records), name, scale, root)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ffrlib.tables", description="Write all tables of a scale.")
    parser.add_argument("--scale", default="quick", choices=SCALES)
    try:
        print(*write_all(parser.parse_args(arguments).scale), sep="\n")
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
