"""Statistics against independent formulas, tables from fabricated records; nothing is trained here."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ffrlib import catalogue, claims, frames, models, rendering, store, tables
from ffrlib.spec import RunSpec, WeightPenalty, key

MADE = {"device": "cpu", "cpu": "some CPU", "threads": 1, "precision": "float32", "versions": {"torch": "2"},
        "data": "d", "stacking": "one", "commit": "c", "dirty": False, "runner": "python", "seconds": 6.0}  # fmt: skip
METRICS = {"test_accuracy": 97.0, "validation_accuracy": 97.0, "test_loss": 0.1, "zeroed_test_accuracy": 96.0,
           "unstructured_sparsity": 0.1, "zero_kernels": 0.0, "zero_channels": 0.0, "removable_channels": 0.0,
           "silent_channels": 0.0, "removable_weight_share": 0.3, "removable_channel_share": 0.2, "parameters": 1000,
           "macs": 10000, "parameters_left": 900, "macs_left": 9000, "layer_sparsity": [0.1, 0.2]}  # fmt: skip
GRID = {"group_lasso": [0.001, 0.01, 0.1], catalogue.HSQ_GL12: [0.0001, 0.001, 0.01], "both": [0.01, 0.1, 1.0],
        "control": [0.02, 0.2, 2.0]}  # fmt: skip
finite = st.floats(-1e3, 1e3)


@pytest.fixture(autouse=True)
def grid(monkeypatch):
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: GRID.get(arm, []))


def keep(root, spec, status="finished", made=(), **metrics):
    """A fabricated record, written and read back by the store."""
    metrics = METRICS | metrics if status == "finished" else {"failure": {"epoch": 1}}
    curve = {"loss": [1.0, 0.5], "seconds": 3.0}
    return store.read(
        store.save(spec, status, curve, metrics, MADE | {"code": store.code_hash(spec)} | dict(made), root)
    )


def seeded(spec, count):
    """The same run with the seeds 0 to count - 1."""
    return [replace(spec, seed=seed) for seed in range(count)]


PLAIN = catalogue.BASES["quick"]["digits_cnn"]


def lasso(strength):
    return catalogue.weight_arm(PLAIN, "group_lasso", strength)


def test_a_mixture_is_an_arm_of_its_own():
    mixed = catalogue.weight_arm(PLAIN, "group_lasso", 0.01, mix=0.5, second="l1")
    assert tables.arm_of(mixed) == "group_lasso mixed 0.5 with l1" and tables.strengths_of(mixed) == [0.01]
    assert len(tables.arms([PLAIN, lasso(0.01), mixed])) == 3


def test_pairs_across_two_processors_are_counted(tmp_path):
    specs, other = [PLAIN, lasso(0.01)], {"cpu": "another CPU"}
    records = [keep(tmp_path, spec) for spec in seeded(PLAIN, 4)]
    records += [keep(tmp_path, spec, made=other) for spec in seeded(lasso(0.01), 2)]
    records.append(keep(tmp_path, seeded(lasso(0.01), 3)[2]))
    records.append(keep(tmp_path, seeded(lasso(0.01), 4)[3], "diverged", other))
    frame = frames.frame_of(records)
    table = tables.beside_plain(tables.cells(specs, frame, ["arm"], []), specs, frame)
    assert table["pairs across processors"].tolist() == [0, 2]
    part = claims.compare(frame, key(specs[1]), key(PLAIN), "test_accuracy", claims.SPARSER, "x")
    assert (part.mixed, len(part.differences), part.within) == (2, 3, (0.0,))
    one_card = [{"device": "a GPU", "cpu": name} for name in ("x", "y")]  # whose host does not matter
    assert len({frames.processor(made) for made in one_card}) == 1


# -- statistics --------------------------------------------------------------------------------------------------------
@given(st.lists(finite, min_size=2, max_size=30))
def test_interval_is_students_t(values):
    mean, low, high = tables.interval(values)
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if spread > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread)
        assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert high - low == pytest.approx(0, abs=1e-6)


def test_interval_of_many_values_is_a_fixed_bootstrap():
    values = np.random.default_rng(1).exponential(size=200)
    mean, low, high = tables.interval(values)
    assert (mean, low, high) == tables.interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert low == pytest.approx(mean - half, abs=0.2 * half) and high == pytest.approx(mean + half, abs=0.2 * half)
    assert high - mean != pytest.approx(mean - low, rel=1e-6)  # skewed, as a bootstrap of skewed values is


def test_interval_of_too_little():
    assert tables.interval([3.0])[0] == 3.0 and math.isnan(tables.interval([3.0])[1])
    assert all(math.isnan(v) for v in tables.interval([]))
    assert all(math.isnan(v) for v in tables.interval([1.0, math.nan]))


def test_aggregate_counts_diverged_runs_and_refuses_mixed_scales(tmp_path):
    first, second, third = seeded(lasso(0.01), 3)
    records = [keep(tmp_path, first, test_accuracy=90.0), keep(tmp_path, second, test_accuracy=92.0)]
    records.append(keep(tmp_path, third, "diverged"))
    row = tables.aggregate(frames.frame_of(records), ["key"], ["test_accuracy"]).iloc[0]
    assert (row["n"], row["n_diverged"], row["test_accuracy"], row["stale"]) == (3, 1, 91.0, "")
    assert row["test_accuracy high"] == pytest.approx(91 + 12.706 * math.sqrt(2) / math.sqrt(2), abs=1e-2)
    other = keep(tmp_path, catalogue.BASES["laptop"]["resnet20"])
    with pytest.raises(ValueError, match="laptop, quick"):
        tables.aggregate(frames.frame_of([*records, other]), ["key"], ["test_accuracy"])


@given(st.floats(0.3, 0.9), st.floats(-20, 20), st.floats(50, 99))
def test_interpolation_is_exact_on_a_line_and_never_extrapolates(target, slope, level):
    rows = [{"seed": seed, "unstructured_sparsity": x, "zeroed_test_accuracy": level + seed + slope * x}
            for seed, reach in ((0, 0.9), (1, 0.95)) for x in (0.6, 0.3, reach, 0.1)]  # fmt: skip
    at = tables.accuracy_at_sparsity(pd.DataFrame(rows), target)
    assert list(at["accuracy"]) == pytest.approx([level + slope * target, level + 1 + slope * target])
    for seed, reach in ((0, 0.9), (1, 0.95)):
        grid = (0.1, 0.3, 0.6, reach)
        ends = max(x for x in grid if x <= target), min(x for x in grid if x >= target)
        assert at["lower"][seed] == pytest.approx(level + seed + min(slope * x for x in ends))
    assert tables.accuracy_at_sparsity(pd.DataFrame(rows), 0.92).empty  # seed 0 does not reach it
    assert tables.accuracy_at_sparsity(pd.DataFrame(rows), 0.05).empty


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(94, 98), st.floats(0, 1), st.booleans()), min_size=1, max_size=6))
def test_chosen_strength_is_the_sparsest_within_a_point(strengths):
    rows = []
    for k, (v, x, bad) in enumerate(strengths):
        for seed in (0, 1):
            status = "diverged" if bad and seed else "finished"
            rows.append({"key": str(k), "seed": seed, "status": status, "validation_accuracy": v + seed - 0.5,
                         "removable_weight_share": x, "test_accuracy": 100 * x})  # fmt: skip
    plain = {"key": "plain", "status": "finished"}
    rows += [plain | {"seed": seed, "validation_accuracy": 96.5 + seed} for seed in (0, 1)]
    found = tables.chosen_strength(pd.DataFrame(rows), list("012345"), "plain", "removable_weight_share")
    allowed = {k: x for k, (v, x, bad) in enumerate(strengths) if not bad and v >= 96 + 1e-9}
    doubtful = any(abs(v - 96) < 1e-9 for v, _, _ in strengths)
    if not doubtful:
        assert found is None if not allowed else strengths[int(found)][1] == max(allowed.values())


def test_a_strength_with_fewer_seeds_waits_and_seeds_are_compared_with_their_own():
    """Seed 1 is better by two points: a mean over seed 0 alone would refuse what a mean over both allows."""
    rows = [("plain", 0, 95.0, 0.2), ("plain", 1, 97.0, 0.2), ("weak", 0, 94.5, 0.3), ("weak", 1, 96.5, 0.3),
            ("strong", 0, 94.5, 0.9)]  # fmt: skip
    columns = ["key", "seed", "validation_accuracy", "removable_weight_share"]
    frame = pd.DataFrame(rows, columns=columns).assign(status="finished")
    ask = lambda keys: tables.chosen_strength(frame, keys, "plain", "removable_weight_share")  # noqa: E731
    assert ask(["weak", "strong"]) == "weak" and ask(["strong"]) == "strong" and ask(["none"]) is None


def test_of_equal_strengths_the_first_is_chosen_whatever_their_keys():
    rows = [(k, s, 97.0, 0.5) for k in ("plain", "z", "m", "a") for s in (0, 1)]
    frame = pd.DataFrame(rows, columns=["key", "seed", "validation_accuracy", "removable_weight_share"])
    for keys in (["z", "m", "a"], ["m", "a", "z"]):
        found = tables.chosen_strength(frame.assign(status="finished"), keys, "plain", "removable_weight_share")
        assert found == keys[0]


def test_a_loss_of_exactly_one_point_is_within_one_point():
    plain, arm = (81.1, 83.26, 82.68), (79.5, 82.14, 82.4)
    assert np.mean(arm) < np.mean(plain) - 1, "by rounding alone"
    rows = [(k, s, v, 0.5) for k, values in (("plain", plain), ("arm", arm)) for s, v in enumerate(values)]
    frame = pd.DataFrame(rows, columns=["key", "seed", "validation_accuracy", "removable_weight_share"])
    assert tables.chosen_strength(frame.assign(status="finished"), ["arm"], "plain", "removable_weight_share") == "arm"


# -- tables ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", catalogue.RUNS)
def test_layout_is_the_same_with_and_without_records(name, tmp_path):
    records = [keep(tmp_path, spec) for spec in (PLAIN, *seeded(lasso(0.01), 2))]
    empty, some = tables.experiment_tables(name, "quick", []), tables.experiment_tables(name, "quick", records)
    assert list(empty) == list(some)
    for kind in empty:
        assert list(empty[kind].columns) == list(some[kind].columns) and len(empty[kind]) == len(some[kind])
        if kind != "published":
            assert (empty[kind]["n"] == 0).all() and tables.NOT_RUN in empty[kind].to_numpy()
    for kind, table in tables.experiment_tables(name, "laptop", []).items():  # another scale, other layers alone
        assert kind == "layers" or list(table.columns) == list(empty[kind].columns)


def test_strengths_table_shows_means_diverged_stale_and_chosen(tmp_path):
    records = [keep(tmp_path, spec) for spec in seeded(PLAIN, 3)]
    for strength, share, accuracy in ((0.001, 0.4, 97.0), (0.01, 0.6, 96.2), (0.1, 0.9, 95.0)):
        made = {"code": "old"} if strength == 0.01 else {}
        numbers = {"removable_weight_share": share, "validation_accuracy": accuracy}
        records += [keep(tmp_path, spec, made=made, **numbers) for spec in seeded(lasso(strength), 3)]
    records[-1] = keep(tmp_path, seeded(lasso(0.1), 3)[2], "diverged")
    table = tables.experiment_tables("1_hgsr_criteria", "quick", records)["strengths"]
    rows = table[table["arm"] == "group_lasso"].set_index("strength")
    assert list(rows["chosen for"]) == [
        "channels",
        "weights",
        "",
    ]  # at 0.01 the weights; the channels tie: the more accurate
    assert (
        list(rows["stale"]) == ["", "†", ""] and list(rows["n"]) == [3, 3, 3] and list(rows["n_diverged"]) == [0, 0, 1]
    )
    assert rows.loc["0.01", "removable_weight_share"] == pytest.approx(0.6)
    assert rows.loc["0.01", "keys"] == key(lasso(0.01))
    assert set(table[table["arm"] == catalogue.HSQ_GL12]["test_accuracy"]) == {tables.NOT_RUN}


def test_flow_tables_part_the_strengths_of_the_usual_recipe_from_the_other_recipes(tmp_path):
    specs = catalogue.specs("quick", "4_ffr_flow", 1)
    found = tables.experiment_tables("4_ffr_flow", "quick", [keep(tmp_path, spec) for spec in specs])
    usual = [s for s in specs if s.recipe == PLAIN.recipe]
    assert set(found["strengths"]["keys"]) - {""} == {key(s) for s in usual}  # "": arms without strengths here
    rows = found["recipes"][found["recipes"]["keys"] != ""]
    kept = {key(s) for s in specs if s not in usual}
    middle = {key(s) for s in usual if s == PLAIN or (tables.arm_of(s), *tables.strengths_of(s)) in {
        (tables.arm_of(o), *tables.strengths_of(o)) for o in specs if o not in usual}}  # fmt: skip
    assert kept and set(rows["keys"]) == kept | middle  # each varied recipe, and the usual one beside it
    assert rows.groupby(["epochs", "weight_decay"])["arm"].apply(set).map(lambda arms: "plain" in arms).all()


def test_changes_are_beside_the_plain_net_of_the_same_seed_and_columns_lie_side_by_side(tmp_path):
    both = catalogue.flow_arm(PLAIN, "both", 0.1)
    records = [keep(tmp_path, s, removable_weight_share=0.3 + s.seed / 10) for s in seeded(PLAIN, 2)]
    records += [keep(tmp_path, s, removable_weight_share=0.4 + s.seed / 5) for s in seeded(both, 2)]
    found = tables.experiment_tables("7_both_papers", "quick", records)
    assert list(found) == ["together", "equal_budget"]
    row = found["together"].set_index("keys").loc[key(both)]
    assert row["change in removable_weight_share"] == pytest.approx(0.15)
    names = list(found["together"].columns)
    at = names.index("change in removable_weight_share")
    assert names[at + 1 : at + 3] == [f"{names[at]} low", f"{names[at]} high"] and names[-1] == "keys"


def test_layers_are_counted_from_one_to_the_deepest_nets(tmp_path):
    found = tables.experiment_tables("2_hgsr_structure", "quick", [keep(tmp_path, PLAIN)])["layers"]
    row = found.set_index("keys").loc[key(PLAIN)]
    assert (row["layer_1"], row["layer_2"]) == (0.1, 0.2) and "layer_6" in found and "layer_7" not in found
    deep = tables.experiment_tables("2_hgsr_structure", "paper", [])["layers"]
    nets = {s.model for s in catalogue.specs("paper", "2_hgsr_structure")}
    deepest = max(len(models.scaled_widths(net, 1)) for net in nets)
    assert len(nets) > 1 and f"layer_{deepest}" in deep and f"layer_{deepest + 1}" not in deep


def test_equal_sparsity_says_not_reached_and_pairs_with_the_counterpart(tmp_path):
    records = []
    hierarchical = "hierarchical_squared_group_lasso"
    GRID_BOTH = {"group_lasso": (0.1, lambda x: 96 - 10 * x), hierarchical: (0.2, lambda x: 97 - 10 * x)}
    for seed in range(3):
        records += [keep(tmp_path, seeded(PLAIN, 3)[seed], zeroed_test_accuracy=95.0 + seed, unstructured_sparsity=0.0)]
        for name, (strength, accuracy) in GRID_BOTH.items():
            spec = seeded(catalogue.weight_arm(PLAIN, name, strength), 3)[seed]
            numbers = {"zeroed_test_accuracy": accuracy(0.6) + seed, "unstructured_sparsity": 0.6}
            records.append(keep(tmp_path, spec, **numbers))
    specs = [PLAIN, *(catalogue.weight_arm(PLAIN, name, s) for name, (s, _) in GRID_BOTH.items())]
    table = tables.equal_sparsity(specs, frames.frame_of(records)).set_index(["arm", "sparsity"])
    row = table.loc[(hierarchical, "0.3")]
    assert row["accuracy"] == pytest.approx((96 + 92) / 2) and row["lead"] == pytest.approx(0.5) and row["n"] == 3
    assert row["lead low"] == pytest.approx(row["lead high"])  # the seeds move both arms alike
    assert table.loc[(hierarchical, "0.9"), "accuracy"] == tables.NOT_REACHED
    more = [*records, keep(tmp_path, seeded(PLAIN, 4)[3], zeroed_test_accuracy=50.0)]  # its penalised runs are to come
    again = tables.equal_sparsity(specs, frames.frame_of(more)).set_index(["arm", "sparsity"])
    assert again.loc[(hierarchical, "0.3"), "n"] == 3 and again.loc[(hierarchical, "0.3"), "lead"] == row["lead"]
    wider_spec = catalogue.weight_arm(PLAIN, hierarchical, 0.01)  # a strength without any run yet
    wider_specs = [*specs, wider_spec]
    wider = tables.equal_sparsity(wider_specs, frames.frame_of(records)).set_index(["arm", "sparsity"])
    assert wider.loc[(hierarchical, "0.3"), "lead"] == row["lead"] and wider.loc[(hierarchical, "0.3"), "n"] == 3
    begun = [*records, keep(tmp_path, replace(wider_spec, seed=0), unstructured_sparsity=0.1)]  # one of its seeds
    begun = tables.equal_sparsity(wider_specs, frames.frame_of(begun)).set_index(["arm", "sparsity"])
    assert begun.loc[(hierarchical, "0.3"), "lead"] == row["lead"] and begun.loc[(hierarchical, "0.3"), "n"] == 3
    broken = [r for r in records if r["spec"].weight.name != hierarchical]
    broken += [keep(tmp_path / "broken", replace(specs[2], seed=seed), unstructured_sparsity=0.6,
                    zeroed_test_accuracy=(84.0 if seed else 95.0) + seed) for seed in range(3)]  # fmt: skip
    broken = tables.equal_sparsity(specs, frames.frame_of(broken)).set_index(["arm", "sparsity"])
    assert broken.loc[(hierarchical, "0.3"), "lead"] == tables.NOT_REACHED, "a line to a net eleven points below plain"
    assert broken.loc[("group_lasso", "0.3"), "accuracy"] == table.loc[("group_lasso", "0.3"), "accuracy"]
    alone = [r for r in records if r["spec"].weight.name != "group_lasso"]
    alone = tables.equal_sparsity(specs, frames.frame_of(alone)).set_index(["arm", "sparsity"])
    assert alone.loc[(hierarchical, "0.3"), "lead"] == tables.NOT_RUN, "the counterpart was not run"
    assert table.loc[("l1", "0.3"), "accuracy"] == tables.NOT_RUN and table.loc[("group_lasso", "0.3"), "lead"] == ""


def test_an_arm_without_strengths_has_a_row_in_each_table_of_its_experiment(monkeypatch):
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [0.1] if arm == "both" else [])
    for kind, table in tables.experiment_tables("5_ffr_pruning", "laptop", []).items():
        if kind != "published":
            missing = table[(table["arm"] == "network_slimming") & (table["net"] == "cifar10 resnet20 A")]
            assert list(missing["strength"]) == [tables.NOT_CHOSEN], kind
            assert list(missing["test_accuracy"]) == [tables.NOT_RUN], kind


def test_other_scales_and_names_are_refused(tmp_path):
    record = keep(tmp_path, catalogue.BASES["laptop"]["resnet20"])
    with pytest.raises(ValueError, match="laptop; allowed: only quick"):
        tables.experiment_tables("4_ffr_flow", "quick", [record])
    with pytest.raises(ValueError, match="4_ffr_flow"):
        tables.experiment_tables("4_ffr_flo", "quick", [])
    with pytest.raises(ValueError, match="'quick'"):
        tables.experiment_tables("4_ffr_flow", "quik", [])


def test_written_tables_are_the_same_bytes_for_the_same_records(tmp_path):
    records = [
        keep(tmp_path, spec, test_accuracy=97 + spec.seed / 3) for spec in (*seeded(PLAIN, 3), *seeded(lasso(0.01), 3))
    ]
    made = tables.experiment_tables("1_hgsr_criteria", "quick", records)
    first = rendering.write(made, "1_hgsr_criteria", "quick", tmp_path / "a")
    again = tables.experiment_tables("1_hgsr_criteria", "quick", records[::-1])
    second = rendering.write(again, "1_hgsr_criteria", "quick", tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert {p.name for p in first} == {f"1_hgsr_criteria-{t}.{e}" for t in made for e in ("md", "csv")}
    csv = pd.read_csv(
        tmp_path / "a" / "tables" / "quick" / "1_hgsr_criteria-strengths.csv", dtype=str, keep_default_na=False
    )
    row = csv[csv["arm"] == "plain"].iloc[0]
    half = 4.302652729911275 * (1 / 3) / math.sqrt(3)
    assert (row["test_accuracy"], row["n"]) == ("97.33", "3")
    assert row["test_accuracy low"] == f"{97 + 1 / 3 - half:.2f}" and row["parameters_left"] == "900"
    shown = first[0].read_text()
    assert f"97.33 [{97 + 1 / 3 - half:.2f}, {97 + 1 / 3 + half:.2f}]" in shown and tables.NOT_RUN in shown


def test_published():
    table = tables.experiment_tables("5_ffr_pruning", "quick", [])
    hrank = table["published"].set_index(["model", "method"]).loc[("resnet56", "HRank")]
    assert hrank["accuracy_change"] == -0.09
    assert set(tables.experiment_tables("3_hgsr_pruning", "quick", [])["published"]["method"]) == {
        "HGSR filter pruning"
    }


def test_our_cuts_stand_below_the_published_rows_of_the_same_net(tmp_path):
    cuts = [s for s in catalogue.specs("laptop", "5_ffr_pruning") if s.pruning.score == "l1_norm" and s.seed == 0]
    deep = next(s for s in cuts if s.model == "resnet56" and s.recipe.epochs == 0 and s.pruning.amount == 0.5)
    small = next(s for s in cuts if s.model == "resnet20")  # of which nothing is published
    left = {"macs": 10, "macs_left": 5, "parameters": 8, "parameters_left": 6}
    records = [keep(tmp_path, s, test_accuracy=80.0, base_test_accuracy=93.0, **left) for s in (deep, small)]
    bare, table = (tables.experiment_tables("5_ffr_pruning", "laptop", r)["published"] for r in ([], records))
    assert "this companion" not in " ".join(bare["source"]) and len(table) == len(bare) + 1
    place = [text.startswith("this companion, n = 1") for text in table["source"]].index(True)
    row, nets = table.iloc[place], list(table["model"])
    assert row[["dataset", "model", "method"]].tolist() == ["cifar10", "resnet56", "A published, plain, l1_norm, 0.5"]
    assert (row["pruned_accuracy"], row["accuracy_change"]) == (80.0, -13.0) and nets == sorted(nets, key=nets.index)
    assert (row["macs_removed_pct"], row["params_removed_pct"]) == (50.0, 25.0) and nets[place + 1] == "resnet110"


def test_another_rate_of_fine_tuning_is_a_score_of_its_own():
    usual = next(iter(catalogue.cuts(PLAIN, ["l1_norm"], (0.5,), "macs_share", *catalogue.FINE_TUNE["quick"])))
    other = replace(usual, pruning=replace(usual.pruning, lr=0.1))
    assert [tables.LABELS["score"](s) for s in (PLAIN, usual, other)] == ["none", "l1_norm", "l1_norm, lr 0.1"]
    deep = [s for s in catalogue.specs("paper", "5_ffr_pruning") if s.init == "published"]
    labels, amounts = [tables.LABELS["score"](s) for s in deep], [s.pruning.amount for s in deep]
    assert set(labels[:4]) == {"none", "l1_norm", "random", "l1_norm, lr 0.1"} and sorted(amounts) == amounts
    assert labels.count("l1_norm, lr 0.1") == 1 and not any("lr" in text for text in set(labels) - {"l1_norm, lr 0.1"})


def test_arms_and_labels():
    both = catalogue.flow_arm(lasso(0.01), "both", 0.5, norm="l2")
    assert tables.arm_of(both) == "group_lasso + both" and tables.strengths_of(both) == [0.01, 0.5]
    assert tables.LABELS["reading"](both) == "norm l2" and tables.plain_of(both) == PLAIN
    neuron = RunSpec(recipe=PLAIN.recipe, weight=WeightPenalty("group_lasso", 0.1, "neuron"))
    assert [name for _, name in tables.arms([PLAIN, both, neuron])] == [
        "plain",
        "group_lasso + both",
        "group_lasso by neuron",
    ]
    assert tables.counterpart("hierarchical_square_rooted_group_l12") == "group_l12" and tables.counterpart("l1") == ""


def test_at_equal_sparsity_a_net_has_the_criteria_that_the_catalogue_takes_on_it():
    table = tables.experiment_tables("1_hgsr_criteria", "laptop", [])["equal_sparsity"]
    known = {tables.LABELS["net"](catalogue.BASES["laptop"][net]): c for net, c in catalogue.criteria("laptop").items()}
    assert {net: tuple(dict.fromkeys(rows["arm"])) for net, rows in table.groupby("net")} == known and len(known) == 2
