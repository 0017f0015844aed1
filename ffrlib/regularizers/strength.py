"""Strengths that are comparable between criteria: an equal initial push."""

import torch
from torch import nn

from ffrlib.regularizers.weight import penalised_weights, weight_penalty
from ffrlib.spec import require


def mean_gradient(
    model: nn.Module, name: str, grouping: str = "feature", mix: float = 1.0, second: str = "l1"
) -> float:
    """Mean |dR/dw| at strength 1 over all weights that HGSR counts, one mean over all layers; synchronises."""
    grads = torch.autograd.grad(weight_penalty(model, name, 1.0, grouping, mix, second), penalised_weights(model, name))
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
