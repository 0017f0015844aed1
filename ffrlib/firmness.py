"""How firm the conclusions of H1, F1 and F4 are: on fresh seeds, and where the strengths are chosen by another rule.

Of these only the test on fresh seeds has a verdict, its own; a claim's verdict hangs on none (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ffrlib import catalogue, decide, frames, tables
from ffrlib.claims import EQUAL_ACCURACY, SPARSER, WEIGHTS, by_seed, compare
from ffrlib.spec import RunSpec, key
from ffrlib.tables import NOT_REACHED, arm_of, arms, covered, interval

CLAIMS = catalogue.CLAIMS[catalogue.FIRM]
ASKED = {claim: [(a, b) for a, b, measure, _ in EQUAL_ACCURACY[claim] if measure == WEIGHTS] for claim in CLAIMS}
LOST = (0.5, 1.0, 2.0, 3.0)  # points of validation accuracy that a choice may cost; the protocol's is 1
MORE = {  # in accuracy; the first tells channels apart where the removable share is at its floor
    "lead with 30 % of the channels cut": "cut_30_test_accuracy",
    "lead in test accuracy": "test_accuracy",  # strengths were chosen within a point on other seeds: is it equal here?
    "lead in test accuracy without these weights": "weights_removed_test_accuracy",
}


def lead(name: str, differences: pd.Series) -> dict:
    """{column: mean, and its limits} of paired differences, in points; `not reached` where there is no pair."""
    shown = interval(differences) if len(differences) else [NOT_REACHED] * 3
    return dict(zip((name, f"{name} low", f"{name} high"), shown))


def interpolated(frame: pd.DataFrame, keys: list[str], plain: str, lost: float) -> pd.Series:
    """Removable weights of an arm in points, by seed, where its mean validation accuracy is `lost` points below that of
    the run with key `plain`: linear between the two strengths (`keys`, ascending; the plain net is strength 0) between
    which it first gets there. Empty where it never does, or
    where the plain net has no run."""
    arm = covered(frame[frame["status"] == "finished"], keys)
    stored = [plain, *(k for k in keys if k in set(arm["key"]))]
    rows = frame[frame["key"].isin(stored) & frame["seed"].isin(arm["seed"])]
    accuracy = rows.groupby("key")["validation_accuracy"].mean()
    if plain not in accuracy:
        return pd.Series(dtype=float)
    for near, far in zip(stored, stored[1:]):
        here, there = (accuracy[plain] - accuracy[k] for k in (near, far))
        if here <= lost < there:
            share = (lost - here) / (there - here)
            return ((1 - share) * by_seed(rows, near, WEIGHTS) + share * by_seed(rows, far, WEIGHTS)).dropna()
    return pd.Series(dtype=float)


def complete(frame: pd.DataFrame, keys: list[str]) -> list[str]:
    """Those of an arm's keys that do not wait for a run, in the same order."""
    found = set(covered(frame, keys)["key"])
    return [k for k in keys if k in found]


def without_a_choice(frame: pd.DataFrame, keys: list[str], plain: str) -> pd.Series:
    """Removable weights in points, by seed: the mean over all strengths of an arm that may be chosen."""
    within = [k for k in complete(frame, keys) if tables.chosen_strength(frame, [k], plain, WEIGHTS)]
    return pd.DataFrame({k: by_seed(frame, k, WEIGHTS) for k in within}, dtype=float).dropna().mean(axis=1)


def by_choice(frame: pd.DataFrame, keys: list[str], plain: str) -> dict[str, pd.Series]:
    """Removable weights of an arm in points, by seed, for each rule of choosing its strength: {column: values}."""
    chosen = {held: tables.chosen_strength(frame, keys, plain, WEIGHTS, held) for held in LOST}
    found = {f"lead within {held:g}": by_seed(frame, best or "", WEIGHTS) for held, best in chosen.items()}
    found["lead without a choice"] = without_a_choice(frame, keys, plain)
    return found | {"lead at 1 point lost": interpolated(frame, keys, plain, 1.0)}


def parts_in_weights(scale: str) -> Iterator[tuple[dict, RunSpec, list[tuple[str, list[str]]]]]:
    """(labels of the row, plain run, [(arm, keys of its strengths)] of both arms) for each part of H1, F1 and F4."""
    for claim in CLAIMS:
        grids = arms(tables.unseeded("1_hgsr_criteria" if claim == "H1" else "4_ffr_flow", scale))
        flows = dict.fromkeys(catalogue.FFR_NETS[scale], ("plain", *catalogue.FLOW_ARMS))
        for net, names in (catalogue.criteria(scale) if claim == "H1" else flows).items():
            base = catalogue.BASES[scale][net]
            for pair in (p for p in ASKED[claim] if set(p) <= set(names)):
                labels = {"claim": claim, "net": tables.LABELS["net"](base), "part": " - ".join(pair)}
                yield labels, base, [(arm, grids.get((base, arm), [])) for arm in pair]


def keys_of(base: RunSpec, pair: list[tuple[str, list[str]]]) -> str:
    return " ".join(dict.fromkeys([*pair[0][1], *pair[1][1], key(base)]))


def other_choices(scale: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The leads in removable weights of each part of H1, F1 and F4, where a choice may cost other amounts than a point,
    without any choice, and between strengths, at exactly a point lost (the plain net is compared as it is)."""
    rows = []
    for row, base, pair in parts_in_weights(scale):
        first, second = (by_choice(frame, keys, key(base)) for _, keys in pair)
        if pair[1][0] == "plain":
            second = dict.fromkeys(first, by_seed(frame, key(base), WEIGHTS))
        for name in first:
            row |= lead(name, (first[name] - second[name]).dropna())
        rows.append(row | {"keys": keys_of(base, pair)})
    return pd.DataFrame(rows)


def by_rule(frame: pd.DataFrame, plain: str, pair: list[tuple[str, list[str]]]) -> tuple[pd.Series, list[str]]:
    """(lead in removable weights in points, by seed; the keys chosen for both arms by the protocol's rule, "" for an
    arm that has none within a point)."""
    chosen = [tables.chosen_strength(frame, keys, plain, WEIGHTS) or "" for _, keys in pair]
    chosen = [plain if arm == "plain" else own for (arm, _), own in zip(pair, chosen)]
    first, second = (by_seed(frame, own, WEIGHTS) for own in chosen)
    return (first - second).dropna(), chosen


def one_left_out(scale: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The protocol's lead of each part of H1, F1 and F4 in removable weights, and what is left of it where one seed is
    left out, from the choice of the strengths too: how often the same strengths are chosen then, and (in the columns
    `low` and `high`) the least and the largest lead. Parts with fewer than three seeds have no row."""
    rows = []
    for row, base, asked in parts_in_weights(scale):
        pair = [(arm, complete(frame, keys)) for arm, keys in asked]  # no strength joins where a seed is left out
        whole, chosen = by_rule(frame, key(base), pair)
        if len(whole) < 3:
            continue
        found = [by_rule(frame[frame["seed"] != seed], key(base), pair) for seed in whole.index]
        means = [round(differences.mean(), 9) for differences, _ in found if len(differences)]  # not the last bits
        row |= {"n": len(whole), "same strengths": f"{sum(other == chosen for _, other in found)} of {len(found)}"}
        row |= {"lead": round(whole.mean(), 9), "lead low": min(means), "lead high": max(means)} if means else {}
        rows.append(row | {"keys": keys_of(base, asked)})
    return pd.DataFrame(rows)


def confirmation(scale: str, usual: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    """Each part of H1, F1 and F4 in weights on fresh seeds alone, at the strengths that were chosen before, beside its
    effect on the `usual` seeds that chose them; and on the fresh ones the leads `MORE`. No row where no strength was
    frozen."""
    cells: dict[RunSpec, dict[str, str]] = {}
    for spec in tables.unseeded(catalogue.FIRM, scale):
        cells.setdefault(tables.plain_of(spec), {})[arm_of(spec)] = key(spec)
    rows = []
    for base, cell in cells.items():
        for claim in CLAIMS:
            pairs = [(cell[a], cell[b], f"{a} - {b}") for a, b in ASKED[claim]]
            parts = [compare(fresh, a, b, WEIGHTS, SPARSER, name) for a, b, name in pairs]
            for (a, b, name), part, judged in zip(pairs, parts, decide.judge(parts)):
                row = {"claim": claim, "net": tables.LABELS["net"](base), "part": name}
                row |= lead("lead before", compare(usual, a, b, WEIGHTS, SPARSER, name).differences)
                row |= lead("lead", part.differences) | {"n": judged["n"], "verdict": judged["verdict"]}
                for shown, measure in ((n, m) for n, m in MORE.items() if m in fresh):
                    row |= lead(shown, compare(fresh, a, b, measure, SPARSER, name).differences)
                rows.append(row | {"keys": f"{a} {b}"})
    return pd.DataFrame(rows)


def split(records: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The records of the usual seeds, and of the fresh ones, each as a frame."""
    usual, fresh = (frames.frame_of(tables.seeds_of(records, which)) for which in (False, True))
    return usual, fresh


def firm_tables(scale: str, records: list[dict]) -> dict[str, pd.DataFrame]:
    """The tables of the last experiment from all records of a scale, without those that have no row."""
    usual, fresh = split(records)
    made = {"confirmation": confirmation(scale, usual, fresh), "other_choices": other_choices(scale, usual)}
    made["one_left_out"] = one_left_out(scale, usual)
    made |= tables.experiment_tables(catalogue.FIRM, scale, records)
    return {name: table for name, table in made.items() if len(table)}
