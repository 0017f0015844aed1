"""How many channels go: budgets that turn scores into a keep, exact costs of a keep, masks of single weights."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ffrlib.models import counted_convolutions
from ffrlib.pruning import removal
from ffrlib.pruning.criteria import evaluating, outputs
from ffrlib.pruning.removal import Keep
from ffrlib.spec import choose, require


class OutOfReach(ValueError):
    """A share that cannot go, since each layer keeps one channel at least."""


_positions: dict[tuple, dict[str, int]] = {}  # (net's name, shortcut, image shape) -> layer -> output positions


def positions(model: nn.Module, image_shape) -> dict[str, int]:
    """Output positions (height x width; 1 for a linear layer) of each layer for one image of shape (C, H, W). They do
    not depend on the widths: one forward pass serves all pruned versions of a net."""
    key = (model.layout.name, model.layout.shortcut, tuple(image_shape))
    if key not in _positions:
        layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        with evaluating(model), torch.no_grad(), outputs(layers.values()) as found:
            model(next(model.parameters()).new_zeros(1, *image_shape))
        _positions[key] = {name: found[m][0, 0].numel() for name, m in layers.items()}
    return _positions[key]


def costs(model: nn.Module, image_shape, keep: Keep | None = None) -> tuple[int, int]:
    """(parameters, MACs of convolutions and linear layers for one image) of the net, or of the one that
    `shrink(model, keep)` gives, without building it."""
    written, read, parameters, macs = {}, {}, 0, 0  # layer -> (kept, all) channels that it writes, or reads
    for g in model.groups() if keep is not None else ():
        kept = (int(keep[g.name].sum()), g.size)
        written |= dict.fromkeys((*g.writers, *g.norms), kept)
        read |= dict.fromkeys(g.readers, kept)
    for name, layer in model.named_modules():
        (rows, all_rows), (columns, all_columns) = written.get(name, (1, 1)), read.get(name, (1, 1))
        for part, p in layer.named_parameters(recurse=False):
            size = p.numel() * rows // all_rows
            if part == "weight" and p.dim() > 1:
                size = size * columns // all_columns
                macs += size * positions(model, image_shape)[name]
            parameters += size
    return parameters, macs


SHARES = {  # budget -> what a share of it counts
    "channel_share": lambda model, image_shape, keep: sum(int(k.sum()) for k in keep.values()),
    "parameter_share": lambda *net: costs(*net)[0],
    "macs_share": lambda *net: costs(*net)[1],
}


def choose_keep(
    model: nn.Module, scores: Keep, budget: str, amount: float, scope: str = "global", groups: str = "all",
    image_shape: tuple[int, int, int] = (3, 32, 32), loss: Callable[[Keep], float] | None = None,
) -> tuple[Keep, int]:  # fmt: skip
    """(keep, held back): channels go in ascending order of score, and with them what `removal.close` adds.

    `budget` "threshold": all with a score below `amount`; "channel_share", "macs_share", "parameter_share": as few as
    remove at least the share `amount` of the whole net's, by exact counts of the small net (met from above);
    "loss_tolerance": as many as keep the jointly measured rise, loss(keep) - loss(all kept), below `amount`: twice as
    many at a time until it is too large, then bisection. `scope` "layer" (no meaning for "threshold"): a score is
    replaced by its rank within its group, so that each loses the same share. `held back`: channels that the budget
    would cut and the minimum of one a layer keeps, the one with the highest score. Raises ValueError for unknown names,
    NaN scores, and its kind OutOfReach for a share out of reach.
    """
    choose("pruning.budget", budget, ("threshold", *SHARES, "loss_tolerance"))
    choose("pruning.scope", scope, ("global", "layer"))
    choose("pruning.groups", groups, ("all", "inner"))
    full = removal.full_keep(model)
    values = {g.name: scores[g.name].detach().double().cpu() for g in model.groups()}
    every = list(values.values())
    require(not torch.cat(every).isnan().any(), "a score", "NaN", "numbers")
    ranked = [v.argsort(stable=True).argsort(stable=True) / len(v) for v in every] if scope == "layer" else every
    open_ = torch.cat([torch.full((g.size,), groups == "all" or g.kind == "inner") for g in model.groups()])
    order = torch.cat(ranked).argsort(stable=True)
    order = order[open_[order]]  # places in the concatenation of all groups

    def cut(n: int) -> tuple[Keep, int]:
        flat = torch.ones(len(open_), dtype=torch.bool)
        flat[order[:n]] = False
        asked = dict(zip(full, flat.split([len(v) for v in every])))
        keep = {k: v if v.any() else torch.arange(len(v)) == values[k].argmax() for k, v in asked.items()}
        closed = removal.close(model, keep)
        return closed, sum(int((closed[k] & ~asked[k]).sum()) for k in asked)

    if budget == "threshold":
        return cut(int((torch.cat(every)[open_] < amount).sum()))
    if budget == "loss_tolerance":
        if loss is None:
            raise ValueError("loss is None; allowed with budget 'loss_tolerance': a function from a keep to the loss.")
        limit = loss(full) + amount
        fits, over = 0, len(order) + 1  # a number of cuts below the limit, and one too large
        while over - fits > 1:
            probe = min(max(2 * fits, 1), (fits + over) // 2)
            fits, over = (probe, over) if loss(cut(probe)[0]) < limit else (fits, probe)
        return cut(fits)
    count = partial(SHARES[budget], model, image_shape)
    limit = count(full) * (1 - amount) * (1 + 1e-12)  # a share that is met exactly must not fail by rounding
    least = count(cut(len(order))[0])
    if least > limit:
        most = 1 - least / count(full)
        raise OutOfReach(f"pruning.amount is {amount!r}; allowed for {budget} here: at most {most:.4f}.")
    # By bisection, from all but one cut downwards: how many cuts can be spared before the limit is passed.
    spared = bisect_left(range(len(order))[::-1], True, key=lambda n: count(cut(n)[0]) > limit)
    return cut(len(order) - spared)


def magnitude_mask(model: nn.Module, share: float) -> dict[str, Tensor]:
    """Parameter name -> bool mask of a counted convolution's weight, False where it is removed: exactly the
    round(share * total) smallest |w| of all these weights together (ties in the net's order)."""
    require(0 <= share <= 1, "share", share, "0 to 1")
    weights = {f"{name}.weight": conv.weight.detach() for name, conv in counted_convolutions(model)}
    flat = torch.cat([w.abs().flatten() for w in weights.values()])
    kept = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    kept[flat.argsort(stable=True)[: round(share * len(flat))]] = False
    parts = kept.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts)}
