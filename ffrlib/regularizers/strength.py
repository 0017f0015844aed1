"""Strengths that are comparable between criteria: equal initial push."""

from __future__ import annotations

import torch
from torch import nn

from ffrlib.regularizers.weight import FORMS, penalised_weights, penalty
from ffrlib.spec import choose, require


def mean_gradient(
    model: nn.Module, name: str, grouping: str = "feature", mix: float = 1.0, second: str = "l1"
) -> float:
    """Mean |dR/dw| at strength 1 over all weights that HGSR counts (one mean over all layers together)."""
    weights = [w.detach().requires_grad_() for w in penalised_weights(model, name)]
    value = penalty(weights, name, grouping) * mix
    if mix < 1:
        value = value + penalty(weights, second, grouping) * (1 - mix)
    grads = torch.autograd.grad(value, weights)
    return float(sum(g.abs().sum(dtype=torch.float64) for g in grads)) / sum(g.numel() for g in grads)


def matched_strength(
    model: nn.Module, name: str, l1_strength: float, grouping: str = "feature", mix: float = 1.0, second: str = "l1"
) -> float:
    """The strength at which criterion `name` pushes the model's weights, as they are now, as hard as L1 at `l1_strength`.

    "As hard" means an equal mean absolute gradient over the counted convolutions' weights. It is a centre for a grid of
    strengths and no more: the criteria's degrees of homogeneity differ (1/4 to 4), so away from the initial weights their
    pushes part. Synchronises with the device. Raises ValueError for an unknown name or for weights that are all zero.
    """
    choose("the criterion", name, FORMS)
    require(l1_strength >= 0, "l1_strength", l1_strength, "0 or more")
    push = mean_gradient(model, name, grouping, mix, second)
    require(push > 0, f"the mean gradient of {name}", push, "above 0 (weights that are not all zero)")
    return l1_strength * mean_gradient(model, "l1") / push
