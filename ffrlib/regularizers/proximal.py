"""Proximal steps in closed form: the updates that give exact zeros (proofs in docs/derivations.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ffrlib.regularizers.weight import GROUPINGS, penalised_weights
from ffrlib.spec import choose, require


def shrink_l1(weight: Tensor, threshold: float, grouping: str = "feature") -> Tensor:
    """argmin_x |x - weight|^2 / 2 + threshold * sum |x|: soft thresholding."""
    return weight.sign() * (weight.abs() - threshold).clamp_min(0)


def shrink_group_lasso(weight: Tensor, threshold: float, grouping: str = "feature") -> Tensor:
    """argmin_x |x - weight|^2 / 2 + threshold * sum over groups |x_g|_2: each group is shortened, or zeroed."""
    axes = [d for d in range(weight.dim()) if d != 1 - GROUPINGS.index(grouping)]
    norm = torch.linalg.vector_norm(weight, 2, axes, keepdim=True)
    return weight * torch.where(norm > threshold, 1 - threshold / norm, 0.0)


def shrink_exclusive_sparsity(weight: Tensor, threshold: float, grouping: str = "feature") -> Tensor:
    """argmin_x |x - weight|^2 / 2 + threshold * sum over groups (sum |x_g|)^2: soft thresholding, a level a group.

    With the group's |w| sorted downwards and S_k the sum of its k largest, the level is max_k 2 t S_k / (1 + 2 t k).
    """
    axis = 1 - GROUPINGS.index(grouping)
    rows = weight.movedim(axis, 0).flatten(1)
    k = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    sums = rows.abs().sort(dim=1, descending=True).values.cumsum(1)
    level = (2 * threshold * sums / (1 + 2 * threshold * k)).amax(1)
    level = level.reshape([-1 if d == axis else 1 for d in range(weight.dim())])
    return weight.sign() * (weight.abs() - level).clamp_min(0)


STEPS = {"l1": shrink_l1, "group_lasso": shrink_group_lasso, "exclusive_sparsity": shrink_exclusive_sparsity}


@torch.no_grad()
def step_(
    model: nn.Module,
    name: str,
    threshold: float | Tensor,
    grouping: str = "feature",
    mix: float = 1.0,
    second: str = "l1",
    include_linear: bool = False,
) -> None:
    """Replace each counted weight W by argmin_X |X - W|^2 / 2 + threshold * (mix * name(X) + (1 - mix) * second(X)).

    In place, after an optimiser's step; `threshold` is a number or a 0-dim tensor on the weights' device. Closed forms exist for l1, group_lasso, exclusive_sparsity and a mixture of l1
    with one of the others (sparse group lasso), where soft thresholding goes first; anything else raises ValueError.
    """
    choose("the proximal step's criterion", name, STEPS)
    choose("grouping", grouping, GROUPINGS)
    if not isinstance(threshold, Tensor):  # asking a tensor would synchronise with the device
        require(threshold >= 0, "threshold", threshold, "0 or more")
    require(0 <= mix <= 1, "mix", mix, "0 to 1")
    shares = {which: 0.0 for which in STEPS}  # l1 comes first, as the closed form of a mixture needs it
    shares[name] += mix
    if mix < 1:
        choose("the proximal step's second criterion", second, STEPS)
        shares[second] += 1 - mix
    require(0 in (shares["group_lasso"], shares["exclusive_sparsity"]), "the proximal mixture", (name, second),
            "l1 with one of group_lasso, exclusive_sparsity")  # fmt: skip
    for weight in penalised_weights(model, name, include_linear):
        new = weight
        for which, share in shares.items():
            if share > 0:
                new = STEPS[which](new, threshold * share, grouping)
        weight.copy_(new)
