"""Flow penalties against their definition, on flows of known length and turning, at zeros, under transformations."""

import math
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ffrlib import models
from ffrlib.regularizers.flow import activation_penalty, flow_counts, flow_penalty, straightness, turning_angle

NORMS, REDUCTIONS = ("l1", "l2", "squared_l2"), ("mean", "sum")


def triples(features):
    return zip(features, features[1:], features[2:])


def term(vectors, norm, reduction):
    """One sample after the other, in plain sums."""
    total = 0.0
    for v in vectors:
        n = v.numel() if reduction == "mean" else 1
        size = {"l1": v.abs().sum() / n, "l2": v.square().sum().sqrt() / n**0.5, "squared_l2": v.square().sum() / n}
        total = total + size[norm]
    return total / len(vectors)


def by_definition(features, length, curvature, norm, reduction):
    """Transition "skip", second differences."""
    total = length * sum(term(y - x, norm, reduction) for x, y in pairwise(features) if x.shape == y.shape)
    bent = [z - 2 * y + x for x, y, z in triples(features) if x.shape == y.shape == z.shape]
    return total + curvature * sum(term(c, norm, reduction) for c in bent)


def some_features(seed, counts, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 4 * 2**s, 8 // 2**s, 8 // 2**s) for s in range(len(counts))]
    draw = [torch.randn(shape, generator=generator, dtype=dtype) for shape, k in zip(shapes, counts) for _ in range(k)]
    return [x.requires_grad_() for x in draw]


def gradients(value, inputs):
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True, retain_graph=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), counts=st.lists(st.integers(1, 5), min_size=1, max_size=3), batch=st.integers(1, 3),
    norm=st.sampled_from(NORMS), reduction=st.sampled_from(REDUCTIONS), length=st.sampled_from([0.0, 0.7]),
    curvature=st.sampled_from([0.0, 1.3]),
)  # fmt: skip
def test_value_and_gradient_follow_the_definition(seed, counts, batch, norm, reduction, length, curvature):
    features = some_features(seed, counts, batch)
    pairs, bends = sum(c - 1 for c in counts), sum(max(0, c - 2) for c in counts)
    assert flow_counts(features) == (pairs, bends)
    if (length and not pairs) or (curvature and not bends):
        with pytest.raises(ValueError, match="allowed: 1 or more"):
            flow_penalty(features, length, curvature, norm, reduction=reduction)
        return
    value = flow_penalty(features, length, curvature, norm, reduction=reduction)
    expected = torch.as_tensor(by_definition(features, length, curvature, norm, reduction))
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-10, atol=1e-12)
    if length or curvature:
        got, wanted = gradients(-2 * value, features), gradients(-2 * expected, features)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ("second_difference", "angle"))
@pytest.mark.parametrize("transition", ("skip", "pool_pad"))
@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck(norm, transition, kind):
    torch.manual_seed(3)
    shapes = [(2, 2, 2, 2)] * 3 + [(2, 4, 1, 1)] * 3
    features = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def f(*x):
        return flow_penalty(x, 0.7, 1.3, norm, kind, transition=transition)

    assert torch.autograd.gradcheck(f, features, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, features, fast_mode=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(2, 6))
def test_a_straight_equally_spaced_flow_has_no_curvature(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    start, step = torch.randn(2, 3, 3, 4, 4, generator=generator, dtype=torch.float64)
    step = (step * 8).round() / 8  # so that no difference is rounded
    start = (start * 8).round() / 8
    features = [start + k * step for k in range(steps + 1)]
    for norm, reduction in product(NORMS, REDUCTIONS):
        assert flow_penalty(features, 0.0, 1.0, norm, reduction=reduction) == 0
        value = flow_penalty(features, 1.0, 0.0, norm, reduction=reduction)
        torch.testing.assert_close(value, steps * term(step, norm, reduction), rtol=1e-12, atol=0)
    assert flow_penalty(features, 0.0, 1.0, curvature_kind="angle").item() == pytest.approx(0, abs=1e-6)
    assert straightness(features).item() == pytest.approx(1) and turning_angle(features).item() == pytest.approx(
        0, abs=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(
    angles=st.lists(st.floats(-3.1, 3.1), min_size=1, max_size=6),
    lengths=st.lists(st.floats(0.01, 100), min_size=7, max_size=7),
)
def test_a_polygon_gives_the_sum_of_its_turning_angles(angles, lengths):
    heading, at = 0.3, torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    features, steps = [at], []
    for turn, size in zip([0.0, *angles], lengths):
        heading += turn
        steps.append(torch.tensor([math.cos(heading), math.sin(heading)], dtype=torch.float64))
        features.append(features[-1] + size * steps[-1].reshape(1, 2, 1, 1))
    total = flow_penalty(features, 0.0, 1.0, curvature_kind="angle").item()
    assert total == pytest.approx(sum(map(abs, angles)), abs=1e-6)
    assert turning_angle(features).item() == pytest.approx(total / len(angles))
    reach = sum(steps).norm().item()
    assert straightness(features).item() == pytest.approx(len(steps) / reach, rel=1e-6)
    scaled = [100 * f for f in features]  # angles have no scale
    assert flow_penalty(scaled, 0.0, 1.0, curvature_kind="angle").item() == pytest.approx(total, abs=1e-6)


def test_identity_blocks_without_a_last_relu_give_the_residual_branch():
    torch.manual_seed(0)
    branches = [torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1)).double() for _ in range(3)]
    features, outputs = [torch.randn(2, 4, 6, 6, dtype=torch.float64)], []
    for branch in branches:
        outputs.append(branch(features[-1]))
        features.append(features[-1] + outputs[-1])
    for norm in NORMS:
        value = flow_penalty(features, 1.0, 0.0, norm)
        torch.testing.assert_close(value, sum(term(r, norm, "mean") for r in outputs))
    after = [F.relu(f) for f in features]  # after an add and ReLU a step is at most the branch, unit by unit
    first = F.relu(after[0] + outputs[0]) - after[0]
    assert (first.abs() <= outputs[0].abs() + 1e-15).all()


COUNTS = (
    ("vgg16", None, "post_activation", "skip", (8, 3)),
    ("vgg16", None, "pre_activation", "skip", (8, 3)),
    ("vgg16", None, "post_activation", "pool_pad", (12, 11)),
    ("resnet20", "A", "block_output", "skip", (7, 4)),
    ("resnet20", "A", "post_activation", "skip", (16, 13)),
    ("resnet20", "A", "block_output", "pool_pad", (9, 8)),
    ("resnet20", "A", "block_output", "shortcut", (9, 8)),
    ("resnet20", "B", "block_output", "shortcut", (9, 8)),
    ("resnet20", "A", "post_activation", "shortcut", (18, 17)),
    ("alexnet_small", None, "post_activation", "skip", (1, 0)),
    ("vgg11_small", None, "post_activation", "skip", (3, 0)),
)


@pytest.mark.parametrize("name, shortcut, tap, transition, counts", COUNTS)
def test_pairs_and_triples_of_the_nets(name, shortcut, tap, transition, counts):
    torch.manual_seed(0)
    model = models.build(name, shortcut=shortcut).eval()
    features = model.flow(torch.randn(1, 3, 32, 32), tap)[1]
    ways = model.shortcuts(tap) if transition == "shortcut" else None
    assert flow_counts(features, transition, ways) == counts
    for length, curvature in ((1.0, 0.0), (0.0, 1.0)):
        if counts[curvature > 0]:
            value = flow_penalty(features, length, curvature, transition=transition, shortcuts=ways)
            value.backward(retain_graph=True)
            assert value > 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        else:
            with pytest.raises(ValueError, match="curvature needs triples"):
                flow_penalty(features, length, curvature, transition=transition, shortcuts=ways)


def test_pool_pad_and_shortcut_bring_earlier_features_to_the_latest_shape():
    features = some_features(5, (2, 2, 1))

    def brought(x, times):
        for _ in range(times):
            x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))
        return x

    a, b, c, d, e = features
    steps = [b - a, c - brought(b, 1), d - c, e - brought(d, 1)]
    bends = [
        c - 2 * brought(b, 1) + brought(a, 1),
        d - 2 * c + brought(b, 1),
        e - 2 * brought(d, 1) + brought(c, 1),
    ]
    expected = sum(term(s, "l1", "mean") for s in steps) + 0.5 * sum(term(s, "l1", "mean") for s in bends)
    ways = [None, lambda x: brought(x, 1), None, lambda x: brought(x, 1)]
    for options in ({"transition": "pool_pad"}, {"transition": "shortcut", "shortcuts": ways}):
        value = flow_penalty(features, 1.0, 0.5, **options)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(gradients(value, features), gradients(expected, features), rtol=1e-9, atol=1e-12)


def test_what_cannot_be_brought_to_one_shape_is_left_out():
    wide, narrow = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 4, 4)
    assert flow_counts([wide, narrow], "pool_pad") == (0, 0)  # fewer channels
    assert flow_counts([torch.randn(2, 4, 5, 5), torch.randn(2, 4, 2, 2)], "pool_pad") == (0, 0)  # 5 is not 2 x 2
    assert flow_counts([narrow, narrow, wide, narrow], "pool_pad") == (2, 1)


@pytest.mark.parametrize("kind", ("second_difference", "angle"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("norm", NORMS)
def test_finite_at_zero_steps_straight_and_reversed_flows(norm, dtype, kind):
    torch.manual_seed(0)
    x, step = torch.randn(2, 2, 4, 4, 4).to(dtype)
    flows = {"still": [x, x, x, x], "stop": [x, x + step, x + step], "zero": [torch.zeros_like(x)] * 3,
             "straight": [x * 0, step, 2 * step, 3 * step], "reversed": [x * 0, step, x * 0, step]}  # fmt: skip
    for name, flow in flows.items():
        features = [f.clone().requires_grad_() for f in flow]
        value = flow_penalty(features, 0.5, 0.5, norm, kind)
        value.backward()
        assert value.isfinite() and value.dtype == torch.float32, name
        assert all(f.grad.isfinite().all() and f.grad.dtype == dtype for f in features), name
        if name in ("still", "zero"):
            assert value == 0 and all((f.grad == 0).all() for f in features), name
        if name == "straight" and kind == "angle":
            assert flow_penalty(features, 0.0, 1.0, norm, kind).item() == pytest.approx(0, abs=1e-2)
        if name == "reversed" and kind == "angle":
            assert flow_penalty(features, 0.0, 1.0, norm, kind).item() == pytest.approx(2 * math.pi, abs=1e-2)
    zeros = [torch.zeros(2, 4, requires_grad=True)]
    activation_penalty(zeros).backward()
    assert (zeros[0].grad == 0).all()


@pytest.mark.parametrize("factor", (1.0, -3.0))
def test_bfloat16_is_summed_in_float32_and_its_slopes_are_signs(factor):
    """Sums of 2^16 terms, which a bfloat16 accumulator would lose; slopes as float64 has them for the same numbers."""
    torch.manual_seed(0)
    features = [torch.randint(0, 4, (4, 16, 32, 32)).bfloat16().requires_grad_() for _ in range(4)]
    exact = [f.detach().double().requires_grad_() for f in features]
    for f in (lambda x: flow_penalty(x, 0.5, 0.25), activation_penalty):
        value, expected = f(features), f(exact)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
        got, wanted = gradients(factor * value, features), gradients(factor * expected, exact)
        for g, w in zip(got, wanted):
            torch.testing.assert_close(g.double(), w, rtol=2**-7, atol=1e-12)
            assert ((g == 0) == (w == 0)).all()


@given(seed=st.integers(0, 2**31), counts=st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_activation_penalty(seed, counts):
    features = some_features(seed, counts)
    expected = sum(x.abs().mean() for x in features)
    torch.testing.assert_close(activation_penalty(features), expected, rtol=1e-12, atol=0)
    got, wanted = gradients(3 * activation_penalty(features), features), gradients(3 * expected, features)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


OPTIONS = list(product(NORMS, ("second_difference", "angle"), ("skip", "pool_pad")))


@pytest.mark.parametrize("norm, kind, transition", OPTIONS)
def test_vmap_channels_last_and_meta(norm, kind, transition):
    features = [torch.stack([x.detach(), 2 * x.detach().square()]) for x in some_features(7, (3, 2))]

    def f(*x):
        return flow_penalty(x, 0.7, 1.3, norm, kind, transition=transition) + 0.1 * activation_penalty(x)

    each = tuple(range(len(features)))
    grads, values = torch.func.vmap(torch.func.grad_and_value(f, argnums=each))(*features)
    for j in range(2):
        one = [x[j].clone().requires_grad_() for x in features]
        value = f(*one)
        expected = gradients(value, one)
        torch.testing.assert_close(values[j], value)
        torch.testing.assert_close(tuple(g[j] for g in grads), expected)
        last = [x[j].clone().to(memory_format=torch.channels_last).requires_grad_() for x in features]
        again = gradients(f(*last), last)
        torch.testing.assert_close(again, expected)
        assert kind == "angle" or transition != "skip" or all(g.stride() == x.stride() for g, x in zip(again, last))
    meta = [torch.empty_like(x[0], device="meta").requires_grad_() for x in features]  # has no value to ask for
    assert [g.shape for g in gradients(f(*meta), meta)] == [x.shape for x in meta]


@pytest.mark.parametrize("norm, kind", (("l1", "second_difference"), ("l2", "second_difference"), ("l1", "angle")))
def test_compiled(norm, kind):
    features = some_features(9, (3, 2))

    def f(x):
        return flow_penalty(x, 0.7, 1.3, norm, kind) + 0.1 * activation_penalty(x)

    value = torch.compile(f, backend="aot_eager", fullgraph=True)(features)
    torch.testing.assert_close(value, f(features))
    torch.testing.assert_close(gradients(value, features), gradients(f(features), features))


def test_keeps_no_more_than_the_net_does():
    """Bytes saved for backward, storage by storage, of a ResNet-20 step with and without the penalties."""
    torch.manual_seed(0)
    model = models.build("resnet20", shortcut="A")
    x = torch.randn(4, 3, 32, 32)

    def saved(penalised):
        kept = {}

        def pack(t):
            kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            logits, features = model.flow(x, "post_activation")
            loss = logits.sum()
            if penalised:
                loss = loss + flow_penalty(features, 0.1, 0.1) + activation_penalty(features)
        loss.backward()
        return sum(size for size, _ in kept.values())

    assert saved(True) <= 1.01 * saved(False)


def test_metrics_leave_out_what_is_not_there():
    one_pair = some_features(0, (2, 1))
    assert straightness(one_pair).isnan() and turning_angle(one_pair).isnan()
    still = [torch.ones(3, 2, 4, 4)] * 4
    assert straightness(still) == 1 and turning_angle(still) == 0
    x, step = torch.randn(2, 3, 2, 4, 4)
    assert straightness([x, x + step, x + step, x + 2 * step]).item() == pytest.approx(1, rel=1e-5)


def test_bad_input_is_told_in_one_sentence():
    features = some_features(0, (3,))
    for option, value in (("norm", "l3"), ("curvature_kind", "angles"), ("reduction", "men"), ("transition", "skipp")):
        with pytest.raises(ValueError, match=f"{option} is '{value}', which is none of"):
            flow_penalty(features, 1.0, 1.0, **{option: value})
    for shortcuts in (None, [None, None], [None]):
        with pytest.raises(ValueError, match="shortcuts is"):
            flow_penalty(features, 1.0, 1.0, transition="shortcut", shortcuts=shortcuts)
    with pytest.raises(ValueError, match="features is 'one tensor'; allowed: a list"):
        flow_penalty(features[0], 1.0)
    with pytest.raises(ValueError, match="length needs pairs"):
        flow_penalty(features[:1], 1.0)
