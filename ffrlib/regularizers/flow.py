"""FFR's family of feature penalties: the length and the curvature of the path of a sample's features through the net.

With features x_1 .. x_L, steps d_l = x_{l+1} - x_l and bends c_l = x_{l+1} - 2 x_l + x_{l-1} = d_l - d_{l-1}, the
penalty is `length * sum_l |d_l| + curvature * sum_l |c_l|`, averaged over the batch. The papers' exact equation is not
public: this is our definition, its open choices are options. All sums are taken in float32 or better.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ffrlib.spec import choose, require


def _brought(features, i: int, to: int, transition: str, shortcuts) -> Tensor | None:
    """Feature i brought to the shape of feature `to` > i, or None where the transition cannot do that."""
    x, shape = features[i], features[to].shape
    if transition == "shortcut":
        for shortcut in shortcuts[i:to]:
            x = x if shortcut is None else shortcut(x)
        return x if x.shape == shape else None
    if transition == "skip" or x.shape[2] % shape[2] or x.shape[3] % shape[3] or x.shape[1] > shape[1]:
        return None
    x = F.avg_pool2d(x, (x.shape[2] // shape[2], x.shape[3] // shape[3]))
    extra = shape[1] - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2))


def _paths(features, transition: str = "skip", shortcuts=None) -> tuple[list[tuple[int, list[Tensor]]], int, int]:
    """Paths of features of one shape, each with how many of its first steps (0 or 1) belong to triples alone; how many
    pairs and triples that makes.

    A run of equal shapes is led by the (at most two) features before it, brought to its shape. The step between those
    two is needed for the first bend; as a pair it is counted at its own shape.
    """
    require(
        not isinstance(features, Tensor), "features", "one tensor", "a list of them, one a layer, each (B, C, H, W)"
    )
    choose("transition", transition, ("skip", "pool_pad", "shortcut"))
    if transition == "shortcut":
        given = [s is not None for s in shortcuts or ()]
        fits = any(given) and len(given) == len(features) - 1
        require(fits, "shortcuts", shortcuts, "the L - 1 shortcuts of a net that has some, with transition 'shortcut'")
    starts = [i for i in range(len(features)) if i == 0 or features[i].shape != features[i - 1].shape]
    paths = []
    for start, stop in pairwise([*starts, len(features)]):
        path = list(features[start:stop])
        for i in range(start - 1, max(start - 3, -1), -1):
            x = _brought(features, i, start, transition, shortcuts)
            if x is None:
                break
            path.insert(0, x)
        paths.append((max(0, len(path) - (stop - start) - 1), path))
    pairs = sum(len(path) - 1 - lead for lead, path in paths)
    return paths, pairs, sum(max(0, len(path) - 2) for _, path in paths)


def flow_counts(features, transition: str = "skip", shortcuts=None) -> tuple[int, int]:
    """How many pairs (length terms) and triples (curvature terms) `flow_penalty` finds."""
    return _paths(features, transition, shortcuts)[1:]


def _wide(v: Tensor) -> torch.dtype:
    return torch.promote_types(v.dtype, torch.float32)


def _length(v: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B, ...) -> (B,); its gradient at a zero vector is 0."""
    squares = v.to(_wide(v)).square().flatten(1).sum(1)
    moved = squares > 0
    return torch.where(moved, torch.where(moved, squares, 1.0).sqrt(), 0.0)


def _size(v: Tensor, norm: str) -> Tensor:
    """Sum over the batch of the norms of v (B, ...); overwrites v."""
    if norm == "l1":
        return v.abs_().sum(dtype=_wide(v))
    return _length(v).sum() if norm == "l2" else v.to(_wide(v)).square().sum()


def _slope(v: Tensor, norm: str, scale: Tensor) -> Tensor:
    """The gradient of scale * _size(v, norm) with respect to v; 0 where a norm has a kink at zero."""
    if norm == "squared_l2":
        return v * (2 * scale).to(v.dtype)
    if norm == "l2":
        size = _length(v)
        return v * torch.where(size > 0, scale / size, 0.0).to(v.dtype).reshape(-1, *[1] * (v.dim() - 1))
    return v.sign() * scale.to(v.dtype)


def _differences(path, bends):
    """Along a path, each step d_l and the bend that follows it (None after the last), for the caller to overwrite."""
    step = path[1] - path[0]
    for x, y in pairwise(path[1:]):
        following = y - x
        yield step, following - step if bends else None
        step = following
    yield step, None


class _Path(torch.autograd.Function):
    """pair * sum |d| + triple * sum |c| along features of one shape; the first `lead` steps have no pair term.

    Keeps the features alone, which the net keeps anyway, and computes differences and signs a second time in backward.
    With e_l the slope with respect to d_l (a bend adds to the next e what it takes from this), the gradient of x_l
    is e_{l-1} - e_l.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(norm, pair, triple, lead, *path):
        terms = []
        for i, (step, bend) in enumerate(_differences(path, triple)):
            if pair and i >= lead:
                terms.append(pair * _size(step, norm))
            if bend is not None:
                terms.append(triple * _size(bend, norm))
        return sum(terms)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.settings = inputs[:4]
        ctx.save_for_backward(*inputs[4:])

    @staticmethod
    def backward(ctx, grad):
        norm, pair, triple, lead = ctx.settings
        slopes, push = [], None
        for i, (step, bend) in enumerate(_differences(ctx.saved_tensors, triple)):
            slope = _slope(step, norm, grad * pair) if pair and i >= lead else torch.zeros_like(step)
            slope = slope if push is None else slope.add_(push)
            if bend is not None:
                push = _slope(bend, norm, grad * triple)
                slope.sub_(push)
            slopes.append(slope)
        first = -slopes[0] if ctx.needs_input_grad[4] else None
        return (None, None, None, None, first, *(e.sub_(following) for e, following in pairwise(slopes)), slopes[-1])


def _units(path) -> list[Tensor]:
    """The unit steps along a path, each (B, n); a zero step stays zero."""
    steps = [(y - x, _length(y - x)) for x, y in pairwise(path)]
    return [d.to(size.dtype).flatten(1) / torch.where(size > 0, size, 1.0).unsqueeze(1) for d, size in steps]


def _angles(path) -> list[Tensor]:
    """Turning angles along a path in radians, each (B,): 2 atan2(|u - v|, |u + v|) of the unit steps u and v.

    Value and gradient are 0 at a zero step and finite on a straight or reversed flow, where arccos gives NaN.
    """
    angles = []
    for u, v in pairwise(_units(path)):
        turns = u.any(1) & v.any(1)
        angle = 2 * torch.atan2(_length(u - v), torch.where(turns, _length(u + v), 1.0))
        angles.append(torch.where(turns, angle, 0.0))
    return angles


def flow_penalty(
    features, length: float = 0.0, curvature: float = 0.0, norm: str = "l1", curvature_kind: str = "second_difference",
    reduction: str = "mean", transition: str = "skip", shortcuts=None,
) -> Tensor:  # fmt: skip
    """`length * sum_l |d_l| + curvature * sum_l |c_l|` of a list of features (B, C, H, W); a 0-dim tensor.

    - `norm`, of one sample's whole feature map of n elements: "l1", "l2", "squared_l2" (the square itself).
    - `reduction`: "mean" divides l1 and squared_l2 by n and l2 by sqrt(n); "sum" divides by nothing.
    - `curvature_kind`: "second_difference", or "angle", the sum of the turning angles in radians, never divided by n.
    - `transition`, where the shape changes: "skip" leaves the pair out; "pool_pad" average-pools the earlier features
      and pads their channels with zeros, half on each side; "shortcut" applies the net's own `shortcuts`
      (`model.shortcuts(tap)`: L - 1 callables or None). What cannot be brought to the latest shape is left out,
      without a word: ask `flow_counts` once what your net has.
    ValueError: an unknown option, "shortcut" on a net without one, or a term with a strength above 0 that finds no pair
    or no triple (`flow_counts`).
    """
    choose("norm", norm, ("l1", "l2", "squared_l2"))
    choose("curvature_kind", curvature_kind, ("second_difference", "angle"))
    choose("reduction", reduction, ("mean", "sum"))
    paths, pairs, triples = _paths(features, transition, shortcuts)
    needs = ("length needs pairs", length, pairs), ("curvature needs triples", curvature, triples)
    for term, strength, count in needs:
        require(strength == 0 or count > 0, f"the number found where {term} of features of one shape", count,
                f"1 or more (transition {transition!r}, {len(features)} features)")  # fmt: skip
    total = torch.zeros((), device=features[0].device)
    for lead, path in paths:
        n = path[0][0].numel() if reduction == "mean" else 1
        size = len(path[0]) * (n**0.5 if norm == "l2" else n)
        triple = curvature if curvature_kind == "second_difference" and len(path) > 2 else 0.0
        if triple or (length and len(path) > 1):
            total = total + _Path.apply(norm, length / size, triple / size, lead, *path)
        if curvature and curvature_kind == "angle":
            total = total + curvature * sum(angle.mean() for angle in _angles(path))
    return total


def activation_penalty(features) -> Tensor:
    """The control of FFR: the sum over features of mean |x| over batch and elements, as steps from zero; 0-dim."""
    return sum(_Path.apply("l1", 1 / x.numel(), 0.0, 0, x.new_zeros(()), x) for x in features)


def turning_angle(features) -> Tensor:
    """Mean turning angle, radians, over triples of one shape and samples (0 at a zero step); NaN without a triple."""
    angles = [angle for _, path in _paths(features)[0] for angle in _angles(path)]
    return torch.stack(angles).mean() if angles else torch.full((), torch.nan, device=features[0].device)


def straightness(features) -> Tensor:
    """Line-shape score (2102.09235), number of steps / |sum of unit steps|: 1 for a straight flow, more for a bent one.

    One score a sample and a run of one shape with two steps or more; zero steps are left out, a sample that never moves
    scores 1. Averaged over samples, and over runs in proportion to their steps. NaN where no run has two steps.
    """
    total, count = torch.zeros((), device=features[0].device), 0
    for units in (_units(path) for _, path in _paths(features)[0] if len(path) > 2):
        moves = torch.stack([u.any(1) for u in units]).sum(0)
        score = torch.where(moves > 0, moves / _length(sum(units)), 1.0)
        total, count = total + len(units) * score.mean(), count + len(units)
    return total / count if count else total + torch.nan
