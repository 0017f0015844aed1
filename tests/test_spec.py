"""What a run is: every wrong setting is named in one sentence; keys stay what they are."""

import json
import re
from dataclasses import field, fields, make_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffrlib import spec
from ffrlib.spec import ActivationControl, FlowPenalty, Pruning, Recipe, RunSpec, WeightPenalty, from_dict, key, to_dict

RESNET = {"data": "cifar10", "model": "resnet20", "shortcut": "A"}
L1 = {"name": "l1", "strength": 1e-4}
CUT = {"score": "l1_norm", "amount": 0.5}

# settings, then words that the one sentence must hold: the value, something allowed, the nearest match if there is one
WRONG = [
    ({"data": "cifar11"}, ["'cifar11'", "'cifar10'", "did you mean"]),
    ({"data": 10}, ["10", "a str"]),
    ({**RESNET, "model": "resnet21"}, ["'resnet21'", "'resnet56'", "did you mean 'resnet"]),
    ({**RESNET, "shortcut": "C"}, ["'C'", "'A'", "'B'"]),
    ({"data": "cifar10", "model": "vgg16", "shortcut": "A"}, ["shortcut", "'A'"]),
    ({"data": "cifar10"}, ["model for data 'cifar10'", "'digits_cnn'", "'resnet20'"]),
    ({"model": "vgg16"}, ["'vgg16'", "digits_cnn"]),
    ({"scale": "laptops"}, ["'laptops'", "'paper'", "did you mean 'laptop'"]),
    ({"init": "pretrained"}, ["'pretrained'", "'published'"]),
    ({"init": "published"}, ["'published'", "resnet20"]),
    ({**RESNET, "init": "published", "width": 2.0}, ["'published'", "cifar10"]),
    ({"width": 0.05}, ["width", "0.05", "from 0.1 to 8"]),
    ({"width": float("nan")}, ["width", "nan", "finite"]),
    ({"train_size": -1}, ["train_size", "-1", "0 (all)"]),
    ({"train_size": 10.0}, ["train_size", "10.0", "int"]),
    ({"seed": -1}, ["seed", "-1", "2147483647"]),
    ({"seed": True}, ["seed", "True", "int"]),
    ({"recipe": {"schedule": "cosin"}}, ["'cosin'", "'one_cycle'", "did you mean 'cosine'"]),
    ({"recipe": {"augment": "flip"}}, ["'flip'", "'crop_flip'"]),
    ({"recipe": {"precision": "float16"}}, ["'float16'", "'bfloat16'", "did you mean"]),
    ({"recipe": {"epochs": 0}}, ["recipe.epochs", "0", "1 or more"]),
    ({"recipe": {"batch_size": 0}}, ["recipe.batch_size", "0", "1 or more"]),
    ({"recipe": {"momentum": 1.0}}, ["recipe.momentum", "1.0", "less than 1"]),
    ({"recipe": {"lr": -0.1}}, ["recipe.lr", "-0.1", "0 or more"]),
    ({"recipe": {"lr": float("inf")}}, ["recipe.lr", "inf", "finite"]),
    ({"recipe": {"weight_decay": -1.0}}, ["recipe.weight_decay", "-1.0"]),
    ({"recipe": {"nesterov": 1}}, ["recipe.nesterov", "1", "a bool"]),
    ({"recipe": {"milestones": [1.5]}}, ["recipe.milestones", "1.5", "between 0 and 1"]),
    ({"recipe": {"milestones": ["half"]}}, ["recipe.milestones", "half", "tuple of floats"]),
    ({"weight": {"name": "group_laso", "strength": 1.0}}, ["'group_laso'", "'l1'", "did you mean 'group_lasso'"]),
    ({"weight": {"name": "l1"}}, ["weight.strength", "0.0", "above 0"]),
    ({"weight": {"strength": 1.0}}, ["weight.strength", "1.0", "0 without"]),
    ({"weight": {**L1, "strength": -1.0}}, ["weight.strength", "-1.0", "0 or more"]),
    ({"weight": {**L1, "grouping": "channel"}}, ["'channel'", "'feature'", "'neuron'"]),
    ({"weight": {**L1, "mix": 1.5}}, ["weight.mix", "1.5", "0 to 1"]),
    ({"weight": {**L1, "second": "l2"}}, ["'l2'", "'l1'", "did you mean 'l1'"]),
    ({"weight": {**L1, "update": "prox"}}, ["'prox'", "'proximal'", "did you mean 'proximal'"]),
    ({"weight": {"name": "group_l12", "strength": 1.0, "update": "proximal"}}, ["'group_l12'", "'group_lasso'"]),
    (
        {"weight": {"name": "group_lasso", "strength": 1.0, "update": "proximal", "mix": 0.5, "second": "group_l12"}},
        ["weight.second", "'group_l12'", "'l1'"],
    ),
    ({"flow": {"norm": "l3"}}, ["flow.norm", "'l3'", "'l1'", "did you mean"]),
    ({"flow": {"curvature_kind": "angles"}}, ["'angles'", "did you mean 'angle'"]),
    ({"flow": {"reduction": "max"}}, ["'max'", "'mean'", "'sum'"]),
    ({"flow": {"transition": "pad_pool"}}, ["'pad_pool'", "did you mean 'pool_pad'"]),
    ({"flow": {"length": -0.5}}, ["flow.length", "-0.5", "0 or more"]),
    ({"flow": {"curvature": "0.1"}}, ["flow.curvature", "'0.1'", "float"]),
    ({"flow": {"tap": "blocks"}}, ["flow.tap", "'blocks'", "'block_output'"]),
    ({"activation": {"strength": -1.0}}, ["activation.strength", "-1.0"]),
    ({"activation": {"tap": "relu"}}, ["activation.tap", "'relu'", "'post_activation'"]),
    (
        {"flow": {"length": 0.1}, "activation": {"strength": 0.1, "tap": "pre_activation"}},
        ["activation.tap", "'default'"],
    ),
    ({"pruning": {"amount": 0.5}}, ["pruning", "defaults"]),
    ({"pruning": {**CUT, "score": "l1norm"}}, ["'l1norm'", "did you mean 'l1_norm'"]),
    ({"pruning": {**CUT, "budget": "flops"}}, ["'flops'", "'macs_share'"]),
    ({"pruning": {**CUT, "scope": "globally"}}, ["'globally'", "did you mean 'global'"]),
    ({"pruning": {**CUT, "groups": "stream"}}, ["'stream'", "'inner'"]),
    ({"pruning": {**CUT, "after": "tune"}}, ["'tune'", "did you mean 'finetune'"]),
    ({"pruning": {**CUT, "amount": 1.0}}, ["pruning.amount", "1.0", "between 0 and 1"]),
    ({"pruning": {"score": "l1_norm"}}, ["pruning.amount", "0.0"]),
    ({"pruning": {**CUT, "score": "magnitude"}}, ["'weight_share'"]),
    ({"pruning": {**CUT, "budget": "loss_tolerance"}}, ["'l1_norm'", "'loss_increase'"]),
    ({"pruning": {**CUT, "samples": 0}}, ["pruning.samples", "0", "1 or more"]),
    ({"pruning": {**CUT, "epochs": -1}}, ["pruning.epochs", "-1"]),
    ({"recipes": {}}, ["'recipes'", "did you mean 'recipe'"]),
    ({"recipe": {"learning_rate": 0.1}}, ["'learning_rate'", "'lr'"]),
    ({"recipe": 3}, ["recipe", "3", "names and values"]),
]


@pytest.mark.parametrize("settings,words", WRONG, ids=[json.dumps(s) for s, _ in WRONG])
def test_a_wrong_setting_is_named_in_one_sentence(settings, words):
    with pytest.raises(ValueError) as caught:
        from_dict(settings)
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_a_bundle_of_the_wrong_type_is_refused():
    with pytest.raises(ValueError, match="recipe is .*allowed: a Recipe"):
        RunSpec(recipe=WeightPenalty())


# Literal keys: they name files that exist. A change here orphans records and needs a reason in docs/LOG.md.
KEYS = [
    (RunSpec(), "44136fa355"),
    (RunSpec(recipe=Recipe(lr=0.05)), "330e0acc05"),
    (RunSpec("cifar10", "resnet20", "A", scale="laptop", recipe=Recipe(epochs=20, augment="crop_flip")), "1d52133de6"),
    (
        RunSpec("cifar10", "vgg16", weight=WeightPenalty("group_lasso", 1e-4, "neuron", 0.5), scale="paper"),
        "83534b81d6",
    ),
    (RunSpec(flow=FlowPenalty(0.1, 0.2, "l2"), activation=ActivationControl(0.3)), "f72f21d01d"),
    (RunSpec(pruning=Pruning("taylor", "macs_share", 0.5, epochs=3)), "0e50aaa48c"),
    (RunSpec(recipe=Recipe(schedule="step", milestones=(0.34, 0.67), gamma=0.2)), "1067685133"),
]


@pytest.mark.parametrize("run,name", KEYS, ids=[name for _, name in KEYS])
def test_literal_keys(run, name):
    assert key(run) == name


# The same for the defaults: an empty key text cannot tell when one of them changes its meaning.
DEFAULTS = {
    "data": "digits",
    "model": "digits_cnn",
    "shortcut": "",
    "width": 1.0,
    "init": "default",
    "train_size": 0,
    "recipe": {
        "epochs": 15,
        "batch_size": 128,
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0005,
        "schedule": "cosine",
        "milestones": [],
        "gamma": 0.1,
        "augment": "none",
        "precision": "auto",
    },
    "weight": {
        "name": "none",
        "strength": 0.0,
        "grouping": "feature",
        "mix": 1.0,
        "second": "l1",
        "update": "subgradient",
        "include_linear": False,
    },
    "flow": {
        "length": 0.0,
        "curvature": 0.0,
        "norm": "l1",
        "curvature_kind": "second_difference",
        "reduction": "mean",
        "transition": "skip",
        "tap": "default",
    },
    "activation": {"strength": 0.0, "tap": "default"},
    "pruning": {
        "score": "none",
        "budget": "channel_share",
        "amount": 0.0,
        "scope": "global",
        "groups": "all",
        "samples": 512,
        "after": "finetune",
        "epochs": 0,
        "lr": 0.01,
        "grouping": "feature",
    },
    "seed": 0,
    "scale": "quick",
}


def test_literal_defaults():
    assert to_dict(RunSpec()) == DEFAULTS


def test_seed_is_outside_the_key_and_everything_else_inside():
    assert key(RunSpec(seed=3)) == key(RunSpec())
    others = [
        RunSpec(train_size=500), RunSpec(scale="laptop"), RunSpec(width=2.0), RunSpec(recipe=Recipe(epochs=16)),
        RunSpec(recipe=Recipe(nesterov=True)), RunSpec(weight=WeightPenalty("l1", 1e-4)),
        RunSpec(weight=WeightPenalty("l1", 2e-4)), RunSpec(flow=FlowPenalty(length=1e-4)),
        RunSpec(activation=ActivationControl(1e-4)), RunSpec(pruning=Pruning("random", amount=0.5)),
    ]  # fmt: skip
    assert len({key(s) for s in (RunSpec(), *others)}) == len(others) + 1


def test_an_int_and_the_equal_float_name_the_same_run():
    assert key(RunSpec(recipe=Recipe(lr=1))) == key(RunSpec(recipe=Recipe(lr=1.0)))
    assert key(RunSpec(width=2)) == key(RunSpec(width=2.0))


@given(st.sampled_from([run for run, _ in KEYS]))
def test_a_new_field_with_a_default_keeps_the_keys(run):
    """The key of the same settings in classes that have one field more."""
    later = grow(run)
    assert spec.non_defaults(later) == spec.non_defaults(run)
    assert spec.non_defaults(replace(later, brand_new=1.0)) != spec.non_defaults(run)


def grow(settings):
    """The same values in a dataclass of the same fields and `brand_new` (in each bundle too)."""
    kinds, values = [], {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        if hasattr(value, "__dataclass_fields__"):
            value = grow(value)
            kinds.append((f.name, f.type, field(default_factory=type(value))))
        else:
            kinds.append((f.name, f.type, field(default=f.default)))
        values[f.name] = value
    return make_dataclass("Later", [*kinds, ("brand_new", "float", field(default=0.5))], frozen=True)(**values)


positive = st.floats(1e-9, 1e3)
weights = st.one_of(
    st.just(WeightPenalty()),
    st.builds(
        WeightPenalty, st.sampled_from(("network_slimming", *spec.CRITERIA)), positive,
        st.sampled_from(("feature", "neuron")), st.floats(0, 1), st.sampled_from(spec.CRITERIA),
        include_linear=st.booleans(),
    ),
)  # fmt: skip
recipes = st.builds(
    Recipe, st.integers(1, 500), st.integers(1, 4096), positive, st.floats(0, 0.999), st.booleans(), st.floats(0, 1),
    st.sampled_from(("cosine", "step", "constant", "one_cycle")), st.lists(st.floats(0.01, 0.99)).map(tuple),
    augment=st.sampled_from(("none", "crop_flip")), precision=st.sampled_from(("auto", "float32", "float64")),
)  # fmt: skip
cuts = st.one_of(
    st.just(Pruning()),
    st.builds(Pruning, st.sampled_from(("l1_norm", "random")), st.sampled_from(("channel_share", "macs_share")),
              st.floats(0.01, 0.99), st.sampled_from(("global", "layer")), epochs=st.integers(0, 9)),
)  # fmt: skip
flows = st.builds(
    FlowPenalty, positive, positive, st.sampled_from(("l1", "l2", "squared_l2")), tap=st.sampled_from(spec.TAPS)
)
runs = st.builds(
    RunSpec, st.just("cifar10"), st.sampled_from(("resnet20", "resnet56")), st.sampled_from(("A", "B")),
    st.floats(0.1, 8), train_size=st.integers(0, 10**5), recipe=recipes, weight=weights, flow=flows, pruning=cuts,
    seed=st.integers(0, 2**31 - 1), scale=st.sampled_from(spec.SCALES),
)  # fmt: skip


@given(runs)
def test_settings_survive_json(run):
    again = from_dict(json.loads(json.dumps(to_dict(run))))
    assert again == run and key(again) == key(run)


@given(runs)
def test_what_differs_from_the_defaults_is_enough_to_rebuild_a_run(run):
    assert replace(from_dict(json.loads(json.dumps(spec.non_defaults(run)))), seed=run.seed) == run


@given(runs)
def test_a_key_is_ten_hex_digits_and_a_base_has_no_cut(run):
    assert re.fullmatch("[0-9a-f]{10}", key(run))
    base = spec.base_of(run)
    assert base.pruning == Pruning() and replace(base, pruning=run.pruning) == run


@given(st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=5))
def test_choose_lets_exactly_the_allowed_values_pass(value, allowed):
    if value in allowed:
        spec.choose("thing", value, allowed)
    else:
        with pytest.raises(ValueError) as caught:
            spec.choose("thing", value, allowed)
        assert repr(value) in str(caught.value) and all(repr(a) in str(caught.value) for a in allowed)
