"""FFR's family of feature penalties: the length and the curvature of the path of a sample's features through the net.

With features x_1 .. x_L, steps d_l = x_{l+1} - x_l and bends c_l = x_{l+1} - 2 x_l + x_{l-1} = d_l - d_{l-1}, the penalty
is `length * sum_l |d_l| + curvature * sum_l |c_l|`, averaged over the batch and summed over l. The papers' exact equation
is not public; this is our definition, with its open choices as options. All sums are taken in float32 or better.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ffrlib.spec import choose, require

NORMS = ("l1", "l2", "squared_l2")
KINDS = ("second_difference", "angle")
REDUCTIONS = ("mean", "sum")
TRANSITIONS = ("skip", "pool_pad", "shortcut")


# -- which features follow each other ----------------------------------------------------------------------------------
def pool_pad(x: Tensor, shape) -> Tensor:
    """Average-pool (B, C, H, W) to the maps of `shape`, then pad channels with zeros, half of them on each side."""
    if x.shape[2:] != shape[2:]:
        x = F.avg_pool2d(x, (x.shape[2] // shape[2], x.shape[3] // shape[3]))
    extra = shape[1] - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2)) if extra else x


def _can_pool_pad(shape, to) -> bool:
    pooled = all(a % b == 0 for a, b in zip(shape[2:], to[2:], strict=True))
    return len(shape) == len(to) == 4 and pooled and shape[1] <= to[1]


def _runs(features, transition: str, shortcuts) -> list[tuple[int, int, int]]:
    """(lead, start, stop): features start .. stop - 1 have one shape; the `lead` (0 to 2) before can be brought to it."""
    choose("transition", transition, TRANSITIONS)
    if transition == "shortcut":
        ok = shortcuts is not None and len(shortcuts) == len(features) - 1 and any(s is not None for s in shortcuts)
        require(ok, "shortcuts", shortcuts, "the L - 1 shortcuts of a net that has some, with transition 'shortcut'")
    shapes = [f.shape for f in features]
    starts = [i for i in range(len(shapes)) if i == 0 or shapes[i] != shapes[i - 1]]
    runs = []
    for start, stop in zip(starts, [*starts[1:], len(shapes)], strict=True):
        lead = 0
        while transition != "skip" and lead < min(2, start):
            i = start - lead - 1
            if transition == "pool_pad" and not _can_pool_pad(shapes[i], shapes[start]):
                break
            if transition == "shortcut" and shortcuts[i] is None and shapes[i] != shapes[i + 1]:
                break
            lead += 1
        runs.append((lead, start, stop))
    return runs


def _paths(features, transition: str = "skip", shortcuts=None) -> list[tuple[int, list[Tensor]]]:
    """Paths of features of one shape, each with how many of its first steps (0 or 1) belong to triples alone.

    A run of equal shapes is led by the (at most two) features before it, brought to its shape. The step between those
    two is needed for the first bend; as a pair it is counted at its own shape.
    """
    paths = []
    for lead, start, stop in _runs(features, transition, shortcuts):
        path, shape = list(features[start:stop]), features[start].shape
        for i in range(start - 1, start - 1 - lead, -1):
            x = features[i]
            if transition == "pool_pad":
                x = pool_pad(x, shape)
            else:
                for shortcut in shortcuts[i:start]:
                    x = x if shortcut is None else shortcut(x)
                require(
                    x.shape == shape, f"the shape that shortcuts bring feature {i} to", tuple(x.shape), tuple(shape)
                )
            path.insert(0, x)
        paths.append((max(0, lead - 1), path))
    return paths


def flow_counts(features, transition: str = "skip", shortcuts=None) -> tuple[int, int]:
    """How many pairs (length terms) and triples (curvature terms) `flow_penalty` finds."""
    sizes = [(lead, stop - start) for lead, start, stop in _runs(features, transition, shortcuts)]
    return sum(n - (lead == 0) for lead, n in sizes), sum(max(0, n + lead - 2) for lead, n in sizes)


# -- the penalties -----------------------------------------------------------------------------------------------------
def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _length(v: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B, ...) -> (B,) in float32 or better; its gradient at a zero vector is 0."""
    squares = v.to(_wide(v.dtype)).square().flatten(1).sum(1)
    moved = squares > 0
    return torch.where(moved, torch.where(moved, squares, 1.0).sqrt(), 0.0)


def _size(v: Tensor, norm: str) -> Tensor:
    """Sum over the batch of the norms of v (B, ...); overwrites v."""
    if norm == "l1":
        return v.abs_().sum(dtype=_wide(v.dtype))
    return _length(v).sum() if norm == "l2" else v.to(_wide(v.dtype)).square().sum()


def _slope(v: Tensor, norm: str, scale: Tensor) -> Tensor:
    """The gradient of scale * _size(v, norm) with respect to v; 0 where a norm has a kink at zero."""
    if norm == "squared_l2":
        return v * (2 * scale).to(v.dtype)
    if norm == "l2":
        size = _length(v)
        return v * torch.where(size > 0, scale / size, 0.0).to(v.dtype).reshape(-1, *[1] * (v.dim() - 1))
    scale = scale.to(v.dtype)
    if v.dtype != torch.bfloat16 or v.device.type != "cpu" or torch.is_grad_enabled():  # enabled: differentiated again
        return v.sign() * scale
    # A CPU takes signs of bfloat16 by way of float32. On the bits of |v| as integers the same costs a quarter: 0 stays
    # 0, all else becomes the bits of the scale; then v's sign goes on top.
    size = v.abs()
    size.view(torch.int16).clamp_(max=1).mul_(scale.view(torch.int16))
    return torch.copysign(size, v)


class _Path(torch.autograd.Function):
    """pair * sum |d| + triple * sum |c| along features of one shape (B, ...), the first `lead` steps without a pair term.

    Keeps the features alone, which the net's own backward pass keeps anyway, and computes differences and signs there a
    second time. With e_l the slope with respect to d_l (a bend adds to e_l what it takes from e_{l-1}), the gradient of
    x_l is e_{l-1} - e_l.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(norm, pair, triple, lead, *path):
        terms, last = [], None
        for i, (x, y) in enumerate(pairwise(path)):
            step = y - x
            if triple and last is not None:
                terms.append(triple * _size(step - last, norm))
            if pair and i > lead:
                terms.append(pair * _size(last, norm))
            last = step
        if pair:
            terms.append(pair * _size(last, norm))
        return sum(terms)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.settings = inputs[:4]
        ctx.save_for_backward(*inputs[4:])

    @staticmethod
    def backward(ctx, grad):
        norm, pair, triple, lead = ctx.settings
        slopes, last = [], None
        for i, (x, y) in enumerate(pairwise(ctx.saved_tensors)):
            step = y - x
            slopes.append(_slope(step, norm, grad * pair) if pair and i >= lead else torch.zeros_like(step))
            if triple and last is not None:
                bend = _slope(step - last, norm, grad * triple)
                slopes[-2].sub_(bend)
                slopes[-1].add_(bend)
            last = step
        first = -slopes[0]
        return (None, None, None, None, first, *(e.sub_(following) for e, following in pairwise(slopes)), slopes[-1])


class _Absolute(torch.autograd.Function):
    """The sum of mean |x| over several tensors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*features):
        return sum(x.abs().sum(dtype=_wide(x.dtype)) / x.numel() for x in features)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return tuple(_slope(x, "l1", grad / x.numel()) for x in ctx.saved_tensors)


def _unit(step: Tensor) -> tuple[Tensor, Tensor]:
    """Steps (B, ...) over their lengths as (B, n), and which lengths are above 0; a zero step stays zero."""
    size = _length(step)
    return step.to(size.dtype).flatten(1) / torch.where(size > 0, size, 1.0).unsqueeze(1), size > 0


def _angles(step: Tensor, following: Tensor) -> Tensor:
    """Turning angle of each sample in radians, (B,): 2 atan2(|u - v|, |u + v|) of the unit steps; 0 at a zero step.

    Value and gradient are 0 at a zero step and finite on a straight or reversed flow, where arccos gives NaN.
    """
    (u, moved), (v, moved_on) = _unit(step), _unit(following)
    turns = moved & moved_on
    return torch.where(turns, 2 * torch.atan2(_length(u - v), torch.where(turns, _length(u + v), 1.0)), 0.0)


def flow_penalty(
    features, length: float = 0.0, curvature: float = 0.0, norm: str = "l1", curvature_kind: str = "second_difference",
    reduction: str = "mean", transition: str = "skip", shortcuts=None,
) -> Tensor:  # fmt: skip
    """`length * sum_l |d_l| + curvature * sum_l |c_l|` of a list of features (B, C, H, W); a 0-dim tensor, float32 or better.

    - `norm`, of one sample's whole feature map of n elements: "l1", "l2", "squared_l2" (the square itself).
    - `reduction`: "mean" divides l1 and squared_l2 by n and l2 by sqrt(n); "sum" divides by nothing.
    - `curvature_kind`: "second_difference", or "angle", the sum of the turning angles in radians, never divided by n.
    - `transition`, where the shape changes: "skip" leaves the pair out; "pool_pad" brings the earlier features to the
      shape of the latest one (a pair whose maps do not divide or whose channels get fewer is left out); "shortcut" does
      so with the net's own `shortcuts` (`model.shortcuts(tap)`: L - 1 callables, None where there is none).
    ValueError: an unknown option, "shortcut" on a net without one, or a term with a strength above 0 that finds no pair
    or no triple (`flow_counts`).
    """
    choose("norm", norm, NORMS)
    choose("curvature_kind", curvature_kind, KINDS)
    choose("reduction", reduction, REDUCTIONS)
    counts = flow_counts(features, transition, shortcuts)
    for strength, term, what, count in zip((length, curvature), ("length", "curvature"), ("pairs", "triples"), counts):
        require(strength == 0 or count > 0, f"the number of {what} among {len(features)} features", count,
                f"1 or more with {term} > 0 (transition {transition!r} leaves the others out)")  # fmt: skip
    total = torch.zeros((), device=features[0].device)
    for lead, path in _paths(features, transition, shortcuts):
        n = path[0][0].numel() if reduction == "mean" else 1
        size = len(path[0]) * (n**0.5 if norm == "l2" else n)
        triple = curvature if curvature_kind == "second_difference" and len(path) > 2 else 0.0
        if triple or (length and len(path) > 1):
            total = total + _Path.apply(norm, length / size, triple / size, lead, *path)
        if curvature and curvature_kind == "angle":
            steps = [y - x for x, y in pairwise(path)]
            total = total + curvature * sum(_angles(a, b).mean() for a, b in pairwise(steps))
    return total


def activation_penalty(features) -> Tensor:
    """The control of FFR: the sum over features of mean |x| over batch and elements; a 0-dim tensor, float32 or better."""
    return _Absolute.apply(*features)


# -- metrics -----------------------------------------------------------------------------------------------------------
def turning_angle(features) -> Tensor:
    """Mean turning angle in radians over all triples of one shape and all samples (a zero step turns by 0).

    A 0-dim tensor, NaN where the features have no triple of one shape.
    """
    angles = []
    for _, path in _paths(features):
        angles += [_angles(a, b) for a, b in pairwise([y - x for x, y in pairwise(path)])]
    return torch.stack(angles).mean() if angles else torch.full((), torch.nan, device=features[0].device)


def straightness(features) -> Tensor:
    """Line-shape score, number of steps / |sum of unit steps|: 1 for a straight flow, more for a bent one (2102.09235).

    A score for each sample and each run of one shape with two steps or more; steps of length zero are left out, and a
    sample that never moves scores 1. Averaged over samples, and over runs in proportion to their steps. A 0-dim tensor:
    NaN where no run has two steps, infinite where a sample's unit steps lead back to their start.
    """
    total, count = torch.zeros((), device=features[0].device), 0
    for _, path in _paths(features):
        if len(path) > 2:
            units, moved = zip(*(_unit(y - x) for x, y in pairwise(path)), strict=True)
            moves = torch.stack(moved).sum(0)
            score = torch.where(moves > 0, moves / _length(sum(units)), 1.0)
            total, count = total + (len(path) - 1) * score.mean(), count + len(path) - 1
    return total / count if count else total + torch.nan
