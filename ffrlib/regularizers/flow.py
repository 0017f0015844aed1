"""FFR's family of feature penalties: the length and the curvature of the path of a sample's features through the net.

With features x_1 .. x_L, steps d_l = x_{l+1} - x_l and bends c_l = x_{l+1} - 2 x_l + x_{l-1}, the penalty is
`length * sum_l |d_l| + curvature * sum_l |c_l|`, averaged over the batch and summed over l. The paper's exact equation is
not public; this is our definition, with its open choices as options. bf16 features are summed in float32.
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


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _lengths(step: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B, ...) -> (B,); its gradient is 0 at 0."""
    return torch.linalg.vector_norm(_wide(step).flatten(1), dim=1)


def pool_pad(x: Tensor, shape) -> Tensor:
    """Average-pool (B, C, H, W) to the maps of `shape`, then pad channels with zeros, half of them on each side."""
    if x.shape[2:] != shape[2:]:
        x = F.avg_pool2d(x, (x.shape[2] // shape[2], x.shape[3] // shape[3]))
    extra = shape[1] - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2)) if extra else x


def _can_pool_pad(shape, to) -> bool:
    pooled = all(a >= b and a % b == 0 for a, b in zip(shape[2:], to[2:], strict=True))
    return len(shape) == len(to) == 4 and pooled and shape[1] <= to[1]


def _runs(features, transition: str, shortcuts) -> list[tuple[int, int, int]]:
    """(lead, start, stop): features start..stop-1 have one shape; the `lead` (0 to 2) before them can be brought to it."""
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
            if transition == "pool_pad":
                possible = _can_pool_pad(shapes[i], shapes[start])
            else:
                possible = shortcuts[i] is not None or shapes[i] == shapes[i + 1]
            if not possible:
                break
            lead += 1
        runs.append((lead, start, stop))
    return runs


def _paths(features, transition: str, shortcuts) -> list[tuple[bool, list[Tensor]]]:
    """Paths of features of one shape, each with whether its first step belongs to triples alone.

    A run of equal shapes is led by the (at most two) features before it, brought to its shape. The step between those two
    is needed for the first bend, but as a pair it is counted at the earlier shape.
    """
    paths = []
    for lead, start, stop in _runs(features, transition, shortcuts):
        path = list(features[start:stop])
        for i in range(start - 1, start - 1 - lead, -1):
            x, shape = features[i], path[0].shape
            if transition == "pool_pad":
                x = pool_pad(x, shape)
            else:
                for j in range(i, start):
                    x = x if shortcuts[j] is None else shortcuts[j](x)
                require(x.shape == shape, f"the shape of shortcut {i}'s result", tuple(x.shape), f"{tuple(shape)}")
            path.insert(0, x)
        paths.append((lead == 2, path))
    return paths


def flow_counts(features, transition: str = "skip", shortcuts=None) -> tuple[int, int]:
    """How many pairs (length terms) and triples (curvature terms) `flow_penalty` finds."""
    runs = _runs(features, transition, shortcuts)
    sizes = [(lead, stop - start) for lead, start, stop in runs]
    return sum(n - (lead == 0) for lead, n in sizes), sum(max(0, n + lead - 2) for lead, n in sizes)


def _term(vector: Tensor, norm: str, reduction: str) -> Tensor:
    """Norm of a (B, ...) tensor's samples, averaged over the batch."""
    n = vector[0].numel() if reduction == "mean" else 1
    vector = _wide(vector)
    if norm == "l1":
        return vector.abs().sum() / (len(vector) * n)
    if norm == "squared_l2":
        return vector.square().sum() / (len(vector) * n)
    return _lengths(vector).sum() / (len(vector) * n**0.5)


def _unit(step: Tensor) -> tuple[Tensor, Tensor]:
    """Steps (B, ...) over their lengths as (B, n), and which lengths are above 0; a zero step stays zero."""
    step = _wide(step).flatten(1)
    size = torch.linalg.vector_norm(step, dim=1, keepdim=True)
    moved = size > 0
    return step / torch.where(moved, size, 1.0), moved.squeeze(1)


def _angles(step: Tensor, following: Tensor) -> Tensor:
    """Turning angle of each sample in radians, (B,): 2 atan2(|u - v|, |u + v|) of the unit steps; 0 at a zero step.

    Finite where arccos is not: its value and gradient are 0 for a zero step, and finite for a straight or reversed flow.
    """
    (u, moved), (v, moved_on) = _unit(step), _unit(following)
    turns = moved & moved_on
    across, along = torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1)
    return torch.where(turns, 2 * torch.atan2(across, torch.where(turns, along, 1.0)), 0.0)


def flow_penalty(
    features,
    length: float = 0.0,
    curvature: float = 0.0,
    norm: str = "l1",
    curvature_kind: str = "second_difference",
    reduction: str = "mean",
    transition: str = "skip",
    shortcuts=None,
) -> Tensor:
    """`length * sum_l |d_l| + curvature * sum_l |c_l|` of a list of features (B, C, H, W); a 0-dim float32 tensor.

    `norm` is of a sample's whole feature map of n elements; reduction "mean" divides l1 and squared_l2 by n, l2 by sqrt(n).
    curvature_kind "angle" sums turning angles in radians (never divided). Where shapes change, transition "skip" leaves the
    pair out, "pool_pad" average-pools the earlier features and zero-pads their channels (left out where the maps grow or
    do not divide, or the channels get fewer), "shortcut" applies the net's own `shortcuts` (see `models`).
    Raises ValueError for an unknown option, a net without shortcuts under "shortcut", and a term with a strength above 0
    that finds no pair or no triple (`flow_counts`).
    """
    choose("norm", norm, NORMS)
    choose("curvature_kind", curvature_kind, KINDS)
    choose("reduction", reduction, REDUCTIONS)
    pairs, triples = flow_counts(features, transition, shortcuts)
    require(length == 0 or pairs > 0, "the number of pairs of features", pairs,
            f"1 or more with length > 0 (transition {transition!r}, {len(features)} features)")  # fmt: skip
    require(curvature == 0 or triples > 0, "the number of triples of features", triples,
            f"1 or more with curvature > 0 (transition {transition!r}, {len(features)} features)")  # fmt: skip
    total = torch.zeros((), device=features[0].device)
    for lead, path in _paths(features, transition, shortcuts):
        steps = [b - a for a, b in pairwise(path)]
        if length:
            total = total + length * sum(_term(d, norm, reduction) for d in steps[lead:])
        if curvature and curvature_kind == "angle":
            total = total + curvature * sum(_angles(a, b).mean() for a, b in pairwise(steps))
        elif curvature:
            total = total + curvature * sum(_term(b - a, norm, reduction) for a, b in pairwise(steps))
    return total


def activation_penalty(features) -> Tensor:
    """The control of FFR: the sum over features of mean |x| (over batch and elements); a 0-dim float32 tensor."""
    return sum(_wide(x).abs().mean() for x in features)


def turning_angle(features) -> Tensor:
    """Mean turning angle in radians over all triples of one shape and all samples (a zero step turns by 0).

    A 0-dim tensor, NaN where the features have no triple of one shape.
    """
    angles = []
    for _, path in _paths(features, "skip", None):
        steps = [b - a for a, b in pairwise(path)]
        angles += [_angles(a, b) for a, b in pairwise(steps)]
    return torch.stack(angles).mean() if angles else torch.full((), torch.nan, device=features[0].device)


def straightness(features) -> Tensor:
    """Line-shape score: number of steps / |sum of unit steps|, 1 for a straight flow and more for a bent one.

    After Gai and Zhang (2102.09235). One score a run of equal shapes with at least two steps and a sample, steps of length
    zero left out (a sample that never moves scores 1); averaged over samples, and over runs in proportion to their steps.
    A 0-dim tensor: NaN where no run has two steps, infinite where some sample comes back to its start in unit steps.
    """
    total, weight = torch.zeros((), device=features[0].device), 0
    for _, path in _paths(features, "skip", None):
        if len(path) < 3:
            continue
        units = [_unit(b - a) for a, b in pairwise(path)]
        moved = sum(m.float() for _, m in units)
        reach = torch.linalg.vector_norm(sum(u for u, _ in units), dim=1)
        score = torch.where(moved > 0, moved / torch.where(moved > 0, reach, 1.0), 1.0)
        total, weight = total + (len(path) - 1) * score.mean(), weight + len(path) - 1
    return total / weight if weight else total + torch.nan
