"""The rules of docs/protocol.md on fabricated records whose right verdicts are known; nothing is trained here."""

import functools
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from test_tables import MADE, METRICS, PLAIN, grid, keep, lasso, seeded  # noqa: F401

from ffrlib import catalogue, claims, decide, frames, prose, store, tables, verdicts
from ffrlib.claims import SPARSER, Part
from ffrlib.spec import Pruning, key


@pytest.fixture(autouse=True)
def quick_catalogue(monkeypatch):
    """The catalogue is asked once for each list in a test: making thousands of settings is most of the time here."""
    cached = functools.cache(tables.unseeded)
    monkeypatch.setattr(tables, "unseeded", lambda name, scale: cached(name, scale))


HSQ = catalogue.HSQ_GL12
shares = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def part(values, limits=SPARSER, **more):
    return Part("x", pd.Series(values, dtype=float), limits, ("a", "b"), **more)


# -- claims ------------------------------------------------------------------------------------------------------------
def verdict(found, claim, scale="quick", **more):
    rows = [v for v in found if v["claim"] == claim and v["scale"] == scale and all(v[n] == x for n, x in more.items())]
    assert len(rows) == 1
    return rows[0]


def flow_records(root, count, gain, control=0.0, accuracy=96.8):
    """Plain, both and control; FFR leads in weights by `gain`, the control by `control`, channels are equal."""
    records = []
    for k, seed in enumerate(range(count)):
        noise = 0.001 * k
        for spec, extra in ((PLAIN, 0), (catalogue.flow_arm(PLAIN, "both", 0.1), gain),
                            (catalogue.flow_arm(PLAIN, "control", 0.2), control)):  # fmt: skip
            share = 0.3 + extra + noise * (1 + (extra > 0))
            numbers = {"validation_accuracy": 97.0 if extra == 0 else accuracy, "removable_weight_share": share}
            records.append(keep(root, replace(spec, seed=seed), **numbers))
    return records


def test_flow_claims_with_a_clear_lead(tmp_path):
    found = verdicts.verdicts(flow_records(tmp_path, 5, gain=0.2))
    assert verdict(found, "F1")["verdict"] == "supported"
    assert verdict(found, "F1")["effect"]["mean"] == pytest.approx(20.2) and verdict(found, "F1")["effect"]["n"] == 5
    assert verdict(found, "F1")["records"] == sorted([key(PLAIN), key(catalogue.flow_arm(PLAIN, "both", 0.1))])
    assert verdict(found, "F2")["verdict"] == "undecided"  # channels: nothing that the measure could see
    assert verdict(found, "F2")["runs_needed"] == 0 and "| a finer measure |" in verdicts.markdown(found)
    f4 = verdict(found, "F4")
    assert f4["verdict"] == "undecided" and [p["decides"] for p in f4["parts"]] == [True] * 2 + [False] * 4
    assert f4["parts"][0]["verdict"] == "supported" and f4["parts"][2]["n"] == 0  # length alone was not run
    assert "| a finer measure |" in verdicts.markdown([f4])
    weights = f4["parts"][0] | {"verdict": "undecided", "seeds_needed": 7}  # which more seeds would decide
    both_open = f4 | {"parts": [weights, *f4["parts"][1:]]}
    assert "| a finer measure in 1 of 2 undecided parts |" in verdicts.markdown([both_open])
    assert {v["verdict"] for v in found if v["scale"] != "quick"} == {"undecided"}
    assert verdict(found, "F1", "paper", set="cifar100", net="vgg16")["runs_needed"] == 10


def test_too_few_seeds_or_too_little_accuracy_leave_a_claim_undecided(tmp_path):
    few = verdict(verdicts.verdicts(flow_records(tmp_path / "a", 4, gain=0.2)), "F1")
    assert (few["verdict"], few["seeds_needed"], few["runs_needed"]) == ("undecided", 1, 2)
    inaccurate = verdict(verdicts.verdicts(flow_records(tmp_path / "b", 5, gain=0.2, accuracy=95.9)), "F1")
    assert inaccurate["verdict"] == "undecided" and inaccurate["effect"]["n"] == 0


def test_scales_are_never_mixed(tmp_path):
    records = flow_records(tmp_path, 4, gain=0.2)
    laptop = [replace(s, scale="laptop") for s in (PLAIN, catalogue.flow_arm(PLAIN, "both", 0.1))]
    records += [
        keep(tmp_path, replace(spec, seed=4), removable_weight_share=0.9 - 0.6 * (spec == laptop[0])) for spec in laptop
    ]
    assert verdict(verdicts.verdicts(records), "F1")["effect"]["n"] == 4


def test_hierarchical_criteria_are_judged_one_by_one(tmp_path, monkeypatch):
    names = [c for c in catalogue.CRITERIA if c != "l1"]
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [0.01] if arm in names else [])
    records = []
    for seed in range(5):
        records.append(keep(tmp_path, replace(PLAIN, seed=seed)))
        for name in names:
            lead = 0.2 if tables.counterpart(name) else 0.0
            spec = replace(catalogue.weight_arm(PLAIN, name, 0.01), seed=seed)
            shares = {m: 0.3 + lead + 0.001 * seed * (1 + bool(lead)) for m in tables.BOTH}
            records.append(keep(tmp_path, spec, **shares))
    h1 = verdict(verdicts.verdicts(records), "H1")
    assert h1["verdict"] == "supported" and len(h1["parts"]) == 12 and all(p["n"] == 5 for p in h1["parts"])
    for k, r in enumerate(records):  # one criterion falls behind in channels
        if r["spec"].weight.name == HSQ:
            records[k] = keep(
                tmp_path, r["spec"], **(r["metrics"] | {"removable_channel_share": 0.2 + 0.001 * r["seed"]})
            )
    h1 = verdict(verdicts.verdicts(records), "H1")
    assert h1["verdict"] == "not supported" and sum(p["verdict"] == "supported" for p in h1["parts"]) == 11
    assert h1["effect"]["part"] == f"{HSQ} - group_l12, removable_channel_share"


@pytest.mark.parametrize("turned, right", [(True, "supported"), (False, "not supported")])
def test_the_best_criterion_depends_on_the_width_only_where_it_crosses(tmp_path, turned, right):
    records = []
    for seed in range(5):
        for width, sign in ((1.0, 1), (0.5, -1 if turned else 1), (2.0, 1)):
            base = replace(PLAIN, width=width, seed=seed)
            records.append(keep(tmp_path, base))
            for name, strength, lead in (("group_lasso", 0.01, 0.1 * sign), (HSQ, 0.001, 0.0)):
                share = 0.4 + lead + 0.001 * seed * (1 + (lead > 0))
                records.append(keep(tmp_path, catalogue.weight_arm(base, name, strength), removable_weight_share=share))
    h2 = verdict(verdicts.verdicts(records), "H2")
    assert h2["verdict"] == right
    assert len(h2["parts"]) == (4 if turned else 3) and all(p["verdict"] == "supported" for p in h2["parts"])


def test_the_best_criterion_is_found_over_the_seeds_that_all_have(tmp_path):
    """Over its own seeds the second arm is ahead at width 1; over the seeds of both the first one is."""
    records = []
    for seed, width in product(range(5), (1.0, 0.5)):
        base = replace(PLAIN, width=width, seed=seed)
        records.append(keep(tmp_path, base))
        late = seed > 2 and width == 1.0
        share = 0.9 if late else 0.4 - 0.001 * seed
        records.append(keep(tmp_path, catalogue.weight_arm(base, HSQ, 0.001), removable_weight_share=share))
        if not late:
            records.append(keep(tmp_path, catalogue.weight_arm(base, "group_lasso", 0.01), removable_weight_share=0.5))
    h2 = verdict(verdicts.verdicts(records), "H2")
    assert [(p["part"].split(" - ")[0], p["decides"], p["n"]) for p in h2["parts"]] == [
        ("group_lasso", False, 3), ("group_lasso", False, 5)
    ]  # fmt: skip


def cut_records(root, drop, left, tied, count=5):
    """HSQ-GL12 cut by loss increase at two tolerances; the second leaves `left` parameters for `drop` points."""
    records, start = [], catalogue.weight_arm(PLAIN, HSQ, 0.001)
    for seed in range(count):
        wobble = 0.01 * seed
        records.append(keep(root, replace(PLAIN, seed=seed), test_accuracy=97.0))
        records.append(keep(root, replace(start, seed=seed), zero_channels=tied + wobble * (tied > 0)))
        for amount, kept, loss in ((0.02, 900, 0.0), (0.2, left, drop)):
            cut = Pruning("loss_increase", "loss_tolerance", amount, epochs=3, lr=0.02)
            numbers = {
                "test_accuracy": 97.0 - loss + wobble,
                "base_test_accuracy": 97.0,
                "parameters_left": kept + seed,
            }
            records.append(keep(root, replace(start, seed=seed, pruning=cut), **numbers))
    return records


@pytest.mark.parametrize(
    "drop, left, tied, h3, h4",
    [
        # A rise of zero channels cannot speak for H3: the measure counts what the penalty pushes as well.
        (0.1, 400, 0.2, "undecided", "not supported"),  # 0.08 points lost beyond doubt: within H3's 0.3, below H4's 0
        (-0.5, 400, 0.2, "undecided", "supported"),
        (2.0, 400, 0.2, "not supported", "not supported"),
        (-0.5, 600, 0.2, "not supported", "supported"),  # removes 40 %: enough for H4 alone
        (0.1, 400, 0.0, "not supported", "not supported"),  # nothing vanishes by itself
    ],
)
def test_pruning_by_loss_increase(tmp_path, drop, left, tied, h3, h4):
    found = verdicts.verdicts(cut_records(tmp_path, drop, left, tied))
    assert (verdict(found, "H3")["verdict"], verdict(found, "H4")["verdict"]) == (h3, h4)


def test_parameters_removed_are_counted_from_what_the_claim_asks(tmp_path):
    found = verdicts.verdicts(cut_records(tmp_path, 0.1, 398, 0.2))  # 398 to 402 of 1000 parameters are left
    for claim, asked in (("H3", 50), ("H4", 34)):
        part = verdict(found, claim)["parts"][0]
        assert part["part"] == f"parameters_removed - {asked} %"
        assert part["mean"] == pytest.approx(60.0 - asked) and part["low"] < part["mean"] < part["high"]


@pytest.mark.parametrize("alone, h3", [(0.2, "supported"), (0.0, "not supported")])
def test_channels_that_nothing_writes_may_support_h3(tmp_path, alone, h3):
    records = cut_records(tmp_path, 0.1, 400, 0.2)  # `zero_channels` rises in both cases
    for record in records:
        record["metrics"]["zero_output_channels"] = alone * (record["settings"]["weight"]["name"] == HSQ)
    assert verdict(verdicts.verdicts(records), "H3")["verdict"] == h3
    del records[0]["metrics"]["zero_output_channels"]  # an older record: the other count speaks for all
    assert verdict(verdicts.verdicts(records), "H3")["verdict"] == "undecided"


def test_every_baseline_counts_for_pruned_nets(tmp_path, monkeypatch):
    given = {"both": [0.1], "group_lasso": [0.01], "network_slimming": [0.001]}
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: given.get(arm, []))
    specs = [s for s in tables.unseeded("5_ffr_pruning", "quick") if s.pruning.amount in (0.0, 0.3, 0.5)]
    monkeypatch.setattr(
        tables, "unseeded", lambda name, scale: specs if (name, scale) == ("5_ffr_pruning", "quick") else [PLAIN]
    )
    used = [s for s in specs if s.pruning.score in ("none", "l1_norm", "geometric_median", "random", "bn_scale")]
    random = np.random.default_rng(0)

    def make(root, better):
        records = []
        for spec in used:
            level = (
                {"scratch": 90.0}.get(spec.pruning.after, 95.0)
                + (spec.flow.length > 0)
                - 3 * (spec.pruning.score == better)
            )
            for seed in range(5):
                noise = random.normal(scale=0.01)
                records.append(
                    keep(root, replace(spec, seed=seed), test_accuracy=level + noise, validation_accuracy=level + noise)
                )
        return frames.frame_of(records)

    judged = decide.judge(claims.against_baselines(make(tmp_path / "a", "random"), PLAIN))
    assert len(judged) == 6 * 2 and {j["verdict"] for j in judged} == {"supported"}
    assert verdicts.conclude("F3", judged) == "supported"
    frame = make(tmp_path / "b", "")
    ours = frame["key"].isin([key(s) for s in used if s.flow.length])
    frame.loc[ours, "test_accuracy"] -= 2.0  # on test alone: the choice of the score is made on validation
    judged = decide.judge(claims.against_baselines(frame, PLAIN))
    lost = {j["part"].split(" - ")[1].split(",")[0] for j in judged if j["verdict"] == "not supported"}
    assert lost == {"plain net by L1", "geometric median", "random", "network slimming", "group lasso"}
    assert verdicts.conclude("F3", judged) == "not supported"


def test_each_arm_is_charged_with_the_seeds_of_its_own_parts():
    noisy = part([8.0, -6.0, 9.0, -5.0, 7.0])
    alone = verdicts.entry("H1", "quick", "net", "digits", [noisy])
    other = Part("y", pd.Series(dtype=float), SPARSER, ("?c", "b"))
    both = verdicts.entry("H1", "quick", "net", "digits", [noisy, other])
    assert 5 < both["seeds_needed"] <= decide.MOST and alone["runs_needed"] == 2 * alone["seeds_needed"]
    assert both["runs_needed"] == 2 * both["seeds_needed"] + 5  # arms a and b, and arm c alone
    assert both["effect"]["part"] == "x"  # the part that has pairs
    endless = verdicts.entry("H1", "quick", "net", "digits", [part([30.0, -30.0, 30.0, -30.0, 2.5])])
    assert endless["seeds_needed"] > decide.MOST and endless["runs_needed"] == 2 * decide.MOST
    endless["parts"][0] |= {"records": [], "strengths": [], "stale": False, "across": 2}
    text = verdicts.markdown([endless | {"effect": endless["parts"][0]}])
    assert "n = 5, of which 2 across two processors | over 200 (over 100 seeds) |" in text
    crossed = part([30.0, -30.0, 30.0, -30.0, 2.5], mixed=3, within=(30.0, 2.5))
    crossed = verdicts.entry("H1", "quick", "net", "digits", [crossed])
    assert "of which 3 across two processors (mean of the others +16.25)" in verdicts.effect_text(crossed["effect"])


def test_records_of_other_code_are_marked_and_an_analogue_is_called_one(tmp_path):
    records = flow_records(tmp_path, 5, gain=0.2)
    records[-1]["stale"] = True  # the control of the last seed
    found = verdicts.verdicts(records)
    assert {v["claim"] for v in found for p in v["parts"] if p.get("stale")} == {"F4"}
    text = verdicts.markdown(verdicts.verdicts(records + cut_records(tmp_path / "cut", 0.1, 400, 0.2)))
    row = next(line for line in text.splitlines() if line.startswith("| both - control, removable_weight_share"))
    assert " † |" in row and "| H4, an analogue | digits_cnn |" in text


def test_a_verdict_waits_for_the_missing_seeds_of_a_strength(tmp_path):
    records = flow_records(tmp_path, 5, gain=0.2)
    stronger = catalogue.flow_arm(PLAIN, "both", 1.0)
    records.append(keep(tmp_path, stronger, removable_weight_share=0.9))
    f1 = verdict(verdicts.verdicts(records), "F1")
    assert f1["effect"]["n"] == 5 and key(stronger) not in f1["records"]


# -- files and prose ---------------------------------------------------------------------------------------------------
def test_files_are_the_same_bytes_and_say_what_is_missing(tmp_path):
    records = flow_records(tmp_path, 5, gain=0.2)
    first = verdicts.write(records, tmp_path / "a")
    text, found, known = first[0].read_text(), json.loads(first[1].read_text()), json.loads(first[2].read_text())
    assert "| F1 | digits_cnn | digits | quick | **supported** |" in text and "+20.20 [" in text
    line = next(line for line in text.splitlines() if line.startswith("Undecided at `quick` for want of any pair"))
    assert "F3 digits_cnn on digits" in line and "F1" not in line and found == verdicts.verdicts(records[::-1])
    assert known["quick.records"] == known["records"] == "15" and known["quick.minutes"] == "2"
    assert known["quick.digits_digits_cnn.plain.test_accuracy"] == "97.00"
    assert known["quick.digits_digits_cnn.both.removable_weight_share"] == "50.4"
    assert (
        known["F1.quick.digits_digits_cnn.verdict"] == "supported"
        and known["F1.quick.digits_digits_cnn.mean"] == "20.20"
    )


def test_a_second_strength_of_an_arm_has_it_in_the_names_of_its_values(tmp_path, monkeypatch):
    start = catalogue.weight_arm(PLAIN, HSQ, 0.001)
    stronger = replace(start, weight=replace(start.weight, strength=0.01))
    cuts = [replace(s, pruning=Pruning("loss_increase", "loss_tolerance", 0.5)) for s in (start, stronger)]
    monkeypatch.setitem(catalogue.RUNS, "3_hgsr_pruning", lambda scale: enumerate([PLAIN, start, stronger, *cuts]))
    records = [keep(tmp_path, PLAIN), *(keep(tmp_path, s, test_accuracy=90.0 + k) for k, s in enumerate(cuts))]
    known = prose.values(records, [])
    place = f"quick.digits_digits_cnn.{HSQ}%s.cut.loss_increase.loss_tolerance.0.5.test_accuracy"
    assert known[place % ""] == "90.00" and known[place % "_at_0.01"] == "91.00"


def test_main_stops_at_a_damaged_record_and_refreshes_prose(results, tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    page.write_text("It holds <!--value:records-->0<!--/value--> records.\n")
    monkeypatch.setattr(prose, "REPOSITORY", tmp_path)
    path = store.save(PLAIN, "finished", {}, METRICS, MADE | {"code": "x"}, results)
    verdicts.main()
    assert page.read_text() == "It holds <!--value:records-->1<!--/value--> records.\n"
    assert str(page) in capsys.readouterr().out
    path.write_text("{")
    with pytest.raises(SystemExit, match=path.name):
        verdicts.main()
    path.unlink()
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path / "elsewhere"))
    verdicts.main()
    assert page.read_text() == "It holds <!--value:records-->1<!--/value--> records.\n"
