"""The confirmation and the other choices on fabricated records; nothing is trained here."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_tables import PLAIN, keep

from ffrlib import catalogue, claims, firmness, frames, rendering, scales, store, tables, verdicts
from ffrlib.claims import WEIGHTS
from ffrlib.files import REPOSITORY
from ffrlib.scales import FRESH
from ffrlib.spec import key
from ffrlib.tables import NOT_REACHED, arms

FROZEN = tables.unseeded(catalogue.FIRM, "quick")


def frame(**arms):
    """Two seeds of each arm: {key: (validation accuracies, removable shares)}."""
    rows = [
        {"key": name, "seed": seed, "status": "finished", "validation_accuracy": a, "removable_weight_share": s}
        for name, (accuracies, shares) in arms.items()
        for seed, (a, s) in enumerate(zip(accuracies, shares))
    ]
    return pd.DataFrame(rows)


def test_between_two_strengths_by_hand():
    runs = frame(plain=((97, 95), (0.3, 0.2)), weak=((96.8, 95.2), (0.4, 0.4)), strong=((94, 94), (0.8, 0.6)))
    # a point lost lies half way between weak (mean 96, nothing lost) and strong (mean 94, two lost)
    found = firmness.interpolated(runs, ["weak", "strong"], "plain", 1.0)
    assert found.to_dict() == pytest.approx({0: 60.0, 1: 50.0})
    assert firmness.interpolated(runs, ["weak", "strong"], "plain", 2.5).empty
    assert firmness.interpolated(runs[runs["key"] != "plain"], ["weak", "strong"], "plain", 1.0).empty
    # from the plain net on, where already the weakest strength costs more
    found = firmness.interpolated(runs, ["strong"], "plain", 0.5)
    assert found.to_dict() == pytest.approx({0: 100 * (0.75 * 0.3 + 0.25 * 0.8), 1: 100 * (0.75 * 0.2 + 0.25 * 0.6)})


def test_without_a_choice_is_the_mean_of_what_may_be_chosen():
    runs = frame(plain=((97, 97), (0, 0)), a=((97, 97), (0.2, 0.4)), b=((96, 96), (0.4, 0.8)), c=((90, 90), (1, 1)))
    assert firmness.without_a_choice(runs, ["a", "b", "c"], "plain").to_dict() == pytest.approx({0: 30.0, 1: 60.0})


def test_one_seed_left_out_by_hand():
    """Seed 2 alone keeps the stronger strength out, and one that waits for its third seed never joins."""
    weak, strong, waits = arms(tables.unseeded("4_ffr_flow", "quick"))[PLAIN, "both"][:3]
    good, less = (97, 97, 97), (97, 97, 93)  # less: 1.3 points below, where seed 2 is left out none
    runs = {key(PLAIN): (good, (0.2, 0.2, 0.2)), weak: (good, (0.3, 0.3, 0.3)), strong: (less, (0.6, 0.5, 0.4))}
    made = firmness.one_left_out("quick", frame(**runs, **{waits: ((97, 97), (1.0, 1.0))}))
    (row,) = made.to_dict("records")  # no other part has runs
    assert (row["part"], row["n"], row["same strengths"]) == ("both - plain", 3, "2 of 3")
    assert [row[f"lead{limit}"] for limit in ("", " low", " high")] == pytest.approx([10, 10, 35])
    assert rendering.readable(made)["lead"].tolist() == ["10.00 [10.00, 35.00]"]
    equal = {key(PLAIN): runs[key(PLAIN)], strong: runs[weak], weak: runs[weak]}  # of equal ones the first of the grid
    pair = [("both", firmness.complete(frame(**equal), [weak, strong])), ("plain", [])]
    assert firmness.by_rule(frame(**equal), key(PLAIN), pair)[1] == [weak, key(PLAIN)]
    two = {name: (accuracies[:2], shares[:2]) for name, (accuracies, shares) in runs.items()}
    assert firmness.one_left_out("quick", frame(**two)).empty


def test_a_point_is_the_choice_of_the_protocol():
    """`lead within 1` is what the verdicts are made of."""
    records, random = [], np.random.default_rng(0)
    for spec in tables.unseeded("4_ffr_flow", "quick"):
        for seed in range(3):
            numbers = {"validation_accuracy": 97 - random.uniform(0, 2), "removable_weight_share": random.uniform()}
            records.append({"key": key(spec), "seed": seed, "status": "finished", **numbers})
    runs = pd.DataFrame(records).assign(removable_channel_share=0.5, processor="")
    made = firmness.other_choices("quick", runs).set_index(["claim", "part"])
    for claim in ("F1", "F4"):
        parts = [p for p in claims.at_equal_accuracy(runs, PLAIN, claim) if p.name.endswith("weight_share")]
        for part in parts:
            row = made.loc[(claim, part.name.split(",")[0])]
            shown = [row[f"lead within 1{limit}"] for limit in ("", " low", " high")]
            assert shown == pytest.approx(tables.interval(part.differences) if len(part.differences) else NOT_REACHED)


def test_every_arm_is_frozen_at_a_strength_of_its_grid():
    asked = {arm for pairs in firmness.ASKED.values() for pair in pairs for arm in pair}
    assert {tables.arm_of(s) for s in FROZEN} >= asked and len(FROZEN) == len({tables.arm_of(s) for s in FROZEN})
    grids = {s for name in ("1_hgsr_criteria", "4_ffr_flow") for s in tables.unseeded(name, "quick")}
    assert set(FROZEN) <= grids


def test_fresh_seeds_stand_alone(tmp_path):
    """What is confirmed comes from fresh seeds alone, and no other table has them."""
    records = []
    for spec in FROZEN:
        squared = spec.weight.name == catalogue.HSQ_GL12
        for seed in (0, 1, *FRESH[:6]):
            share = (0.2 if seed in FRESH else 0.7) + 0.4 * squared + 0.0001 * (seed % 7)
            records.append(keep(tmp_path, replace(spec, seed=seed), removable_weight_share=share,
                                cut_30_test_accuracy=50.0 + 5 * squared, test_accuracy=90.0 + squared,
                                weights_removed_test_accuracy=90.0 - 2 * squared))  # fmt: skip
    made = firmness.firm_tables("quick", records)
    rows = made["confirmation"].set_index("part")
    row = rows.loc[f"{catalogue.HSQ_GL12} - group_l12"]
    assert (row["n"], row["verdict"]) == (6, "supported") and row["lead"] == pytest.approx(40)
    assert row["lead before"] == pytest.approx(40) and row["lead with 30 % of the channels cut"] == pytest.approx(5)
    assert row["lead in test accuracy"] == pytest.approx(1)
    assert row["lead in test accuracy without these weights"] == pytest.approx(-2)
    assert set(rows["verdict"].drop(row.name)) == {"undecided"} and len(rows) == 10
    lines = [line for line in verdicts.on_fresh_seeds(records) if line.startswith("| quick |")]
    assert len(lines) == 10 and sum(line.endswith("| 6 | supported |") for line in lines) == 1
    assert set(made["runs"]["n"]) == {6} and made["runs"]["removable_weight_share"].max() < 0.65
    strengths = tables.experiment_tables("1_hgsr_criteria", "quick", records)["strengths"]
    assert set(strengths["n"]) == {0, 2}
    assert {len(tables.counted(records, "quick", n)) for n in ("1_hgsr_criteria", catalogue.FIRM)} == {22, 90}


def test_a_scale_where_nothing_was_frozen_has_no_confirmation(tmp_path):
    made = firmness.firm_tables("laptop", [])
    assert list(made) == ["other_choices"] and set(made["other_choices"]["lead within 1"]) == {NOT_REACHED}
    assert all(path.stat().st_size for path in rendering.write(made, catalogue.FIRM, "laptop", tmp_path))


def test_without_one_seed_the_rule_chooses_otherwise_on_resnet20():
    """What findings and the log say in words of GL12's pair: seed 2 alone keeps squared GL12's middle strength out."""
    records, problems = store.load_all(REPOSITORY / "results", scale="laptop")
    runs = frames.frame_of([r for r in records if r["seed"] < 5])
    plain = scales.BASES["laptop"]["resnet20"]
    squared, flat = (
        [key(catalogue.weight_arm(plain, name, s)) for s in strengths]
        for name, strengths in ((scales.HSQ_GL12, (6e-7, 1e-6, 1.8e-6)), ("group_l12", (0.00011, 0.00034, 0.0006)))
    )
    assert not problems
    chosen, leads = {}, {}
    for left_out in (None, *range(5)):
        rest = runs[runs["seed"] != left_out]
        pair = [tables.chosen_strength(rest, keys, key(plain), WEIGHTS) for keys in (squared, flat)]
        shares = [rest.loc[rest["key"] == k, WEIGHTS].mean() for k in pair]
        chosen[left_out], leads[left_out] = [squared.index(pair[0]), flat.index(pair[1])], 100 * (shares[0] - shares[1])
    assert [left_out for left_out, at in chosen.items() if at != [0, 1]] == [2] and chosen[2] == [1, 1]
    assert 3 < leads[2] < 3.5 and all(leads[n] < -9 for n in (None, 0, 1, 3, 4))
    rows = firmness.one_left_out("laptop", runs).set_index(["claim", "net", "part"])
    row, without = (
        rows.loc[("H1", "cifar10 resnet20 A", f"{scales.HSQ_GL12} - group_l12")],
        [leads[n] for n in range(5)],
    )
    assert row["same strengths"] == "4 of 5"
    shown = [row["lead"], row["lead low"], row["lead high"]]
    assert shown == pytest.approx([leads[None], min(without), max(without)])
