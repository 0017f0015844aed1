"""Proximal steps in closed form, which give exact zeros: prox_t(W) = argmin_X |X - W|^2 / 2 + t R(X).

Proofs in docs/derivations.md. Each takes a weight (out, in, ...) and a threshold, a number or a 0-dim tensor.
"""

import torch
from torch import Tensor, nn

from ffrlib.regularizers.weight import GROUPINGS, as_dense, penalised
from ffrlib.spec import choose, require


def shrink_l1(weight: Tensor, threshold, grouping: str = "feature") -> Tensor:
    """Of R = sum |x|: soft thresholding."""
    return weight.sign() * (weight.abs() - threshold).clamp_min(0)


def shrink_group_lasso(weight: Tensor, threshold, grouping: str = "feature") -> Tensor:
    """Of R = sum over groups of |x_g|_2: each group is shortened by the threshold, or zeroed."""
    axes = [d for d in range(weight.dim()) if d != 1 - GROUPINGS.index(grouping)]
    size = weight.square().sum(axes, keepdim=True).sqrt()
    return weight * torch.where(size > threshold, 1 - threshold / size, 0.0)


def shrink_exclusive_sparsity(weight: Tensor, threshold, grouping: str = "feature") -> Tensor:
    """Of R = sum over groups of (sum |x_g|)^2: soft thresholding at a level of each group's own.

    With S_k the sum of the k largest |w| of the group, the level is max over k of 2 t S_k / (1 + 2 t k).
    """
    axis = 1 - GROUPINGS.index(grouping)
    sums = weight.movedim(axis, 0).abs().flatten(1).sort(dim=1, descending=True).values.cumsum(1)
    k = torch.arange(1, sums.shape[1] + 1, device=sums.device, dtype=sums.dtype)
    level = (2 * threshold * sums / (1 + 2 * threshold * k)).amax(1).reshape(-1, *[1] * (weight.dim() - 1))
    return shrink_l1(weight, level.movedim(0, axis))


STEPS = {"l1": shrink_l1, "group_lasso": shrink_group_lasso, "exclusive_sparsity": shrink_exclusive_sparsity}


@torch.no_grad()
def step_(
    model: nn.Module, name: str, threshold: float | Tensor, grouping: str = "feature", mix: float = 1.0,
    second: str = "l1", include_linear: bool = False,
) -> None:  # fmt: skip
    """In place, after an optimiser's step: W <- prox of threshold * (mix * name + (1 - mix) * second), layer by layer.

    Closed forms: l1, group_lasso, exclusive_sparsity, and l1 mixed with either (soft thresholding first); ValueError
    for anything else. Subgradients of strength s move as far as threshold = learning rate * s / (1 - momentum).
    """
    choose("the proximal step's criterion", name, STEPS)
    choose("grouping", grouping, GROUPINGS)
    if not isinstance(threshold, Tensor):  # asking a tensor would synchronise with the device
        require(threshold >= 0, "threshold", threshold, "0 or more")
    require(0 <= mix <= 1, "mix", mix, "0 to 1")
    shares = dict.fromkeys(STEPS, 0.0)  # in this order: l1 first
    shares[name] += mix
    if mix < 1:
        choose("the proximal step's second criterion", second, STEPS)
        shares[second] += 1 - mix
    require(not (shares["group_lasso"] and shares["exclusive_sparsity"]), "the proximal mixture", (name, second),
            "l1 with group_lasso or with exclusive_sparsity")  # fmt: skip
    for module in penalised(model, name, include_linear):
        weight = as_dense(module, grouping)
        for which, share in shares.items():
            if share > 0:
                weight = STEPS[which](weight, threshold * share, grouping)
        if weight.shape != module.weight.shape:  # of a grouped convolution: back to its own layout
            weight = weight.unflatten(1, (module.groups, -1)).transpose(0, 1).flatten(0, 1)
        module.weight.copy_(weight)
