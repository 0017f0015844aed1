"""Figures and experiments: what is drawn is what the records say, files are the same bytes twice, samples are small."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from ffrlib import catalogue, experiments, figures, frames, pictures, saving, store, tables
from ffrlib.run import Summary
from ffrlib.spec import CRITERIA, ActivationControl, FlowPenalty, Pruning, Recipe, RunSpec, WeightPenalty, key

SWEEP = {"threshold": [1e-3, 1e-2], "sparsity": [0.1, 0.5], "zero_channels": [0, 0], "test_accuracy": [98.0, 60.0]}


def record(root, spec, status="finished", **metrics):
    """A stored record of `spec` with made-up metrics, read back as `store.load_all` gives it."""
    metrics = {
        "test_accuracy": 98.0,
        "validation_accuracy": 97.0,
        "layer_sparsity": [0.1, 0.9],
        "threshold_sweep": SWEEP,
    } | metrics
    curve = {"loss": [2.0, 1.0], "penalty": [0.0, 0.0], "observed_epoch": [2], "validation_accuracy": [97.0]}
    made = {"code": store.code_hash(spec), "seconds": 1.0}
    return store.read(store.save(spec, status, curve, metrics, made, root))


def lines_of(ax):
    """{colour: (x, y)} of the lines with more than one point."""
    drawn = [(line.get_color(), np.asarray(line.get_xydata())) for line in ax.lines]
    return {colour: points for colour, points in drawn if len(points) > 1}


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


@pytest.fixture
def hgsr(tmp_path):
    """Records of the plain net and of group lasso at two strengths, three seeds each."""
    specs = [(RunSpec(seed=seed), 0.2, 98.0) for seed in range(3)]
    for strength, share, accuracy in ((0.1, 0.4, 97.0), (0.3, 0.6, 95.0)):
        for seed in range(3):
            specs.append(
                (
                    RunSpec(weight=WeightPenalty("group_lasso", strength), seed=seed),
                    share + 0.01 * seed,
                    accuracy + seed,
                )
            )
    return [record(tmp_path, s, removable_weight_share=share, test_accuracy=a) for s, share, a in specs]


def test_a_curve_joins_the_means_over_seeds_at_each_strength_with_their_interval(hgsr):
    fig = figures.families(figures.rows(hgsr), [("removable_weight_share", "test_accuracy")])
    points = lines_of(fig.axes[0])[figures.BLUE]
    assert points == pytest.approx(np.array([[41.0, 98.0], [61.0, 96.0]]))
    band = fig.axes[0].collections[0].get_paths()[0].vertices
    low, high = tables.interval([95.0, 96.0, 97.0])[1:]
    at_strongest = band[np.isclose(band[:, 0], 61.0), 1]
    assert at_strongest.min() == pytest.approx(low) and at_strongest.max() == pytest.approx(high)
    star = [line for line in fig.axes[0].lines if line.get_marker() == "*"]
    assert star[0].get_xydata().tolist() == [[20.0, 98.0]]


def test_the_intervals_of_two_seeds_do_not_set_the_axis(tmp_path):
    made = [
        record(tmp_path, RunSpec(weight=WeightPenalty("l1", strength), seed=seed), removable_weight_share=strength,
               test_accuracy=90 - 10 * strength + seed)
        for strength in (0.1, 0.3) for seed in (0, 1)
    ]  # fmt: skip
    (ax,) = figures.arms(figures.rows(made), [("removable_weight_share", "test_accuracy")]).axes
    half_width = tables.interval([89.0, 90.0])[2] - 89.5
    bottom, top = ax.get_ylim()
    assert bottom < 87.5 and top > 89.5, "all means are in view"
    assert top - bottom < 6.1 < half_width


def test_a_line_follows_the_strengths_even_where_it_turns_back(tmp_path):
    made = [
        record(tmp_path, RunSpec(weight=WeightPenalty("l1", strength)), removable_weight_share=share)
        for strength, share in ((0.1, 0.4), (0.2, 0.8), (0.3, 0.6))
    ]
    (ax,) = figures.arms(figures.rows(made), [("removable_weight_share", "test_accuracy")]).axes
    (points,) = lines_of(ax).values()
    assert points[:, 0] == pytest.approx([40.0, 80.0, 60.0])
    assert ax.texts[0].xy[0] > 0.9, "the name hangs at the rightmost point"


def test_published_points_are_named_and_in_view(tmp_path):
    made = [record(tmp_path, RunSpec(seed=seed), removable_weight_share=0.5) for seed in (0, 1)]
    pairs = [("removable_weight_share", "test_accuracy")]
    (ax,) = figures.arms(figures.rows(made), pairs, published={"test_accuracy": [(20.0, 99.5), (60.0, 40.0)]}).axes
    bottom, top = ax.get_ylim()
    assert texts_of(ax) == ["published"] and bottom < 40 and top >= 99.5
    assert ax.lines[-1].get_xydata() == pytest.approx(np.array([[20.0, 99.5], [60.0, 40.0]]))


def test_a_line_that_turns_back_has_bars_in_place_of_a_band(tmp_path):
    def drawn(shares):
        made = [
            record(tmp_path, RunSpec(weight=WeightPenalty("l1", strength), seed=seed), removable_weight_share=share)
            for strength, share in zip((0.1, 0.2, 0.3), shares) for seed in (0, 1)
        ]  # fmt: skip
        (ax,) = figures.arms(figures.rows(made), [("removable_weight_share", "test_accuracy")]).axes
        return ["band" if isinstance(each, PolyCollection) else "bars" for each in ax.collections]

    assert drawn((0.4, 0.6, 0.8)) == ["band"] and drawn((0.4, 0.8, 0.6)) == ["bars"]


def test_lines_are_named_and_what_was_not_run_is_said(hgsr):
    group_lasso, exclusive, _ = figures.families(figures.rows(hgsr), [("removable_weight_share", "test_accuracy")]).axes
    assert texts_of(group_lasso) == ["flat"]
    assert texts_of(exclusive) == ["no penalty run yet"]  # the plain net is there
    assert texts_of(figures.families(figures.rows([]), [("removable_weight_share", "test_accuracy")]).axes[0]) == [
        "not run"
    ]
    assert texts_of(figures.layer_sparsity(figures.rows([])).axes[0]) == ["not run"]


def test_a_lead_may_lie_outside_its_limits():
    """As the lead on all seeds beside the least and the largest without one, where other strengths are chosen then."""
    table = pd.DataFrame([{"claim": "F4", "part": "both - control", "lead": 5.0, "lead low": 1.0, "lead high": 4.0}])
    (ax,) = figures.leads(table, {"lead": "all seeds"}, "points").axes
    assert ax.get_xlim()[0] < 1 and ax.get_xlim()[1] > 5


def test_diverged_runs_are_not_drawn(tmp_path, hgsr):
    bad = record(tmp_path, RunSpec(weight=WeightPenalty("group_lasso", 3.0)), "diverged", removable_weight_share=0.99)
    assert len(figures.rows([*hgsr, bad])) == len(hgsr)
    survivor = record(tmp_path, replace(bad["spec"], seed=1), removable_weight_share=0.99)
    assert len(figures.rows([*hgsr, bad, survivor])) == len(hgsr), "a mean over survivors would flatter"


@given(st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)), min_size=1, max_size=11))
@settings(max_examples=25, deadline=None)
def test_names_keep_apart_inside_the_axes_and_in_the_order_of_their_lines(ends):
    fig, ((ax,),) = figures.panels(1, 1)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_autoscale_on(False)
    figures.name_lines(ax, [(x, y, str(k), "black") for k, (x, y) in enumerate(ends)])
    heights = [text.xyann[1] for text in ax.texts]
    assert sorted(heights) == heights and heights[-1] <= 1 + 1e-9
    gap = 8 * 1.2 / (72 * ax.get_window_extent().height / fig.dpi)
    assert all(b - a >= gap - 1e-9 for a, b in zip(heights, heights[1:]))
    drawn = [ends[int(text.get_text())][1] for text in ax.texts]
    assert drawn == sorted(drawn)


def test_arms_have_their_own_looks_and_a_net_without_penalty_is_a_dotted_line(tmp_path):
    made = [record(tmp_path, RunSpec())]
    for strength in (0.1, 1.0):
        made.append(record(tmp_path, RunSpec(activation=ActivationControl(strength))))
        made.append(record(tmp_path, RunSpec(flow=FlowPenalty(strength, strength))))
    (ax,) = figures.arms(figures.rows(made), [("strength", "test_accuracy")]).axes
    assert ax.get_xscale() == "log" and sorted(texts_of(ax)) == ["FFR", "control"]
    assert ":" in {line.get_linestyle() for line in ax.lines}
    assert lines_of(ax)[figures.GOLD][:, 0].tolist() == [0.1, 1.0]


def test_no_two_lines_of_a_picture_look_alike(tmp_path):
    names = [*CRITERIA, "network_slimming"]
    made = [record(tmp_path, RunSpec(weight=WeightPenalty(n, s), activation=ActivationControl(a)))
            for n in names for s in (0.1, 0.2) for a in (0.0, 0.5)]  # fmt: skip
    (ax,) = figures.arms(figures.rows(made), [("strength", "test_accuracy")]).axes
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.lines]
    assert len(set(looks[:18])) == 18 and len(looks) == 22


def test_cut_nets_are_placed_by_the_macs_they_have_left(tmp_path):
    made = [record(tmp_path, RunSpec(pruning=Pruning("l1_norm", "macs_share", amount)), macs=200, macs_left=left)
            for amount, left in ((0.3, 130), (0.5, 90))]  # fmt: skip
    (ax,) = figures.arms(figures.rows(made), [("macs_left_share", "test_accuracy")], "amount", "score").axes
    (points,) = lines_of(ax).values()
    assert points[:, 0] == pytest.approx([65.0, 45.0]) and texts_of(ax) == ["L1 norm"]


def test_the_middle_is_that_of_the_grid_even_where_its_weaker_side_is_still_to_come(tmp_path, monkeypatch):
    grid = {"l1": [0.1, 0.2, 0.4]}
    monkeypatch.setattr(figures, "strengths", lambda scale, net, arm: grid.get(arm, []))
    made = [record(tmp_path, RunSpec(weight=WeightPenalty("l1", strength))) for strength in (0.2, 0.4)]
    assert set(figures.at_middle(figures.rows(made))["strength"]) == {0.2}


def test_no_row_at_all_is_said_to_be_not_run(hgsr):
    rows = figures.rows(hgsr)
    (ax,) = figures.arms(rows[rows["amount"] > 0], [("macs_left_share", "test_accuracy")], by="amount").axes
    assert texts_of(ax) == ["not run"]
    assert not ax.xaxis.get_tick_params(which="major")["labelbottom"], "numbers on an axis that shows none"
    (drawn,) = figures.arms(rows, [("strength", "test_accuracy")]).axes
    assert drawn.xaxis.get_tick_params(which="major")["labelbottom"]


def test_curves_do_not_mix_recipes(hgsr, tmp_path):
    longer = record(tmp_path, RunSpec(recipe=Recipe(epochs=30)))
    longer["curve"]["loss"] = [9.0, 9.0]
    (ax,) = figures.curves(figures.rows([longer, *hgsr])).axes
    assert max(points[:, 1].max() for points in lines_of(ax).values()) < 9


def test_unrolled_lists_keep_their_row(hgsr):
    frame = figures.at_middle(figures.rows(hgsr))
    assert set(frame["strength"]) == {0.0, 0.3}
    sweeps = [r["metrics"]["threshold_sweep"] for r in frame["record"]]
    swept = figures.unrolled(
        frame, {"threshold": [s["threshold"] for s in sweeps], "swept_sparsity": [s["sparsity"] for s in sweeps]}
    )
    assert len(swept) == 2 * len(frame) and set(swept["swept_sparsity"]) == {10.0, 50.0}


def test_layers_show_the_mean_over_seeds_in_percent(hgsr):
    ax = figures.layer_sparsity(figures.rows(hgsr)).axes[0]
    assert texts_of(ax) == ["10", "90"] * 2
    assert [label.get_text() for label in ax.get_yticklabels()] == ["plain", "GL"]


def test_time_saved_leaves_the_dense_net_out_and_counts_in_percent():
    row = {"net": "vgg16", "shortcut": "", "batch": 1}
    fig = pictures.time_saved(
        [row | {"kind": "dense", "share": 0.0, "macs_removed": 0.0, "time_saved": 0.0}]
        + [
            row | {"kind": "fewer channels", "share": s, "macs_removed": m, "time_saved": t}
            for s, m, t in ((0.5, 0.7, 0.6), (0.75, 0.9, 0.8))
        ]
    )
    assert lines_of(fig.axes[0])[figures.OTHERS[0][0]] == pytest.approx(np.array([[70.0, 60.0], [90.0, 80.0]]))


def test_files_are_the_same_bytes_twice_and_hold_no_date(tmp_path, monkeypatch, hgsr):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path / "out"))
    contents = []
    for _ in range(2):
        fig = figures.families(figures.rows(hgsr), [("removable_weight_share", "test_accuracy")])
        contents.append([path.read_bytes() for path in saving.save(fig, "a", "quick", "What is to be seen.")])
    png, svg, text = contents[0]
    assert contents[0] == contents[1] and text == b"What is to be seen.\n"
    assert b"Matplotlib" not in svg and b"<dc:date>" not in svg and b"Software" not in png


def test_the_readme_picture_shows_a_pair_of_hgsr_and_the_arms_of_ffr_over_one_range(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    monkeypatch.setattr(catalogue, "strengths", lambda *_: [0.1, 0.3])
    assert pictures.readme().axes  # nothing has been run: the picture says so
    plain = catalogue.BASES["quick"]["digits_cnn"]
    arms = [(catalogue.weight_arm, name) for name in ("l1", "group_l12", catalogue.HSQ_GL12, "group_lasso")]
    arms += [(catalogue.flow_arm, name) for name in catalogue.FLOW_ARMS]
    record(tmp_path, plain, removable_weight_share=0.2, test_accuracy=97.0)
    for k, (arm, name) in enumerate(arms):
        for strength, accuracy in ((0.1, 96.0), (0.3, 91.0)):  # the stronger costs six points
            metrics = {"removable_weight_share": 0.3 + k / 20, "test_accuracy": accuracy}
            record(tmp_path, arm(plain, name, strength), **metrics)
    left, right = pictures.readme().axes
    assert sorted(texts_of(left)) == ["GL12, flat", "L1, no groups", "squared GL12"]
    assert sorted(texts_of(right)) == ["FFR, both terms", "control", "curvature", "length"]
    assert left.get_xlim() == right.get_xlim() == pytest.approx((15, 70))
    points = [line.get_xydata() for ax in (left, right) for line in ax.lines]
    assert len(points) == 2 + 3 + 4 and all(len(p) == 1 for p in points)
    rows = [
        {"net": "vgg16", "kind": "fewer channels", "share": 0.5, "batch": 1, "macs_removed": 0.7, "time_saved": 0.6}
    ]
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "latency.json").write_text(json.dumps({"rows": rows}))
    pictures.main()
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"{n}.{s}" for n in ("readme", "latency") for s in ("png", "svg", "txt")
    }
    assert "readme.png" in capsys.readouterr().out


# -- experiments -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", catalogue.RUNS)
def test_a_sample_is_part_of_the_runs_and_small(name, monkeypatch):
    whole = experiments.needed(name, "quick")
    monkeypatch.setenv("FFR_SAMPLE", "1")
    sample = experiments.needed(name, "quick")
    assert set(sample) <= set(whole) and 1 <= len(sample) <= 4 and whole[0] in sample


def test_seeds_are_passed_on_and_must_not_be_negative():
    assert {spec.seed for spec in experiments.needed("1_hgsr_criteria", "quick", 7)} == set(range(7))
    with pytest.raises(ValueError, match="seeds is -1; allowed: 0"):
        experiments.needed("1_hgsr_criteria", "quick", -1)
    with pytest.raises(ValueError, match="did you mean '4_ffr_flow'"):
        experiments.needed("4_ffr_flaw", "quick")


def test_records_are_those_of_the_experiment_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    base = catalogue.BASES["quick"]["digits_cnn"]
    mine = record(tmp_path, RunSpec(weight=WeightPenalty("l1", 0.123456)))
    theirs = record(tmp_path, base)
    assert [r["key"] for r in experiments.records("1_hgsr_criteria", "quick")] == [theirs["key"]] != [mine["key"]]
    store.record_path(base).write_text("{")
    with pytest.raises(ValueError, match=key(base)):
        experiments.records("1_hgsr_criteria", "quick")


def test_curves_are_of_the_uncut_nets_at_their_middle_strength(hgsr, tmp_path):
    cut = record(tmp_path, RunSpec(pruning=Pruning("l1_norm", "macs_share", 0.5)), macs=2, macs_left=1)
    cut["curve"]["loss"] = [9.0, 9.0]
    (ax,) = figures.curves(figures.rows([*hgsr, cut])).axes
    assert [points.tolist() for points in lines_of(ax).values()] == [[[1.0, 2.0], [2.0, 1.0]]] * 2
    assert sorted(texts_of(ax)) == ["GL", "plain"] and ax.get_ylabel() == figures.AXES["loss"]


def test_the_verdict_table_shows_the_experiments_claims_of_one_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    table = experiments.verdict_table("3_hgsr_pruning", "quick")
    assert list(table["claim"]) == ["H3", "H4"] and set(table["verdict"]) == {"undecided"}
    assert table["weakest part"].str.len().all() and table["effect (points)"].isna().all()
    assert (table["more runs needed"] > 0).all()


def test_verify_names_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    specs = [RunSpec(), RunSpec(weight=WeightPenalty("l1", 0.1))]
    records, silent, said = [record(tmp_path, specs[0])], Summary(), Summary(missing=1)
    shown = {"cells": tables.cells(specs, frames.frame_of(records), ["arm"], ["test_accuracy"])}
    assert experiments.verify(specs, said, records, shown) == specs[1:]
    with pytest.raises(AssertionError, match="neither has a record"):
        experiments.verify(specs, silent, records, shown)
    with pytest.raises(AssertionError, match="scales are mixed"):
        experiments.verify(specs, said, [records[0] | {"scale": "laptop"}], shown)
    for name, value in (("zeroed_test_accuracy", 100.1), ("zero_channels", -0.1)):
        with pytest.raises(AssertionError, match=name):
            experiments.verify(specs, said, [record(tmp_path, specs[0], **{name: value})], shown)
    with pytest.raises(AssertionError, match="cells"):
        experiments.verify(specs, said, records, {"cells": shown["cells"].assign(n=0)})


def test_a_sample_keeps_no_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    fig = Figure()
    fig.subplots().plot([1, 2], [3, 4])
    monkeypatch.setenv("FFR_SAMPLE", "1")
    image = experiments.show(fig, "nothing", "a", "quick")
    assert image.data[:4] == b"\x89PNG" and image.alt == "nothing" and not list(tmp_path.iterdir())
    monkeypatch.delenv("FFR_SAMPLE")
    experiments.show(fig, "nothing", "a", "quick")
    assert len(list((tmp_path / "figures" / "quick").iterdir())) == 3


def test_the_first_notebook_of_many_short_runs_makes_them_all_ahead(monkeypatch):
    monkeypatch.delenv("FFR_SAMPLE", raising=False)
    monkeypatch.setenv("FFR_AHEAD", "quick")
    assert experiments.needed("6_ffr_readings", "quick") == catalogue.specs("quick")
    assert experiments.needed("6_ffr_readings", "laptop") == catalogue.specs("laptop", "6_ffr_readings")
    monkeypatch.setenv("FFR_SAMPLE", "1")
    assert len(experiments.needed("6_ffr_readings", "quick")) == 4


def test_a_replication_draws_no_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path))
    monkeypatch.setenv("FFR_PICTURES", "never")
    fig = figures.families(figures.rows([]), [("strength", "test_accuracy")])
    assert experiments.show(fig, "nothing", "a", "quick") is None
    assert not list(tmp_path.iterdir())


def test_strengths_that_cost_too_much_are_left_out():
    frame = pd.DataFrame(
        {"arm": ["plain", "plain", "l1", "l1", "l1"], "strength": [0.0, 0.0, 0.1, 0.1, 0.2],
         "test_accuracy": [90.0, 92.0, 87.0, 84.0, 10.0]}
    )  # fmt: skip
    assert list(figures.near(frame, 6)["test_accuracy"]) == [90.0, 92.0, 87.0, 84.0]  # by the mean of a strength
    assert list(figures.near(frame, 5)["test_accuracy"]) == [90.0, 92.0]
    assert len(figures.near(frame[2:], 5)) == 3  # nothing to compare with


def test_dots_stand_at_the_means_of_their_rows(tmp_path):
    made = [record(tmp_path, replace(RunSpec(), seed=seed), test_accuracy=90.0 + seed) for seed in range(3)]
    control = RunSpec(activation=ActivationControl(0.1))
    made += [record(tmp_path, replace(control, seed=seed), test_accuracy=80.0) for seed in range(2)]
    ax, other = figures.dots(figures.rows(made), ["test_accuracy", "removable_weight_share"]).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["plain", "control"] and other.get_ylim() == ax.get_ylim()
    bars, marks = ([line.get_xdata() for line in ax.lines if line.get_marker() in kind] for kind in (("None",), "*o"))
    assert [float(x) for (x,) in marks] == [91.0, 80.0]
    _, low, high = tables.interval([90.0, 91.0, 92.0])
    assert list(bars[0]) == pytest.approx([low, high]) and list(bars[1]) == [91.0, 91.0] and list(bars[2]) == [80, 80]


def test_leads_are_drawn_where_there_are_any():
    row = {"claim": "F1", "part": "both - plain", "lead": 3.0, "lead low": 1.0, "lead high": 5.0}
    table = pd.DataFrame([row, row | dict.fromkeys(("lead", "lead low", "lead high"), tables.NOT_REACHED)])
    (ax,) = figures.leads(table, {"lead": "fresh seeds"}, "points").axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["F1: FFR - plain"]
    assert ax.get_legend().get_texts()[0].get_text() == "fresh seeds" and ax.get_xlabel() == "points"
    assert ax.lines[0].get_xydata().tolist() == [[3.0, 0.0]]
    (bar,) = ax.collections
    assert np.array(bar.get_segments()).tolist() == [[[1.0, 0.0], [5.0, 0.0]]]


def test_a_net_has_the_name_of_the_catalogue():
    bases = catalogue.BASES["paper"]
    assert [figures.net_name(base) for base in bases.values()] == list(bases)
    assert figures.net_name(RunSpec("cifar100", "resnet32", "B", scale="laptop")) == "resnet32"


def test_a_figure_of_nothing_is_not_kept(results):
    fig = Figure()
    ax = fig.subplots()
    ax.plot([1, 2], [3, 4])
    assert all(path.exists() for path in saving.save(fig, "one", "quick", "a line")) and list(results.rglob("one.*"))
    empty = Figure()
    empty.subplots().annotate("not run", (0, 0))
    assert saving.save(empty, "one", "quick", "nothing") == [] and not list(results.rglob("one.*"))


def test_leads_leave_out_what_was_not_run_and_name_the_nets():
    rows = [{"claim": "F1", "net": n, "part": "both - plain", "lead": v, "lead low": v, "lead high": v}
            for n, v in (("a", "1.0"), ("b", "2.0"), ("c", "not run"))]  # fmt: skip
    (ax,) = figures.leads(pd.DataFrame(rows), {"lead": "fresh seeds"}, "points").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["F1: FFR - plain (a)", "F1: FFR - plain (b)"]
    (ax,) = figures.leads(pd.DataFrame(rows[:1]), {"lead": "fresh seeds"}, "points").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["F1: FFR - plain"]
