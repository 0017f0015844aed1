"""HGSR's family of weight penalties: ten criteria that are one formula with three exponents.

A convolution's weight W[o, i, h, w] is seen as O x I *kernels*. With s(kernel) = sum |W| or sum W^2, every criterion is

    R(W) = sum over groups of ( sum over the group's kernels of s(kernel) ** inner ) ** outer

and a group holds the kernels of one input channel ("feature") or of one output channel ("neuron"). The six hierarchical
criteria are those with inner != 1, each with outer 1/2 ("square-rooted") or 2 ("squared"). Sums everywhere: no means, no
square root of the group's size (the paper's public code has none).

The gradient is written out by hand, dR/dW = outer * G ** (outer - 1) * inner * s ** (inner - 1) * ds/dW, because autograd
gives NaN (0 * inf) where a kernel or a group is exactly zero. There we return 0: a subgradient of the convex criteria, and
for the concave ones (inner or outer < 1; infinite slope at zero) the convention that keeps a zero where it is.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffrlib.spec import choose, require


class Form(NamedTuple):
    """s(kernel) = sum |W|^norm; R = sum over groups (sum over kernels s^inner)^outer; degree norm * inner * outer."""

    norm: int
    inner: float
    outer: float


FORMS = {
    "l1": Form(1, 1, 1),
    "group_lasso": Form(2, 1, 0.5),
    "exclusive_sparsity": Form(1, 1, 2),
    "group_l12": Form(1, 1, 0.5),
    "hierarchical_square_rooted_group_lasso": Form(2, 0.5, 0.5),
    "hierarchical_squared_group_lasso": Form(2, 0.5, 2),
    "hierarchical_square_rooted_exclusive_sparsity": Form(1, 2, 0.5),
    "hierarchical_squared_exclusive_sparsity": Form(1, 2, 2),
    "hierarchical_square_rooted_group_l12": Form(1, 0.5, 0.5),
    "hierarchical_squared_group_l12": Form(1, 0.5, 2),
}
GROUPINGS = ("feature", "neuron")


def _power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent of non-negative values, with 0 in place of infinity where x is 0 and the exponent negative."""
    if exponent == 1:
        return x
    return x.pow(exponent) if exponent > 0 else torch.where(x > 0, x.pow(exponent), 0.0)


class _Penalty(torch.autograd.Function):
    """Sum of one criterion over several weights of shape (out, in, ...), with its closed-form gradient.

    One node for all layers; it keeps only what has one number a kernel or a group. The sums are written abs().sum(),
    since torch.linalg.vector_norm over 3x3 kernels is ten times slower on a CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(form, axis, *weights):
        flat = [w.reshape(*w.shape[:2], -1) for w in weights]  # (out, in, kh * kw), a view in either memory format
        kernels = [(w.abs() if form.norm == 1 else w.square()).sum(2) for w in flat]
        groups = torch.cat([_power(s, form.inner).sum(axis) for s in kernels])
        return (_power(groups, form.outer).sum(), groups, *kernels)

    @staticmethod
    def setup_context(ctx, inputs, output):
        form, axis, *weights = inputs
        ctx.form, ctx.axis = form, axis
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:], *weights)

    @staticmethod
    def backward(ctx, grad, *_):
        form, axis, (groups, *rest) = ctx.form, ctx.axis, ctx.saved_tensors
        kernels, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        slopes = _power(groups, form.outer - 1) * (grad * form.outer * form.inner * form.norm)
        grads = []
        for w, s, slope in zip(weights, kernels, slopes.split([w.shape[1 - axis] for w in weights]), strict=True):
            slope = slope.unsqueeze(axis) * _power(s, form.inner - 1) if form.inner != 1 else slope.unsqueeze(axis)
            slope = slope.reshape(*slope.shape, *[1] * (w.dim() - 2))
            grads.append(w.sign().mul_(slope) if form.norm == 1 else w * slope)
        return (None, None, *grads)


def penalty(weights, name: str, grouping: str = "feature") -> Tensor:
    """The sum of criterion `name` over a list of weights, each (out, in, kh, kw) or (out, in); a 0-dim tensor.

    For code that holds the weights themselves (stacked models under torch.func.vmap, say). Raises ValueError for an
    unknown name or grouping, an empty list, or a weight that is neither 2-D nor 4-D.
    """
    choose("the criterion", name, FORMS)
    choose("grouping", grouping, GROUPINGS)
    require(len(weights) > 0, "the number of weights to penalise", 0, "1 or more")
    for weight in weights:
        require(weight.dim() in (2, 4), "the shape of a weight", tuple(weight.shape), "(out, in, kh, kw) or (out, in)")
    return _Penalty.apply(FORMS[name], GROUPINGS.index(grouping), *weights)[0]


def _criterion(weight: Tensor, grouping: str = "feature", *, name: str) -> Tensor:
    return penalty([weight], name, grouping)


CRITERIA = {name: partial(_criterion, name=name) for name in FORMS}
l1, group_lasso, exclusive_sparsity, group_l12 = (CRITERIA[name] for name in list(FORMS)[:4])


def penalised_weights(model: nn.Module, name: str, include_linear: bool = False) -> list[Tensor]:
    """The weights that penalty `name` acts on: those of the counted convolutions (the first included, 1x1 shortcut
    projections left out), with `include_linear` the linear layers' too; for "network_slimming" the batch norms' scales.
    """
    from ffrlib import models

    if name == "network_slimming":
        norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine)
        return [m.weight for m in norms]
    weights = [conv.weight for _, conv in models.counted_convolutions(model)]
    if include_linear:
        weights += [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return weights


def weight_penalty(
    model: nn.Module,
    name: str,
    strength: float,
    grouping: str = "feature",
    mix: float = 1.0,
    second: str = "l1",
    include_linear: bool = False,
) -> Tensor:
    """`strength * (mix * name + (1 - mix) * second)`, summed over the layers that HGSR counts; a 0-dim tensor."""

    def total(which: str) -> Tensor:
        weights = penalised_weights(model, which, include_linear)
        if which == "network_slimming":
            require(len(weights) > 0, "the number of batch-norm scales", 0, "1 or more for network_slimming")
            return sum(w.abs().sum() for w in weights)
        return penalty(weights, which, grouping)

    choose("the penalty", name, ("network_slimming", *FORMS))
    choose("second", second, FORMS)
    choose("grouping", grouping, GROUPINGS)
    require(0 <= mix <= 1, "mix", mix, "0 to 1")
    if mix == 1:
        return strength * total(name)
    if mix == 0:
        return strength * total(second)
    return strength * (mix * total(name) + (1 - mix) * total(second))
