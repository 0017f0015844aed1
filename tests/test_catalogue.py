"""The catalogue: each run once, in the order in which it decides, and every run of it can be made."""

from dataclasses import replace

import pytest
import torch

from ffrlib import catalogue, experiments, plan, store, tables
from ffrlib.regularizers import flow
from ffrlib.spec import CRITERIA, SCALES, Pruning, WeightPenalty, base_of, key
from ffrlib.training import new_model

GRID = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


@pytest.fixture(autouse=True)
def _full_grids(monkeypatch, results):
    """Five strengths for every arm, whatever the pilot has chosen so far; an empty store."""
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: GRID)


def test_experiments_and_their_runs_belong_together():
    assert list(catalogue.CLAIMS) == list(catalogue.RUNS)
    claims = {claim for own in catalogue.CLAIMS.values() for claim in own}
    assert claims == {"H1", "H2", "H3", "H4", "F1", "F2", "F3", "F4"}


@pytest.mark.parametrize("scale", SCALES)
def test_each_run_stands_once_and_has_a_file_of_its_own(scale):
    runs = catalogue.specs(scale)
    assert len(set(runs)) == len(runs) > 100 and {s.scale for s in runs} == {scale}
    assert len({store.record_path(s) for s in runs}) == len(runs)
    together = [s for name in catalogue.RUNS for s in catalogue.specs(scale, name)]
    assert set(together) <= set(runs) or scale != "quick"
    assert {key(s) for s in together} == {key(s) for s in runs}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", catalogue.RUNS)
def test_plain_runs_come_before_what_is_compared_with_them(scale, name):
    runs = catalogue.specs(scale, name)
    place = {s: k for k, s in enumerate(runs)}
    assert runs or (name == catalogue.FIRM and scale != "quick"), "an experiment without runs"
    for s, k in place.items():
        if s.pruning != Pruning() and base_of(s) in place:
            assert place[base_of(s)] < k
    if runs and name != "2_hgsr_structure":  # its plain runs are those of 1_hgsr_criteria
        assert store.penalties_label(runs[0]) == "plain"


def test_the_first_two_seeds_come_before_the_others():
    seeds = [s.seed for s in catalogue.specs("quick", "1_hgsr_criteria")]
    assert set(seeds[: seeds.index(2)]) == {0, 1} and set(seeds[seeds.index(2) :]) == {2, 3, 4}


def test_a_number_of_seeds_can_be_asked_for():
    for count in (1, 2, 7):
        assert {s.seed for s in catalogue.specs("quick", "4_ffr_flow", count)} == set(range(count))


def test_every_arm_has_its_strengths():
    runs = catalogue.specs("quick", "1_hgsr_criteria", 1)
    wanted = {("none", 0.0)} | {(c, x) for c in CRITERIA for x in GRID}
    wanted |= {(name, x) for name, more in catalogue.BESIDE["quick", "digits_cnn"].items() for x in more}
    assert {(s.weight.name, s.weight.strength) for s in runs if s.weight.mix == 1} == wanted
    arms = {(s.flow.length, s.flow.curvature, s.activation.strength) for s in catalogue.specs("quick", "4_ffr_flow", 1)}
    for x in GRID:
        assert {(x, 0, 0), (0, x, 0), (x, x, 0), (0, 0, x)} <= arms


def test_at_quick_every_run_has_five_seeds():
    for name in catalogue.RUNS:
        seeds = {}
        for s in catalogue.specs("quick", name):
            seeds.setdefault(replace(s, seed=0), set()).add(s.seed)
        own = set(catalogue.FRESH) if name == catalogue.FIRM else set(range(5))
        assert all(found == own for found in seeds.values()), name


def test_a_longer_run_is_pushed_as_hard_at_quick_alone():
    for scale in SCALES:
        base = catalogue.BASES[scale][catalogue.FFR_NETS[scale][0]]
        own = [s for s in catalogue.specs(scale, "4_ffr_flow", 1) if (s.model, s.data) == (base.model, base.data)]
        longer = [s for s in own if s.recipe.epochs == 2 * base.recipe.epochs]
        found = {max(s.flow.length, s.activation.strength) for s in longer} - {0}
        assert found == ({1e-3, 5e-4} if scale == "quick" else {1e-3}), scale


def test_readings_have_the_control_and_at_moved_taps_too_but_at_laptop():
    for scale in SCALES:
        controls = [s for s in catalogue.specs(scale, "6_ffr_readings", 1) if s.activation.strength]
        moved = {s.flow.tap for s in catalogue.specs(scale, "6_ffr_readings", 1) if s.flow.length} - {"default"}
        assert moved and {s.activation.tap for s in controls} == {"default"} | (moved if scale != "laptop" else set())


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'laptop'"):
        catalogue.specs("labtop")
    with pytest.raises(ValueError, match="did you mean '4_ffr_flow'"):
        catalogue.specs("quick", "4_ffr_flows")


@pytest.mark.parametrize("scale", SCALES)
def test_every_flow_of_the_catalogue_finds_its_pairs_and_triples(scale):
    """The penalty is worked out on one image for each net and reading: none raises, each moves some feature."""
    nets, seen = {}, set()
    for s in catalogue.specs(scale, seeds=1):
        f, a = s.flow, s.activation
        tap = f.tap if f.length or f.curvature else a.tap
        options = (s.model, f.norm, f.curvature_kind, f.transition, tap, f.length > 0, f.curvature > 0, a.strength > 0)
        if options in seen or not (f.length or f.curvature or a.strength):
            continue
        seen.add(options)
        if (s.model, tap) not in nets:
            model = new_model(s, 10)
            x = torch.randn(1, *((1, 8, 8) if s.data == "digits" else (3, 32, 32)))
            with torch.no_grad():
                nets[s.model, tap] = model, model.flow(x, tap)[1]
        model, features = nets[s.model, tap]
        features = [x.clone().requires_grad_() for x in features]
        value = a.strength * flow.activation_penalty(features)
        if f.length or f.curvature:
            ways = model.shortcuts(tap) if f.transition == "shortcut" else None
            value = value + flow.flow_penalty(
                features, f.length, f.curvature, f.norm, f.curvature_kind, f.reduction, f.transition, ways
            )
        value.backward()
        assert float(value.detach()) > 0 and any(x.grad is not None and x.grad.abs().sum() > 0 for x in features)
    assert len(seen) > 3


def test_what_has_no_strength_is_named_and_has_no_run(monkeypatch):
    assert all(catalogue.unchosen(name, scale) == [] for name in catalogue.RUNS for scale in SCALES)
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [] if arm in ("both", "l1") else GRID)
    for name in catalogue.RUNS:
        for scale in SCALES:
            left = catalogue.unchosen(name, scale)
            assert {arm for _, arm in left} <= {"both", "l1"} and {net for net, _ in left} <= set(
                catalogue.BASES[scale]
            )
    assert catalogue.unchosen("4_ffr_flow", "laptop") == [("resnet20", "both")]
    assert catalogue.unchosen("6_ffr_readings", "quick") == [("digits_cnn", "both")]
    assert len(catalogue.specs("laptop", "6_ffr_readings")) == 2  # the plain net and the control


def test_the_loss_of_the_published_script_and_a_start_that_costs_nothing():
    grid = catalogue.strengths("paper", "alexnet_small", catalogue.HSQ_GL12)
    for scale, net in (("quick", "digits_cnn"), ("laptop", ""), ("paper", "alexnet_small")):
        mixed = [s for s in catalogue.specs(scale, "1_hgsr_criteria", 1) if s.weight.mix < 1]
        assert {s.model for s in mixed} == {net} - {""} and all(s.weight.second == "l1" for s in mixed)
        halves = [grid[len(grid) // 2], 0.0005] if net else []
        assert sorted(s.weight.strength / 2 for s in mixed) == pytest.approx(sorted(halves))
        assert {replace(s.weight, strength=1.0) for s in mixed} <= {WeightPenalty(catalogue.HSQ_GL12, 1.0, mix=0.5)}
    starts = [s.weight.strength for s in tables.unseeded("3_hgsr_pruning", "laptop") if s.pruning.score == "none"]
    assert starts == [0.0, grid[0], grid[len(grid) // 2]]  # the first of the penalised is judged


def test_helpers():
    assert catalogue.middle([]) == [] and catalogue.middle([1, 2, 3]) == [2] and catalogue.middle([1, 2]) == [2]
    base = catalogue.BASES["quick"]["digits_cnn"]
    assert catalogue.flow_arm(base, "both", 0.5) == replace(base, flow=replace(base.flow, length=0.5, curvature=0.5))
    assert catalogue.flow_arm(base, "control", 0.5, tap="pre_activation").activation.tap == "pre_activation"


@pytest.mark.parametrize("name", ["1_hgsr_criteria", "4_ffr_flow"])
def test_strengths_of_an_arm_ascend_those_beside_its_grid_too(name):
    for scale in SCALES:
        specs = {key(spec): spec for spec in tables.unseeded(name, scale)}
        for place, keys in tables.arms(list(specs.values())).items():
            strengths = [tables.strengths_of(specs[k]) for k in keys]
            assert strengths == sorted(strengths), (scale, place[1], strengths)
    between = catalogue.turns("laptop", "resnet20", "hierarchical_squared_group_l12", 0.2)
    assert between == sorted(between) and (1e-6, 0.2) in between and len(between) > 1


def test_an_experiment_of_ones_own_is_priced_and_gets_a_table(monkeypatch):
    run = replace(catalogue.BASES["quick"]["digits_cnn"], width=0.5)
    monkeypatch.setitem(catalogue.RUNS, "9_own", lambda scale: [(1, run)])
    assert "1 of    5 runs" in plan.plan("quick", "9_own") or "5 of    5 runs" in plan.plan("quick", "9_own")
    table = tables.experiment_tables("9_own", "quick", [])["runs"]
    assert table["arm"].tolist() == ["plain"] and experiments.verdict_table("9_own", "quick").empty


def test_a_stronger_strength_stands_beside_the_grid_at_laptop_alone():
    for scale in SCALES:
        both = {s.flow.length for s in catalogue.specs(scale, "4_ffr_flow") if s.model == "resnet20" and s.flow.length}
        assert (0.03 in both) == (scale == "laptop"), scale
    others = [s for name in catalogue.RUNS if name != "4_ffr_flow" for s in catalogue.specs("laptop", name)]
    assert 0.03 not in {s.flow.length for s in others}


def test_a_pair_of_h1_on_a_further_net_is_a_form_and_its_counterpart_with_every_seed():
    pairs = [(scale, net, names) for scale in SCALES for net, names in catalogue.criteria(scale).items()
             if net not in catalogue.HGSR_NETS[scale]]  # fmt: skip
    assert [(scale, net) for scale, net, _ in pairs] == [("laptop", "resnet20")]
    for scale, net, (flat, form) in pairs:
        assert tables.counterpart(form) == flat
        base = catalogue.BASES[scale][net]
        own = [s for s in catalogue.specs(scale, "1_hgsr_criteria") if s.model == base.model]
        wanted = {("none", 0.0)} | {(name, x) for name in (flat, form) for x in GRID}
        beside = catalogue.BESIDE[scale, net]
        wanted |= {(name, strength) for name in (flat, form) for strength in beside[name]}
        assert {(s.weight.name, s.weight.strength) for s in own} == wanted and {s.seed for s in own} == set(range(5))
    assert {s.model for s in catalogue.specs("laptop", "2_hgsr_structure")} == {"alexnet_small"}  # H2's contexts
