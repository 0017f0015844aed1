"""Verdicts on the claims H1-H4 and F1-F4 by the rules of docs/protocol.md.

`python -m ffrlib.verdicts` writes results/verdicts.md, verdicts.json and values.json, and refreshes the numbers in
prose (see `ffrlib.prose`). All effects are in points: of accuracy, or of a share in percent.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
from itertools import product
from pathlib import Path

import pandas as pd

from ffrlib import catalogue, firmness, frames, prose, rendering, store, tables
from ffrlib.claims import EQUAL_ACCURACY, SPARSER, Part, against_baselines, at_equal_accuracy, crossing, cut_by_loss
from ffrlib.decide import MOST, PAIRS, judge
from ffrlib.files import REPOSITORY, results_folder, write_atomically
from ffrlib.scales import HGSR_NETS
from ffrlib.spec import SCALES

UNTRIED = [*product(("F1", "F2"), ("vgg16", "resnet56"), ("tiny_imagenet",)),
           *product(("H1",), HGSR_NETS["paper"], ("cifar100", "stl10")),
           *product(("H2",), ("all nets and widths",), ("cifar100", "stl10"))]  # fmt: skip


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
    """The verdict on a claim for one net and set at one scale; its effect is that of the weakest part that decides, of
    those that have pairs if any has."""
    judged = judge(parts)
    verdict = conclude(claim, judged)
    deciding = [j for j in judged if j["decides"]] or judged
    failing = [j for j in deciding if verdict == "not supported" == j["verdict"]]
    weakest = min(failing or deciding, key=lambda j: (not j["n"], (j["mean"] or 0) - j["at_least"]), default=None)
    waiting = [j for j in deciding if j["verdict"] == "undecided"]
    needs = [j["seeds_needed"] for j in waiting] or [PAIRS]  # a part that more seeds cannot decide holds up the verdict
    seeds = max(needs) if verdict == "undecided" and all(needs) else 0
    wanted = [(min(j["seeds_needed"], MOST), k) for p, j in zip(parts, judged) if j in waiting for k in p.keys if k]
    arms = {k: most for most, k in sorted(wanted)}  # of each key the seeds for the part that needs most, which is last
    runs = max(sum(arms.values()), (4 if claim == "H2" else 2) * min(seeds, MOST)) if seeds else 0
    effect = weakest and {name: weakest[name] for name in ("part", "mean", "low", "high", "n", "across", "within")}
    return {"claim": claim, "net": net, "set": data, "scale": scale, "verdict": verdict, "effect": effect,
            "rule": f"docs/protocol.md ({protocol()}), {claim}",
            "seeds_needed": seeds, "runs_needed": runs, "parts": judged,
            "records": sorted({k for j in judged for k in j["records"]})}  # fmt: skip


def verdicts(records: list[dict]) -> list[dict]:
    """The verdict on every claim for each net and set of the catalogue, scales apart, and on what no run covers yet."""
    none = pd.Series(dtype=float)
    missing = {claim: [Part(f"{a} - {b}, {m}", none, SPARSER, (f"?{a}", f"?{b}"), d) for a, b, m, d in asked]
               for claim, asked in EQUAL_ACCURACY.items()}  # fmt: skip
    out = [entry(claim, "paper", net, data, missing.get(claim, [])) for claim, net, data in UNTRIED]
    strength = {r["key"]: tables.LABELS["strength"](r["spec"]) for r in records}
    for scale, known in catalogue.BASES.items():
        frame = frames.frame_of([r for r in tables.seeds_of(records) if r["scale"] == scale])
        hgsr, ffr = ([known[n] for n in nets] for nets in (catalogue.criteria(scale), catalogue.FFR_NETS[scale]))
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
                judged["strengths"] = [strength.get(k, "") for k in judged["records"]]
                judged["stale"] = bool(frame.loc[frame["key"].isin(judged["records"]), "stale"].any())
    return sorted(out, key=lambda v: (v["claim"][0] != "H", v["claim"], SCALES.index(v["scale"])))


# -- writing -----------------------------------------------------------------------------------------------------------
def effect_text(e: dict | None) -> str:
    """Mean, interval and n of an effect, in points."""
    if not e or e["mean"] is None:
        return "no pair"
    limits = "" if e["low"] is None else f" [{e['low']:+.2f}, {e['high']:+.2f}]"
    others = "" if e["within"] is None else f" (mean of the others {e['within']:+.2f})"
    across = f", of which {e['across']} across two processors{others}" * (e["across"] > 0)
    return f"{e['mean']:+.2f}{limits}, n = {e['n']}{across}"


def on_fresh_seeds(records: list[dict]) -> list[str]:
    """The lines of verdicts.md on the parts that were tested again, on seeds that had no part in choosing strengths."""
    columns, lines = ["claim", "net", "part", "lead before", "lead", "n", "verdict"], []
    for scale in SCALES:
        tested = firmness.confirmation(scale, *firmness.split([r for r in records if r["scale"] == scale]))
        shown = rendering.readable(tested)[columns].to_numpy().tolist() if len(tested) else []
        lines += [f"| {' | '.join([scale, *row])} |" for row in shown]
    about = "Parts in prunable weights, tested once more on seeds that chose nothing, at the strengths chosen before."
    head = ["", "## On fresh seeds", "", about, "", f"| scale | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|"]  # fmt: skip
    return head + lines if lines else []


def markdown(found: list[dict], fresh: list[str] = ()) -> str:
    """verdicts.md: one row a verdict, then the lines `fresh`, then the parts of each verdict that has any pair."""
    lines = ["# Verdicts", "", "Generated from the records by the rules of [the protocol](../docs/protocol.md).",
             "Effects are in points of accuracy, or of a share in percent.", "",
             f"The version of the protocol that they follow is {protocol()} (the start of its SHA-256).",
             f"With fewer than {PAIRS} pairs a part is undecided, whatever it shows. Runs needed: of each arm as many",
             "seeds as its parts want; a guess, fewer where an arm has seeds that others lack, more where it wants a",
             "weaker strength. Between two kinds of processor one run's prunable share can differ by ten points: a",
             "pair across them says less.",
             "An interval of width zero is no precision: all pairs are equal, on a coarse measure (shares in steps of",
             "2.5 points, counts of channels).",
             "In the parts, b is the boundary that an effect must exceed for `supported`, m the least of interest.",
             "† marks records made with other code. H4 is about a Tiny ImageNet ResNet: other nets are analogues.", "",
             "| claim | net | set | scale | verdict | weakest deciding part | effect [95 % interval] | runs needed |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    some = [v for v in found if any(j["n"] for j in v["parts"])]
    analogue = lambda v: ", an analogue" * (v["claim"] == "H4" and "tiny" not in v["net"])  # noqa: E731
    for v in some:
        seeds = f"over {MOST}" if v["seeds_needed"] > MOST else v["seeds_needed"]
        waiting = [j["seeds_needed"] for j in v["parts"] if j["decides"] and j["verdict"] == "undecided"]
        blind = f" in {waiting.count(0)} of {len(waiting)} undecided parts" * (waiting.count(0) < len(waiting))
        helpless = f"a finer measure{blind}" * (v["verdict"] == "undecided")
        about = "over" if v["seeds_needed"] > MOST else "about"
        needed = f"{about} {v['runs_needed']} ({seeds} seeds)" if v["runs_needed"] else helpless
        deciding = [j["n"] > 0 for j in v["parts"] if j["decides"]]
        of = f" ({sum(deciding)} of {len(deciding)} parts have pairs)" * (0 < sum(deciding) < len(deciding))
        lines.append(f"| {v['claim']}{analogue(v)} | {v['net']} | {v['set']} | {v['scale']} | **{v['verdict']}** "
                     f"| {v['effect']['part']}{of} | {effect_text(v['effect'])} | {needed} |")  # fmt: skip
    price = lambda v: f"about {v['runs_needed']}{', not listed' * ((v['claim'], v['net'], v['set']) in UNTRIED)}"  # noqa: E731
    for scale in SCALES:
        unseen = [f"{v['claim']} {v['net']} on {v['set']} ({price(v)})"
                  for v in found if v not in some and v["scale"] == scale]  # fmt: skip
        why = f"Undecided at `{scale}` for want of any pair (not run, or no strength within a point of the plain net), "
        why += "with the runs needed (not listed: the catalogue has no such net and set; some of the others need "
        why += "strengths first): "
        lines += ["", why + "; ".join(unseen) + "."] if unseen else []
    lines += fresh
    for v in some:
        lines += ["", f"## {v['claim']}{analogue(v)}, {v['net']}, {v['set']}, scale {v['scale']}: {v['verdict']}", "",
                  "| part | decides | verdict | effect [95 % interval] | p above b, below m (Holm) "
                  "| records (strength) |", "|---|---|---|---|---|---|"]  # fmt: skip
        for j in v["parts"]:
            decides, mark = "yes" if j["decides"] else "no", " †" * j["stale"]
            pairs = zip(j["records"], j["strengths"])
            made = " ".join(f"{k} ({s})" if s else k for k, s in pairs)  # plain training has no strength
            lines.append(f"| {j['part']} | {decides} | {j['verdict']} | {effect_text(j)}{mark} "
                         f"| {j['p_above']}, {j['p_below']} | {made} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def write(records: list[dict], root: Path | None = None) -> list[Path]:
    """Writes verdicts.md, verdicts.json and values.json under `root` (results/): equal records, equal bytes."""
    found, root = verdicts(records), Path(root or results_folder())
    dump = lambda what: json.dumps(what, indent=1, sort_keys=True) + "\n"  # noqa: E731
    numbers = prose.values(records, found)
    text = markdown(found, on_fresh_seeds(records))
    files = {"verdicts.md": text, "verdicts.json": dump(found), "values.json": dump(numbers)}
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
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
