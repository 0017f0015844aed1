"""HGSR's family of weight penalties: ten criteria that are one formula with three exponents.

A convolution's weight W[o, i, h, w] is O x I *kernels*. With s(kernel) = sum |W| or sum W^2, every criterion is

    R(W) = sum over groups of ( sum over the group's kernels of s(kernel) ** inner ) ** outer

where a group is an input channel ("feature") or an output channel ("neuron"). Hierarchical criteria have inner != 1 and
outer 1/2 ("square-rooted") or 2 ("squared"). Sums, no means, no factor for a group's size: as in the paper's code.
Plain autograd gives NaN (0 * inf) where a kernel or a group is exactly zero. Here the gradient is 0 there: a
subgradient of the convex criteria; for the others, whose slope is infinite, the convention that a zero stays a zero.
"""

import torch
from torch import Tensor, nn

from ffrlib import models
from ffrlib.spec import choose, require

# name: (norm of s, inner, outer); the degree of homogeneity is their product.
FORMS = {
    "l1": (1, 1, 1),
    "group_lasso": (2, 1, 1 / 2),
    "exclusive_sparsity": (1, 1, 2),
    "group_l12": (1, 1, 1 / 2),
    "hierarchical_square_rooted_group_lasso": (2, 1 / 2, 1 / 2),
    "hierarchical_squared_group_lasso": (2, 1 / 2, 2),
    "hierarchical_square_rooted_exclusive_sparsity": (1, 2, 1 / 2),
    "hierarchical_squared_exclusive_sparsity": (1, 2, 2),
    "hierarchical_square_rooted_group_l12": (1, 1 / 2, 1 / 2),
    "hierarchical_squared_group_l12": (1, 1 / 2, 2),
}
GROUPINGS = ("feature", "neuron")


def _power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent of non-negative values; its gradient at 0 is 0 for every exponent but 1."""
    if exponent >= 1:
        return x if exponent == 1 else x.pow(exponent)
    alive = x != 0  # not x > 0: NaN stays NaN
    return torch.where(alive, torch.where(alive, x, 1.0).pow(exponent), 0.0)


def penalty(weights, name: str, grouping: str = "feature") -> Tensor:
    """Criterion `name` summed over a list of weights, each (out, in, kh, kw) or (out, in); a 0-dim tensor.

    ValueError: an unknown name or grouping, an empty list, or a weight that is neither 2-D nor 4-D.
    """
    choose("the criterion", name, FORMS)
    choose("grouping", grouping, GROUPINGS)
    require(len(weights) > 0, "the number of weights to penalise", 0, "1 or more")
    (norm, inner, outer), sums = FORMS[name], []
    for w in weights:
        require(w.dim() in (2, 4), "the shape of a weight", tuple(w.shape), "(out, in, kh, kw) or (out, in)")
        flat = w.reshape(*w.shape[:2], -1)  # (out, in, kh * kw), a view in either memory format
        # Written as abs().sum(): torch.linalg.vector_norm over 3x3 kernels is ten times slower on a CPU.
        kernels = (flat.abs() if norm == 1 else flat.square()).sum(2)
        sums.append(_power(kernels, inner).sum(GROUPINGS.index(grouping)))
    return _power(torch.cat(sums), outer).sum()  # over the groups of all layers at once: fewer small operations


# The criteria one by one, each a function of a weight and a grouping.
CRITERIA = {name: lambda weight, grouping="feature", name=name: penalty([weight], name, grouping) for name in FORMS}


def penalised(model: nn.Module, name: str, include_linear: bool = False) -> list[nn.Module]:
    """The modules on whose weights penalty `name` acts: the counted convolutions (see `models.counted_convolutions`),
    with `include_linear` the linear layers too; for "network_slimming" all batch norms of images."""
    if name == "network_slimming":
        return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and include_linear]
    return [conv for _, conv in models.counted_convolutions(model)] + linear


def as_dense(module: nn.Module, grouping: str) -> Tensor:
    """A module's weight with one column an input channel, as "feature" wants it. Only a grouped convolution's changes:
    (out, in / groups, kh, kw) becomes (out / groups, in, kh, kw), its dense twin's weight without the zeros."""
    groups = getattr(module, "groups", 1)
    if groups == 1 or grouping == "neuron":
        return module.weight
    return module.weight.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)


def weight_penalty(
    model: nn.Module, name: str, strength: float, grouping: str = "feature", mix: float = 1.0, second: str = "l1",
    include_linear: bool = False,
) -> Tensor:  # fmt: skip
    """`strength * (mix * name + (1 - mix) * second)` over the weights of the modules of `penalised`; a 0-dim tensor.

    group_lasso mixed with l1 is sparse group lasso, with exclusive_sparsity CGES-like; "network_slimming" is the L1
    norm of the batch norms' scales. `model` may be any net of convolutions, grouped ones among them. ValueError: an
    unknown option, or nothing to penalise.
    """
    choose("the penalty", name, ("network_slimming", *FORMS))
    choose("second", second, FORMS)
    require(0 <= mix <= 1, "mix", mix, "0 to 1")
    if not isinstance(strength, Tensor):  # asking a tensor would synchronise with the device
        require(strength >= 0, "strength", strength, "0 or more")
    terms = []
    for which, share in ((name, mix), (second, 1 - mix)):
        if share > 0:
            weights = [as_dense(module, grouping) for module in penalised(model, which, include_linear)]
            kinds = "Conv2d (with include_linear also Linear; for network_slimming BatchNorm2d)"
            require(len(weights) > 0, f"the number of modules that {which} acts on", 0, f"1 or more, of {kinds}")
            if which == "network_slimming":  # a vector, seen as a linear layer with one output
                weights, which = [w.unsqueeze(0) for w in weights], "l1"
            terms.append(strength * share * penalty(weights, which, grouping))
    return sum(terms)


def mean_gradient(
    model: nn.Module, name: str, grouping: str = "feature", mix: float = 1.0, second: str = "l1"
) -> float:
    """Mean |dR/dw| at strength 1 over all weights that HGSR counts, one mean over all layers; synchronises."""
    weights = [module.weight for module in penalised(model, name)]
    grads = torch.autograd.grad(weight_penalty(model, name, 1.0, grouping, mix, second), weights)
    return float(sum(g.abs().sum(dtype=torch.float64) for g in grads)) / sum(g.numel() for g in grads)


def matched_strength(
    model: nn.Module, name: str, l1_strength: float, grouping: str = "feature", mix: float = 1.0, second: str = "l1"
) -> float:
    """The strength at which `name` pushes the model's weights, as they are now, as hard as L1 does at `l1_strength`.

    As hard: with the same mean absolute gradient over the counted convolutions' weights. It is the centre of a grid of
    strengths, no more: degrees of homogeneity differ (1/4 to 4), so the pushes part as the weights move. ValueError: an
    unknown criterion, or weights that feel no push (all zero).
    """
    push = mean_gradient(model, name, grouping, mix, second)
    require(push > 0, f"the mean gradient of {name}", push, "above 0")
    return l1_strength * mean_gradient(model, "l1") / push
