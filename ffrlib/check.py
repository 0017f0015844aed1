"""`python -m ffrlib.check`: does everything that is committed follow from the records? And does a replication agree?"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import pandas as pd

from ffrlib import claims, frames, literature, prose, rendering, store, tables, verdicts
from ffrlib.catalogue import BASES
from ffrlib.files import results_folder
from ffrlib.spec import SCALES, key

TOLERANCE = 1.0  # points between our mean and the published dense accuracies: recipes and numbers of epochs differ
SAME = ("device", "cpu", "threads", "precision", "stacking", "deterministic", "versions", "data")
# ... where these are equal and the code is, or is said to be (data/same_numbers.json), records are equal bit for bit.
TIMES = ("seconds", "latency_ms", "latency_left")  # what a replication measures anew
# (allowance beside an interval, allowance without one), see docs/protocol.md; accuracies in points, shares in [0, 1]
CHANCE = 0.007  # share of the cells that may lie outside their interval
EXACT = 1e-5  # a cut net's largest deviation from the masked one: rounding, of which no second machine does the same
ALLOWED = {"accuracy": (0.3, 1.0), "share": (0.005, 0.02), "relative": (0.01, 0.05)}


def regenerated(records: list[dict], root: Path) -> list[str]:
    """One line for each table, value, verdict or row of the index under `root` that is not what `records` give."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        for scale in SCALES:
            if tables.counted(records, scale) or (root / "tables" / scale).exists():
                rendering.write_all(scale, records, fresh)
        verdicts.write(records, fresh)
        made = {p.relative_to(fresh) for p in fresh.rglob("*") if p.is_file()}
        kept = {p.relative_to(root) for p in (root / "tables").rglob("*") if p.is_file()}
        for name in sorted(made | kept):
            if name not in made:
                wrong.append(f"{name}: no table has this name")
            elif not (root / name).exists():
                wrong.append(f"{name}: missing")
            elif (root / name).read_bytes() != (fresh / name).read_bytes():
                wrong.append(f"{name}: differs from what the records give")
        known = json.loads((fresh / "values.json").read_text())
    index, right = root / "INDEX.md", set(store.index_lines(records, [], root))
    rows = [line for line in index.read_text().splitlines() if line.startswith("| [")] if index.exists() else []
    wrong += [f"INDEX.md: no record gives the row {row}" for row in rows if row not in right]
    for path in prose.files():
        for name, shown, right in prose.numbers(path.read_text(), known):
            wrong.append(f"{path.name}: {name} is written {shown}, the records give {right or 'no such number'}")
    return wrong


def against_published(records: list[dict]) -> tuple[list[str], list[str]]:
    """(lines to print, lines that are wrong): our plain nets at scale paper beside published dense accuracies."""
    frame = frames.frame_of([r for r in records if r["scale"] == "paper"])
    papers, said, wrong = literature.published(), [], []
    for net in ("resnet20", "resnet56", "vgg16"):
        base = BASES["paper"][net]
        same = (papers["dataset"] == base.data) & (papers["model"] == net) & papers["method"].str.startswith("dense")
        dense = papers[same]["baseline_accuracy"]
        ours, what = claims.by_seed(frame, key(base), "test_accuracy"), f"dense {net} on {base.data}, scale paper"
        line = f"{what}: ours {ours.mean():.2f} (n = {len(ours)}), published {dense.min():.2f} to {dense.max():.2f}"
        if ours.empty:
            said.append(f"{what}: {tables.NOT_RUN}")
        elif dense.min() - TOLERANCE <= ours.mean() <= dense.max() + TOLERANCE:
            said.append(line)
        else:
            wrong.append(f"{line}: more than {TOLERANCE} points away")
    return said, wrong


def main() -> int:
    """Prints one line a finding; 1 where something is wrong, else 0. Stale records are listed, and are not wrong."""
    records, problems = store.load_all()
    said, wrong = against_published(records)
    wrong += [problem.why for problem in problems]
    wrong += regenerated(records, results_folder()) if not problems else []
    stale = [f"stale (made with other code): {r['path']}" for r in records if r["stale"]]
    print(*stale, *said, *(f"WRONG {line}" for line in wrong), sep="\n")
    print(f"{len(records)} records, {len(stale)} stale, {len(wrong)} wrong")
    return int(bool(wrong))


# -- replication -------------------------------------------------------------------------------------------------------
def timeless(value):
    """A record's curve or metrics without the times in it."""
    return {n: timeless(v) for n, v in value.items() if n not in TIMES} if isinstance(value, dict) else value


def agree(metric: str, committed: pd.Series, fresh: pd.Series) -> tuple[bool, str]:
    """Whether a cell's fresh mean lies in the committed 95 % interval, widened by half the width of the fresh one (of a
    single fresh run: by what the committed spread makes of it) and by the allowance; and why, as text."""
    (mean, _, high), (again, _, top) = tables.interval(committed), tables.interval(fresh)
    if math.isnan(mean) or math.isnan(again):
        return len(committed) == len(fresh) == 0 or math.isnan(mean) == math.isnan(again), f"{mean} against {again}"
    share = metric.endswith(prose.SHARES) or metric.startswith("layer_")
    allowed = ALLOWED["accuracy" if "accuracy" in metric else "share" if share else "relative"]
    reach = allowed[math.isnan(high)] * (abs(mean) if allowed is ALLOWED["relative"] else 1)
    if not math.isnan(high):
        reach += high - mean + ((high - mean) * math.sqrt(len(committed)) if math.isnan(top) else top - again)
    return abs(again - mean) <= reach, f"{mean:.6g} against {again:.6g}, allowed {reach:.3g}"


def cell_by_cell(fresh: list[dict], same: list[dict], every: list[dict]) -> dict[str, tuple[bool, str, bool]]:
    """Cell -> (agrees, why, by chance if not) of one arm: `fresh` records beside the committed ones of the `same` seeds
    and of `every` seed."""
    alike = all(r["provenance"].get(n) == o["provenance"].get(n) for r, o in zip(fresh, same) for n in SAME)
    code = lambda r, o: r["provenance"].get("code") == o["provenance"].get("code") or not (r["stale"] or o["stale"])  # noqa: E731
    if alike and all(map(code, fresh, same)):
        whole = lambda r: timeless({"status": r["status"], "curve": r["curve"], **r["metrics"]})  # noqa: E731
        flat = [[whole(r) for r in group] for group in (fresh, same)]
        names = sorted({name for r in flat[1] for name in r})  # newer code may measure more
        same = {n: all(r.get(n) == o[n] for r, o in zip(*flat) if n in o) for n in names}
        return {n: (equal, "equal provenance, other bits", False) for n, equal in same.items()}
    new, old = (frames.frame_of([r for r in rs if r["status"] == "finished"]) for rs in (fresh, every))
    ends = [[r["status"] for r in group] for group in (fresh, same)]
    out = {"status": (ends[0] == ends[1], "finished or diverged", False)}
    if "worst_deviation" in new and (largest := new.pop("worst_deviation").max()) > EXACT:
        out["worst_deviation"] = (False, f"{largest:.3g}, more than {EXACT}", False)
    old = old.drop(columns=["seed", "worst_deviation"]).select_dtypes("number").dropna(axis=1, how="all")
    none = pd.Series(dtype=float)
    for column in old:  # what only some of the committed runs have measured is asked of those that have it
        if not column.startswith(TIMES):
            known, found = old[column].dropna(), new.get(column, none)
            out[column] = (*agree(column, known, found.dropna() if len(known) < len(old) else found), True)
    return out


def verdicts_again(old: list[dict], new: list[dict]) -> list[str]:
    """What fresh records make of the verdicts of each scale that was made again as a whole: a line for each that comes
    out otherwise. Another processor may decide otherwise what is near a boundary: no difference is an error."""
    lines = []
    for scale in SCALES:
        both = [tables.counted(records, scale) for records in (old, new)]
        made, again = ({(r["key"], r["seed"]) for r in own} for own in both)
        both[1] = [r for r in both[1] if (r["key"], r["seed"]) in made]
        if made and made <= again:
            known, fresh = (
                {(v["claim"], v["net"], v["set"]): v["verdict"] for v in verdicts.verdicts(own) if v["scale"] == scale}
                for own in both
            )
            other = [(place, verdict) for place, verdict in known.items() if fresh[place] != verdict]
            lines += [
                f"verdict {' '.join(place)}: {verdict}, of the fresh runs {fresh[place]}" for place, verdict in other
            ]
            lines.append(
                f"{len(known) - len(other)} of {len(known)} verdicts at {scale} are the same from the fresh runs"
            )
    return lines


def compare(committed: Path, fresh: Path) -> int:
    """Compares every record under `fresh` with the committed one; prints agree or differs for each cell (arm x metric).

    Where `SAME` is the same, records must be equal but for times; elsewhere cells must `agree`, but for the share of
    them that chance explains (`CHANCE`): see docs/protocol.md. Returns 1 where more differ, or anything else:
    the status of a run, a record that is damaged or has no committed one; and where there is no record. Else 0.
    """
    (old, bad), (new, worse) = store.load_all(Path(committed)), store.load_all(Path(fresh))
    wrong = [f"differs {problem.why}" for problem in bad + worse]
    known, arms, by_chance, compared = {(r["key"], r["seed"]): r for r in old}, {}, [], 0
    for record in new:
        label = "/".join(Path(record["path"]).parts[-3:]).rsplit("-s", 1)[0]
        if (record["key"], record["seed"]) in known:
            arms.setdefault(label, []).append(record)
        else:
            wrong.append(f"differs {label}: no committed record of seed {record['seed']}")
    for label, group in arms.items():
        same = [known[r["key"], r["seed"]] for r in group]
        cells = cell_by_cell(group, same, [r for r in old if r["key"] == group[0]["key"]])
        agreed = ", ".join(name for name, (good, *_) in cells.items() if good)
        print(f"agree   {label}, n = {len(group)}: {agreed}")
        compared += len(cells)
        for name, (good, why, statistical) in cells.items():
            if not good:
                (by_chance if statistical else wrong).append(f"differs {label}, {name}: {why}")
    print(*wrong, *by_chance, *verdicts_again(old, new), sep="\n")
    bound = int(CHANCE * compared)
    print(f"{len(new)} records compared with {len(old)} committed ones in {compared} cells: {len(wrong)} differences,")
    print(f"and {len(by_chance)} cells outside their interval, of which chance explains up to {bound}")
    return int(bool(wrong) or len(by_chance) > bound or not new)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(main())
