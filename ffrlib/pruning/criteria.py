"""How much each channel matters: a score for each channel of each group, the least important first to go.

A global budget ranks all channels together, so scores must compare across layers. Norms of weights and activations do
not: they follow the layer's shape and initialisation, and a batch norm behind them undoes any scale. Ranked as they
are, they empty one layer after the other; `relative` therefore divides them by their layer's mean. `bn_scale` stays as
it is, `taylor` and `loss_increase` are in units of the loss. A stream channel takes the mean over its writers or
readers. All run in eval mode and leave model, gradients and modes as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ffrlib.models import counted_convolutions
from ffrlib.pruning import removal
from ffrlib.regularizers.weight import FORMS, penalty
from ffrlib.spec import choose

Scores = dict[str, Tensor]


def _mean(model: nn.Module, part: str, score: Callable[[Tensor, int], Tensor]) -> Scores:
    """Mean of `score(weight, size) -> (size,)` over a group's "writers", "norms" or "readers"."""
    weights = {
        g: [model.get_submodule(m).weight.detach().float() for m in getattr(g, part)] for g in removal.groups(model)
    }
    return {g.name: torch.stack([score(w, g.size) for w in ws]).mean(0) for g, ws in weights.items()}


def relative(scores: Scores) -> Scores:
    """Scores over their layer's mean; over a tenth of the median layer's where that is more, so that a layer which died
    as a whole (a block that a penalty switched off) still goes first."""
    means = torch.stack([score.mean() for score in scores.values()])
    floor = means.median().mul(0.1).clamp_min(torch.finfo(means.dtype).tiny)
    return {name: score / mean for (name, score), mean in zip(scores.items(), means.maximum(floor))}


def l1_norm(model) -> Scores:
    """sum|w| / sqrt(n) over the n weights that write a channel (arXiv 1608.08710), `relative`."""
    return relative(_mean(model, "writers", lambda w, size: w.abs().sum((1, 2, 3)) / w[0].numel() ** 0.5))


def l2_norm(model) -> Scores:
    """sqrt(sum w^2) over the weights that write a channel, `relative`."""
    return relative(_mean(model, "writers", lambda w, size: w.flatten(1).norm(dim=1)))


def geometric_median(model) -> Scores:
    """Mean Euclidean distance to the layer's channels (arXiv 1811.00250), `relative`: near the geometric median lie
    those that others can replace. By differences: the quick formula gives equal channels a distance above 0."""
    exact = "donot_use_mm_for_euclid_dist"
    return relative(_mean(model, "writers", lambda w, n: torch.cdist(*[w.flatten(1)] * 2, compute_mode=exact).mean(1)))


def bn_scale(model) -> Scores:
    """|gamma| of the batch norms behind a channel (network slimming, arXiv 1708.06519)."""
    if not all(norm for g in model.groups() for norm in g.norms):
        raise ValueError(f"The score is 'bn_scale'; allowed for {model.layout.name}, without batch norms: any other.")
    return _mean(model, "norms", lambda w, size: w.abs())


def feature_group(model) -> Scores:
    """sqrt(I / O * sum_o sum_hw W[o, i]^2): the norm of HGSR's feature-wise group (group lasso), that is of the weights
    that *read* channel i of I, `relative`. A linear layer behind flatten reads each channel at several neighbours."""
    scores = _mean(model, "readers", lambda w, n: w.reshape(len(w), n, -1).square().mean(0).sum(1).mul(n).sqrt())
    return relative(scores)


def group_term(model: nn.Module, name: str, grouping: str = "feature") -> Scores:
    """What a channel's group adds to HGSR's criterion `name` (`regularizers.weight.FORMS`): (sum over the group's
    kernels of s(kernel) ** inner) ** outer, `relative`. The group is what reads the channel (`grouping` "feature";
    behind flatten the neighbouring columns of a linear layer are one kernel) or what writes it ("neuron").

    The outer exponent is monotone: within a layer the square-rooted and the squared variant rank channels equally, they
    differ only across layers (and in the mean over a stream's writers or readers). ValueError: see `penalty`.
    """

    def score(w: Tensor, size: int) -> Tensor:
        kernels = (w.reshape(len(w), size, -1) if grouping == "feature" else w.flatten(2)).unsqueeze(3)
        groups = kernels.split(1, dim=1 if grouping == "feature" else 0)
        return torch.stack([penalty([group], name, grouping) for group in groups])

    return relative(_mean(model, "readers" if grouping == "feature" else "writers", score))


def random(model, seed: int = 0) -> Scores:
    """Uniform in [0, 1) from a generator of its own: the control."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in model.groups()}


@contextmanager
def evaluating(model: nn.Module):
    """Eval mode inside, every module's own mode back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def outputs(modules):
    """The value is a dict that each forward pass inside fills: module -> its last output."""
    found = {}
    hooks = [m.register_forward_hook(lambda m, _, out: found.update({m: out})) for m in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def feature_places(model: nn.Module) -> dict[str, list[int]]:
    """Group -> places of its features in `model.flow(x, "post_activation")`: ReLU outputs and counted convolutions
    follow one order; projections have no ReLU of their own."""
    place = {name: i for i, (name, _) in enumerate(counted_convolutions(model))}
    return {g.name: [place[w] for w in g.writers if w in place] for g in model.groups()}


def flow(model, images, labels=None, batch: int = 128) -> Scores:
    """A channel's part in the feature flow: mean |x_l| + mean |d_l| over samples and positions, then over the group's
    features (all ReLU outputs; our definition), `relative`. d_l = x_l - x_{l-1} is the step that arrives at x_l, from
    the group's own feature before it (in a stream) or else from the layer before; 0 where the shape changes."""
    places_of = feature_places(model)
    totals = dict.fromkeys(places_of, 0.0)
    with evaluating(model), torch.no_grad():
        for x in images.split(batch):
            features = [f.float() for f in model.flow(x, "post_activation")[1]]
            for name, places in places_of.items():
                for before, i in zip([places[0] - 1, *places], places):
                    value = features[i].abs()
                    if before >= 0 and features[before].shape == value.shape:
                        value = value + (features[i] - features[before]).abs()
                    totals[name] = totals[name] + value.mean((2, 3)).sum(0) / (len(places) * len(images))
    return relative(totals)


def taylor(model, images, labels, batch: int = 32) -> Scores:
    """|first-order change of the loss when the channel is masked|, |sum of p dL/dp over its gates|, mean over batches
    of `batch` images (arXiv 1906.10771 in its batch-norm form, without the square, so in units of the loss)."""
    gates = {g.name: removal.gates(model, g) for g in model.groups()}
    totals = dict.fromkeys(gates, 0.0)
    with evaluating(model), torch.enable_grad():
        for x, y in zip(images.split(batch), labels.split(batch)):
            grads = iter(torch.autograd.grad(cross_entropy(model(x), y), [p for ps in gates.values() for p in ps]))
            for name, ps in gates.items():
                change = sum((p.detach() * next(grads)).reshape(len(p), -1).sum(1) for p in ps)
                totals[name] = totals[name] + change.abs() * (len(x) / len(images))
    return totals


@torch.no_grad()
def loss_increase(model, images, labels, batch: int = 128) -> Scores:
    """Rise of the mean cross-entropy (below 0: a fall) with the channel masked and with it all that `removal.close`
    cuts along: our stand-in for the follow-up paper's criterion (arXiv 2011.02389, known by its abstract).

    The units before the mask replay what they gave unmasked. Cost in forward passes of all images: about 420 for the
    1,120 channels of ResNet-56, 1,100 for the 4,224 of VGG16. May run under the caller's autocast, whose cache of cast
    weights is kept off, since masks change weights in place.
    """
    kind = images.device.type
    low = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)
    if hasattr(model, "convs"):  # the net as a chain of units: all that one reads is what the one before it gave
        units = list(zip(model.convs, model.norms))
    else:
        units = [(model.conv1, model.bn1), *((block,) for stage in model.stages for block in getattr(model, stage))]
    groups, full = {g.name: g for g in model.groups()}, removal.full_keep(model)
    place = {part: n for n, unit in enumerate(units) for m in unit for part in m.modules()}
    whole = {p: p.clone() for g in groups.values() for p in removal.gates(model, g)}
    jobs = []  # (group, channel, units before the mask, [(parameter, its mask)])
    for name in full:
        for i in range(groups[name].size):
            alone = torch.arange(groups[name].size) != i
            closed = removal.close(model, full | {name: alone})
            cut = [(groups[other], kept) for other, kept in closed.items() if not kept.all()]
            cut = cut or [(groups[name], alone)]  # the last channel of a layer cannot go, but it can be masked
            masks = [(p, kept.to(p).view(-1, *[1] * (p.dim() - 1))) for g, kept in cut for p in removal.gates(model, g)]
            jobs.append((name, i, min(place[model.get_submodule(w)] for g, _ in cut for w in g.writers), masks))

    def replay(count: int) -> None:
        for n, m in ((n, m) for n, unit in enumerate(units) for m in unit):
            m.__dict__.pop("forward", None)  # the class's own method is found again
            if n < count:
                m.forward = lambda x, m=m: recorded[m]

    totals = {name: torch.zeros(len(kept), dtype=torch.float64, device=images.device) for name, kept in full.items()}
    with evaluating(model), low:
        try:
            for x, y in zip(images.split(batch), labels.split(batch)):
                replay(0)
                with outputs(m for unit in units for m in unit) as recorded:
                    base, replayed = cross_entropy(model(x), y, reduction="sum").double(), 0
                for name, i, start, masks in jobs:
                    if start != replayed:
                        replay(start)
                        replayed = start
                    for p, mask in masks:
                        p.mul_(mask)
                    totals[name][i] += cross_entropy(model(x), y, reduction="sum") - base
                    for p, _ in masks:
                        p.copy_(whole[p])
        finally:  # also after an error or an interrupt
            replay(0)
            for p, value in whole.items():
                p.copy_(value)
    return {name: (total / len(images)).float() for name, total in totals.items()}


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[removal.Keep], float]:
    """A function from a keep to the mean cross-entropy of the net cut to it, on normalised images."""

    @torch.no_grad()
    def loss(keep: removal.Keep) -> float:
        net, parts = removal.shrink(model, keep).eval(), zip(images.split(256), labels.split(256))
        return float(sum(cross_entropy(net(x), y, reduction="sum").double() for x, y in parts) / len(images))

    return loss


CRITERIA = {
    "l1_norm": l1_norm, "l2_norm": l2_norm, "bn_scale": bn_scale, "geometric_median": geometric_median,
    "feature_group": feature_group, "flow": flow, "loss_increase": loss_increase, "taylor": taylor, "random": random,
    **{name: partial(group_term, name=name) for name in FORMS if name != "l1"},
}  # fmt: skip


def scores(
    name: str, model: nn.Module, images: Tensor | None = None, labels: Tensor | None = None, seed: int = 0,
    grouping: str = "feature",
) -> Scores:  # fmt: skip
    """Group name -> float tensor (size,): how much each channel matters by the criterion `name` of `CRITERIA`. `images`
    (normalised, (N, C, H, W)) and `labels` are for the data-driven ones, `seed` for "random", `grouping` for those of
    `group_term`. ValueError: an unknown name or grouping, missing images, a net that the criterion does not fit."""
    choose("pruning.score", name, CRITERIA)
    if name in FORMS:
        return CRITERIA[name](model, grouping=grouping)
    if name == "random":
        return random(model, seed)
    if name not in ("flow", "loss_increase", "taylor"):
        return CRITERIA[name](model)
    if images is None or labels is None:
        raise ValueError(f"images is None; allowed with score {name!r}: normalised images with their labels.")
    return CRITERIA[name](model, images, labels)
