"""The catalogue: which runs each experiment needs at each scale, in the order in which they decide a claim.

A run may serve several experiments; it is made once. Priority 0 runs first. The strengths of an arm are data
(`data/strengths.json`): centred where a criterion's first push on the weights equals that of L1
and widened by the pilot (`benchmarks/pilot.py`) until the arm covers the range that docs/protocol.md asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product

from ffrlib.arms import compared, flow_arm, later, middle, net_priority, published_loss, turn, weight_arm
from ffrlib.files import REPOSITORY
from ffrlib.scales import (
    BASES,
    BESIDE,
    CHANNEL_SCORES,
    CUT_BY_LOSS,
    FEW_SCORES,
    FEW_SEEDS,
    FFR_NETS,
    FINE_TUNE,
    FIRST,
    FLOW_ARMS,
    FRESH,
    HGSR_NETS,
    HGSR_PAIRS,
    HSQ_GL12,
    READINGS,
    SEEDS,
    TOGETHER,
    TOLERANCES,
    WIDE,
)  # fmt: skip
from ffrlib.spec import (
    CRITERIA,
    SCALES,
    Pruning,
    RunSpec,
    choose,
    require,
)  # fmt: skip

CLAIMS = {  # experiment, made by the notebook of the same name under notebooks/experiments -> what it speaks to
    "1_hgsr_criteria": ("H1",), "2_hgsr_structure": ("H2",), "3_hgsr_pruning": ("H3", "H4"),
    "4_ffr_flow": ("F1", "F2", "F4"), "5_ffr_pruning": ("F3",), "6_ffr_readings": ("F1", "F2", "F4"),
    "7_both_papers": ("H1", "F4"), "8_how_firm": ("H1", "F1", "F4"),
}  # fmt: skip


def strengths(scale: str, net: str, arm: str) -> list[float]:
    """The strengths of an arm (a criterion, or a key of FLOW_ARMS) for a net, ascending; empty if none were chosen."""
    return json.loads((REPOSITORY / "data" / "strengths.json").read_text()).get(scale, {}).get(net, {}).get(arm, [])


def beside(scale: str, net: str, arm: str) -> list[float]:
    """The arm's strengths in BESIDE, ascending; none for an arm that has no grid."""
    return list(BESIDE.get((scale, net), {}).get(arm, ())) if strengths(scale, net, arm) else []


def turns(scale: str, net: str, arm: str, late: float) -> list[tuple[float, float]]:
    """(strength, its turn) of an arm's grid and of its strengths beside, ascending; `late`: the turn of the latter."""
    grid = strengths(scale, net, arm)
    return sorted([(s, turn(k, grid)) for k, s in enumerate(grid)] + [(s, late) for s in beside(scale, net, arm)])


def criteria(scale: str) -> dict[str, tuple[str, ...]]:
    """Net -> the criteria that H1 takes on it: all of them, or one pair on a further net."""
    return dict.fromkeys(HGSR_NETS[scale], tuple(CRITERIA)) | HGSR_PAIRS.get(scale, {})


def hgsr_criteria(scale: str) -> Iterator[tuple[float, RunSpec]]:
    for net, names in criteria(scale).items():
        base, order = BASES[scale][net], 1 if net in HGSR_NETS[scale] else 5.7  # below 6: every seed
        yield order - 0.05, base
        for name in names:
            for strength, when in turns(scale, net, name, 0.2):
                yield order + when, weight_arm(base, name, strength)
    if scale != "laptop":  # whose recipe is far from the script's
        net = HGSR_NETS[scale][0]
        for spec in published_loss(BASES[scale][net], strengths(scale, net, HSQ_GL12)):
            yield 5.6, spec  # below 6: every seed


def hgsr_structure(scale: str) -> Iterator[tuple[float, RunSpec]]:
    whole = scale == "paper"  # every net and strength by neuron too; elsewhere the first net at one strength
    for place, net in enumerate(HGSR_NETS[scale] if whole else HGSR_NETS[scale][:1]):
        base = BASES[scale][net]
        yield 0.95, base
        for name in CRITERIA:
            grid = strengths(scale, net, name)
            for strength in compared(scale, grid):
                yield 1, weight_arm(base, name, strength)
            for k, strength in enumerate(grid):
                if name != "l1" and (whole or [strength] == compared(scale, grid)):  # L1 has no groups, so no grouping
                    yield 4 + place + turn(k, grid), weight_arm(base, name, strength, "neuron")
            for strength in compared(scale, grid) if place == 0 and (whole or name in WIDE) else ():
                for width in (0.5, 2.0):
                    yield 5, weight_arm(replace(base, width=width), name, strength)
        for width in (0.5, 2.0) if place == 0 else ():
            yield 5, replace(base, width=width)


def cuts(base: RunSpec, scores, amounts, budget: str, epochs: int, lr: float, **more) -> Iterator[RunSpec]:
    for score in scores:
        for amount in amounts:
            yield replace(base, pruning=Pruning(score, budget, amount, epochs=epochs, lr=lr, **more))


def hgsr_pruning(scale: str) -> Iterator[tuple[float, RunSpec]]:
    epochs, lr = FINE_TUNE[scale]
    for net in CUT_BY_LOSS[scale]:
        base = BASES[scale][net]
        grid = strengths(scale, net, HSQ_GL12)
        asked = grid[:1] if scale == "laptop" else middle(grid)  # its middle one costs more than a point uncut
        asked += [s for s in middle(grid) if s not in asked]  # the first is what H3 and H4 judge (docs/protocol.md)
        penalised = [weight_arm(base, HSQ_GL12, s) for s in asked]
        for start in (base, *penalised):
            yield net_priority(net, 2), start
            for spec in cuts(start, ["loss_increase"], TOLERANCES, "loss_tolerance", epochs, lr):
                yield 3 + later(net), spec


def ffr_flow(scale: str) -> Iterator[tuple[float, RunSpec]]:
    for net in FFR_NETS[scale]:
        base, order = BASES[scale][net], 0 if net in FIRST else later(net) or 1
        yield order, base
        for arm in FLOW_ARMS:
            first, grid = arm in ("control", "both"), strengths(scale, net, arm)
            spared = grid[:1] + grid[2:] * (not first) if scale == "laptop" and len(grid) > 2 else []
            # ... which decide least, to stay within 12 hours (docs/protocol.md)
            start = order + (0.5 if first else 1.5)
            for strength, when in turns(scale, net, arm, order + 2 - start):
                if strength not in spared:
                    yield start + when, flow_arm(base, arm, strength)
        if net == FFR_NETS[scale][0]:  # run length and weight decay, at the middle strength
            longer, heavier = {"epochs": 2 * base.recipe.epochs}, {"weight_decay": 5e-3}
            for change in (longer, heavier) if scale != "laptop" else (longer,):
                other, when = replace(base, recipe=replace(base.recipe, **change)), 5 if scale == "quick" else 6
                yield when, other
                for arm in ("control", "both"):
                    for strength in middle(strengths(scale, net, arm)):
                        if change is longer and scale == "quick":  # half as strong: the same push in all
                            yield when, flow_arm(other, arm, strength / 2)
                        yield when, flow_arm(other, arm, strength)


def ffr_pruning(scale: str) -> Iterator[tuple[float, RunSpec]]:
    epochs, lr = FINE_TUNE[scale]
    amounts = {"quick": (0.3, 0.4, 0.5, 0.6, 0.7), "laptop": (0.3, 0.5), "paper": (0.5, 0.7)}[scale]
    for net in FFR_NETS[scale]:
        base = BASES[scale][net]
        arms = [flow_arm(base, arm, s) for arm in ("control", "both") for s in middle(strengths(scale, net, arm))]
        arms += [weight_arm(base, "group_lasso", s) for s in middle(strengths(scale, net, "group_lasso"))]
        arms += [weight_arm(base, "network_slimming", s) for s in middle(strengths(scale, net, "network_slimming"))]
        scores = (*CHANNEL_SCORES, *CRITERIA[1:]) if scale == "quick" else FEW_SCORES
        for start in (base, *arms):
            yield net_priority(net, 3), start
        for spec in cuts(base, scores, amounts, "macs_share", epochs, lr):
            yield 3 + later(net), spec
        for start in arms:
            for spec in cuts(start, ["bn_scale", "l1_norm"], amounts, "macs_share", epochs, lr):
                yield 3 + later(net), spec
        for spec in cuts(base, ["l1_norm"], amounts, "macs_share", 0, lr, after="scratch"):
            yield 4 + later(net), spec
    if scale != "quick":
        yield from published_resnet56(scale)


def published_resnet56(scale: str) -> Iterator[tuple[float, RunSpec]]:
    """Published weights of ResNet-56, cut as they are; at `laptop` also after a few epochs with each penalty (stands in
    for training), at `paper` fine-tuned for as long as our own nets, to stand beside `data/published.csv`."""
    tuned = BASES[scale]["resnet56"]
    start = replace(tuned, init="published", recipe=replace(tuned.recipe, epochs=0, lr=0.01))
    amounts, tuning = {"laptop": ((0.3, 0.5, 0.7), (1, 0.02)), "paper": ((0.5, 0.7), FINE_TUNE["paper"])}[scale]
    by_loss = cuts(start, ["loss_increase"], amounts, "macs_share", *tuning, samples=64)  # 400 passes over them
    for spec in (start, *cuts(start, FEW_SCORES, amounts, "macs_share", *tuning), *by_loss):
        later_ones = (spec.pruning.amount > 0.5) + 0.5 * (spec.pruning.score not in ("none", "l1_norm", "random"))
        yield 2 if scale == "laptop" else 4 + later_ones, spec
    if scale == "paper":  # is it the fine-tuning that loses more than published ones do? (docs/protocol.md)
        yield from ((4, spec) for spec in cuts(start, ["l1_norm"], amounts[:1], "macs_share", tuning[0], 0.1))
        return
    arms = [flow_arm(tuned, arm, s) for arm in ("control", "both") for s in strengths("laptop", "resnet56", arm)]
    arms += [weight_arm(tuned, n, s) for n in ("group_lasso", HSQ_GL12) for s in strengths("laptop", "resnet56", n)]
    for penalised in (tuned, *arms):
        for spec in (penalised, *cuts(penalised, ["bn_scale", "l1_norm"], (0.5,), "macs_share", 1, 0.02)):
            yield 7, spec


def ffr_readings(scale: str) -> Iterator[tuple[float, RunSpec]]:
    net = FFR_NETS[scale][0]
    base = BASES[scale][net]
    plain_net = net in ("digits_cnn", "vgg16")
    yield 1, base
    default_tap = "post_activation" if plain_net else "block_output"
    unfit = {default_tap, "shortcut", "block_output"} if plain_net else {default_tap}
    fit = [options for options in READINGS.values() if not unfit & set(options.values())]
    taps = [options for options in fit if "tap" in options] if scale != "laptop" else []
    for arm, readings in (("both", fit), ("control", taps)):  # of all options the control has the taps alone
        for strength in middle(strengths(scale, net, arm)):
            yield 1, flow_arm(base, arm, strength)
            for options in readings:
                yield 5, flow_arm(base, arm, strength, **options)


def both_papers(scale: str) -> Iterator[tuple[float, RunSpec]]:
    net, (epochs, lr) = FFR_NETS[scale][0], FINE_TUNE[scale]
    base = BASES[scale][net]
    flows = [(arm, s) for arm in ("control", "both") for s in middle(strengths(scale, net, arm))]
    weights = [weight_arm(base, c, s) for c in TOGETHER[scale] for s in middle(strengths(scale, net, c))]
    apart = [base, *(flow_arm(base, *flow) for flow in flows), *weights]
    pairs = [flow_arm(start, *flow) for start in weights for flow in flows]
    for start in apart:
        yield net_priority(net, 1 if start == base else 2.5), start
    for start in pairs:
        yield 6, start
    for start in apart + pairs:  # at equal budget
        for spec in cuts(start, ["l1_norm"], (0.5,), "macs_share", epochs, lr):
            yield 6.5, spec


def how_firm(scale: str) -> Iterator[tuple[float, RunSpec]]:
    """The arms of H1, F1 and F4 at the strengths that were chosen for weights before (`data/confirmation.json`)."""
    frozen = json.loads((REPOSITORY / "data" / "confirmation.json").read_text()).get(scale, {})
    for net, arms in frozen.items():
        base = BASES[scale][net]
        yield 5.5, base
        for arm, strength in arms.items():
            yield 5.5, flow_arm(base, arm, strength) if arm in FLOW_ARMS else weight_arm(base, arm, strength)


def unchosen(name: str, scale: str) -> list[tuple[str, str]]:
    """(net, arm) of an experiment for which no strength has been chosen: they have no runs in the lists below."""
    hgsr, ffr, penalised = HGSR_NETS[scale], FFR_NETS[scale], ("control", "both", "group_lasso")
    asked = {
        "1_hgsr_criteria": ((net, name) for net, names in criteria(scale).items() for name in names),
        "2_hgsr_structure": product(hgsr if scale == "paper" else hgsr[:1], CRITERIA),
        "3_hgsr_pruning": product(CUT_BY_LOSS[scale], [HSQ_GL12]), "4_ffr_flow": product(ffr, FLOW_ARMS),
        "5_ffr_pruning": chain(product(ffr, (*penalised, "network_slimming")),
                               product(["resnet56"] * (scale == "laptop"), (*penalised, HSQ_GL12))),
        "6_ffr_readings": product(ffr[:1], ["both", "control"]),
        "7_both_papers": product(ffr[:1], ("control", "both", *TOGETHER[scale])),
    }  # fmt: skip
    return [(net, arm) for net, arm in asked.get(name, ()) if not strengths(scale, net, arm)]


FIRM = "8_how_firm"  # the one experiment whose runs have the seeds FRESH
RUNS = {
    "1_hgsr_criteria": hgsr_criteria, "2_hgsr_structure": hgsr_structure, "3_hgsr_pruning": hgsr_pruning,
    "4_ffr_flow": ffr_flow, "5_ffr_pruning": ffr_pruning, "6_ffr_readings": ffr_readings, "7_both_papers": both_papers,
    "8_how_firm": how_firm,
}  # fmt: skip


def specs(scale: str, experiment: str | None = None, seeds: int = 0) -> list[RunSpec]:
    """The runs of one experiment (or of all) at a scale, by priority; what decides comes first, seed by seed.

    `seeds`: how many, 0 for the scale's own number. Raises ValueError for an unknown scale or experiment.
    """
    choose("scale", scale, SCALES)
    require(seeds >= 0, "seeds", seeds, "a number of seeds, 0 for the scale's own")
    if experiment:
        choose("experiment", experiment, RUNS)
    found: dict[RunSpec, tuple] = {}
    for name in [experiment] if experiment else RUNS:
        number = seeds or FEW_SEEDS.get(scale, {}).get(name, SEEDS[scale])
        for place, (priority, spec) in enumerate(RUNS[name](scale)):
            few = 1 if priority >= 6 and scale == "laptop" and not seeds else number
            own = FRESH[: seeds or None] if name == FIRM else range(few)
            for seed in own[:1] if spec.init == "published" and not seeds else own:
                seeded = replace(spec, seed=seed)
                rank = (seed >= 2, priority, seed, place)
                found[seeded] = min(rank, found.get(seeded, rank))
    return sorted(found, key=found.get)
