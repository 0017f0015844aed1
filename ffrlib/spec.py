"""What a run is: frozen settings, their validation, and the key that names them.

A run's key hashes only the settings that differ from their defaults, so a new setting never renames old runs. A default
therefore never changes its meaning: new behaviour is a new value. The seed is outside the key.
"""

# Without `from __future__ import annotations`: the types of the fields are read as types.
import difflib
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from operator import attrgetter
from typing import Any

SCALES = ("quick", "laptop", "paper")
DATA = ("digits", "cifar10", "cifar100", "tiny_imagenet", "stl10")
MODELS = (
    "digits_cnn", "alexnet_small", "vgg11_small", "vgg11_small_bn", "resnet18_small", "resnet34_small",
    "vgg16", "vgg19", "resnet20", "resnet32", "resnet56", "resnet110", "resnet18_tiny",
)  # fmt: skip
CIFAR_RESNETS = ("resnet20", "resnet32", "resnet56", "resnet110")
CRITERIA = (
    "l1", "group_lasso", "exclusive_sparsity", "group_l12",
    "hierarchical_square_rooted_group_lasso", "hierarchical_squared_group_lasso",
    "hierarchical_square_rooted_exclusive_sparsity", "hierarchical_squared_exclusive_sparsity",
    "hierarchical_square_rooted_group_l12", "hierarchical_squared_group_l12",
)  # fmt: skip
TAPS = ("post_activation", "pre_activation", "block_output")
SCORES = (
    "l1_norm", "l2_norm", "bn_scale", "geometric_median", "feature_group", "flow", "loss_increase", "taylor", "random",
    "magnitude", *CRITERIA[1:],
)  # fmt: skip
BUDGETS = ("threshold", "channel_share", "macs_share", "parameter_share", "loss_tolerance", "weight_share")
NARROWEST = 0.1  # factor on the widths: half of the channels of any net can still be cut, as every record wants it
CHOICES = {  # what a setting may be, whatever the others are
    "data": DATA, "model": MODELS, "scale": SCALES, "init": ("default", "published"),
    "recipe.schedule": ("cosine", "step", "constant", "one_cycle"), "recipe.augment": ("none", "crop_flip"),
    "recipe.precision": ("auto", "float32", "bfloat16", "float64"),
    "weight.name": ("none", "network_slimming", *CRITERIA), "weight.grouping": ("feature", "neuron"),
    "weight.second": CRITERIA, "weight.update": ("subgradient", "proximal"),
    "flow.norm": ("l1", "l2", "squared_l2"), "flow.curvature_kind": ("second_difference", "angle"),
    "flow.reduction": ("mean", "sum"), "flow.transition": ("skip", "pool_pad", "shortcut"),
    "flow.tap": ("default", *TAPS), "activation.tap": ("default", *TAPS),
}  # fmt: skip
NOT_NEGATIVE = ("recipe.lr", "recipe.weight_decay", "recipe.gamma", "weight.strength", "flow.length", "flow.curvature",
                "activation.strength")  # fmt: skip


def choose(what: str, value: Any, allowed) -> None:
    """Raise ValueError with one sentence (value, allowed values, nearest match) unless `value` is in `allowed`."""
    allowed = list(allowed)
    if value in allowed:
        return
    plain = {str(a).lower(): str(a) for a in allowed}
    near = difflib.get_close_matches(str(value).lower(), plain, n=1, cutoff=0.4)
    hint = f"; did you mean {plain[near[0]]!r}?" if near else "."
    raise ValueError(f"{what} is {value!r}, which is none of {', '.join(map(repr, allowed))}{hint}")


def require(ok: bool, what: str, value: Any, allowed: str) -> None:
    """Raise ValueError '<what> is <value>; allowed: <allowed>.' unless `ok`."""
    if not ok:
        raise ValueError(f"{what} is {value!r}; allowed: {allowed}.")


@dataclass(frozen=True)
class Recipe:
    """How a net is trained. `milestones` (shares of the run, 0 to 1) and `gamma` are read by schedule "step" alone."""

    epochs: int = 15
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "cosine"  # "cosine" to zero, "step", "constant", "one_cycle" (linear up to 25 %, linear down to 0)
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    augment: str = "none"  # "crop_flip": random crop with padding 4 and horizontal flip
    precision: str = "auto"  # "float32", "bfloat16" (autocast), "float64"; "auto": see training.precision


@dataclass(frozen=True)
class WeightPenalty:
    """HGSR's family: `strength * (mix * name + (1 - mix) * second)`, or `network_slimming` (L1 on norms' scales)."""

    name: str = "none"
    strength: float = 0.0
    grouping: str = "feature"  # a group is an input channel; "neuron": an output channel
    mix: float = 1.0
    second: str = "l1"
    update: str = "subgradient"  # "proximal": a closed-form proximal step after the optimiser's
    include_linear: bool = False


@dataclass(frozen=True)
class FlowPenalty:
    """FFR's family: `length * sum |d_l| + curvature * sum |c_l|`; the options are those of docs/papers.md."""

    length: float = 0.0
    curvature: float = 0.0
    norm: str = "l1"
    curvature_kind: str = "second_difference"
    reduction: str = "mean"
    transition: str = "skip"
    tap: str = "default"  # the net's own default: post_activation for plain nets, block_output for ResNets


@dataclass(frozen=True)
class ActivationControl:
    """The control of every table that decides something about FFR: `strength * sum_l mean |x_l|`."""

    strength: float = 0.0
    tap: str = "default"


@dataclass(frozen=True)
class Pruning:
    """What is cut after training: a score, a budget of `amount`, and what follows. `score="none"`: nothing is cut."""

    score: str = "none"
    budget: str = "channel_share"
    amount: float = 0.0
    scope: str = "global"  # "layer": the same share in each layer
    groups: str = "all"  # "inner": only channels inside a block, the residual stream stays whole
    samples: int = 512  # training images used by data-driven scores
    after: str = "finetune"  # "scratch": the same small net from new random weights, with the whole recipe
    epochs: int = 0  # of fine-tuning
    lr: float = 0.01
    grouping: str = "feature"  # of a score named like a criterion: what reads the channel; "neuron": what writes it


@dataclass(frozen=True)
class RunSpec:
    """One run. Three separate bundles of penalties, so that the two papers can be combined."""

    data: str = "digits"
    model: str = "digits_cnn"
    shortcut: str = ""  # "A" or "B" for resnet20 / 32 / 56 / 110, else empty
    width: float = 1.0  # factor on all hidden widths
    init: str = "default"  # "published": starts from published weights (resnet20, resnet56 with option A)
    train_size: int = 0  # 0: all training images that are not held out for validation
    recipe: Recipe = field(default_factory=Recipe)
    weight: WeightPenalty = field(default_factory=WeightPenalty)
    flow: FlowPenalty = field(default_factory=FlowPenalty)
    activation: ActivationControl = field(default_factory=ActivationControl)
    pruning: Pruning = field(default_factory=Pruning)
    seed: int = 0
    scale: str = "quick"

    def __post_init__(self):
        validate(self)


def _check_types(settings, where: str) -> None:
    """Every field has the type it declares (an int is taken for a float; a bool never for a number)."""
    for f in fields(settings):
        name, value, kind = where + f.name, getattr(settings, f.name), f.type
        if is_dataclass(kind):
            require(isinstance(value, kind), name, value, f"a {kind.__name__}")
            _check_types(value, f"{name}.")
        elif kind in (int, float):
            good = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            require(good and math.isfinite(value), name, value, f"a finite {kind.__name__}")
        elif kind in (bool, str):
            require(isinstance(value, kind), name, value, f"a {kind.__name__}")
        else:
            good = isinstance(value, tuple) and all(isinstance(v, float) for v in value)
            require(good, name, value, "a tuple of floats")


def validate(spec: RunSpec) -> None:
    """Raise ValueError in one sentence for the first setting that is not allowed."""
    _check_types(spec, "")
    for name, allowed in CHOICES.items():
        choose(name, attrgetter(name)(spec), allowed)
    for name in NOT_NEGATIVE:
        require(attrgetter(name)(spec) >= 0, name, attrgetter(name)(spec), "0 or more")
    choose("shortcut", spec.shortcut, ("A", "B") if spec.model in CIFAR_RESNETS else ("",))
    nets = [m for m in MODELS if (m == "digits_cnn") == (spec.data == "digits")]
    choose(f"model for data {spec.data!r}", spec.model, nets)
    if spec.init == "published":
        exist = spec.model in ("resnet20", "resnet56") and (spec.shortcut, spec.data, spec.width) == ("A", "cifar10", 1)
        require(exist, "init", spec.init, "'published' only for resnet20 or resnet56 with shortcut 'A' on cifar10")
    require(NARROWEST <= spec.width <= 8, "width", spec.width, f"a factor from {NARROWEST} to 8")
    require(spec.train_size >= 0, "train_size", spec.train_size, "0 (all) or a number of images")
    require(0 <= spec.seed < 2**31, "seed", spec.seed, "0 to 2147483647")
    r, w, f, p = spec.recipe, spec.weight, spec.flow, spec.pruning
    least = 0 if spec.init == "published" else 1
    require(r.epochs >= least, "recipe.epochs", r.epochs, f"{least} or more")
    require(r.batch_size >= 1, "recipe.batch_size", r.batch_size, "1 or more")
    require(0 <= r.momentum < 1, "recipe.momentum", r.momentum, "0 to less than 1")
    require(all(0 < m < 1 for m in r.milestones), "recipe.milestones", r.milestones, "shares between 0 and 1")
    require((w.name == "none") == (w.strength == 0), "weight.strength", w.strength,
            "above 0 with a named penalty, 0 without one")  # fmt: skip
    require(0 <= w.mix <= 1, "weight.mix", w.mix, "0 to 1")
    if w.update == "proximal":
        closed = ("l1", "group_lasso", "exclusive_sparsity")
        choose("weight.name with update 'proximal'", w.name, closed)
        if w.mix < 1:  # a closed form exists for l1 and for l1 with one other
            choose("weight.second with update 'proximal'", w.second, closed if w.name == "l1" else ("l1", w.name))
    if spec.activation.strength and (f.length or f.curvature):  # one pass through the net taps it once
        choose("activation.tap beside a flow penalty", spec.activation.tap, (f.tap,))
    if p.score == "none":
        require(p == Pruning(), "pruning", p, "all defaults where pruning.score is 'none'")
        return
    choose("pruning.score", p.score, SCORES)
    choose("pruning.budget", p.budget, BUDGETS)
    choose("pruning.scope", p.scope, ("global", "layer"))
    choose("pruning.groups", p.groups, ("all", "inner"))
    choose("pruning.after", p.after, ("finetune", "scratch"))
    choose("pruning.grouping", p.grouping, ("feature", "neuron"))
    require((p.score == "magnitude") == (p.budget == "weight_share"), "pruning.budget", p.budget,
            "'weight_share' with score 'magnitude', any other budget with a channel score")  # fmt: skip
    if p.budget == "loss_tolerance":
        choose("pruning.score with budget 'loss_tolerance'", p.score, ("loss_increase",))
    share = p.budget.endswith("_share")
    require(p.amount > 0 and (not share or p.amount < 1), "pruning.amount", p.amount,
            "a share between 0 and 1" if share else "above 0")  # fmt: skip
    require(p.samples >= 1, "pruning.samples", p.samples, "1 or more")
    require(p.epochs >= 0 and p.lr >= 0, "pruning.epochs and pruning.lr", (p.epochs, p.lr), "0 or more")


def to_dict(spec: RunSpec) -> dict:
    """All settings as nested plain values (tuples become lists)."""
    return json.loads(json.dumps(asdict(spec)))


def non_defaults(settings) -> dict:
    """The settings that differ from their defaults, nested; the seed left out."""
    out = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        if is_dataclass(value):
            if inner := non_defaults(value):
                out[f.name] = inner
        elif f.name != "seed" and value != f.default:
            out[f.name] = float(value) if isinstance(f.default, float) else value
    return out


def from_dict(settings: dict, kind: type = RunSpec, where: str = "") -> RunSpec:
    """The RunSpec of nested plain values; missing ones take their defaults, unknown ones raise ValueError.

    `kind` and `where` are for the bundles inside: their class, and their name with a dot.
    """
    require(isinstance(settings, dict), f"settings {where}".rstrip(" ."), settings, "names and values")
    known, values = {f.name: f.type for f in fields(kind)}, {}
    for name, value in settings.items():
        choose(f"setting {where}{name!s}: its name", name, known)
        if is_dataclass(known[name]):
            value = from_dict(value, known[name], f"{where}{name}.")
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def key(spec: RunSpec) -> str:
    """Ten hex digits that name the settings, the seed left out."""
    text = json.dumps(non_defaults(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def base_of(spec: RunSpec) -> RunSpec:
    """The same run without its pruning: what a pruned run starts from."""
    return replace(spec, pruning=Pruning())
