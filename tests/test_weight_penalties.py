"""The ten criteria against loops over groups, at exact zeros, and under torch's transformations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffrlib import models
from ffrlib.regularizers.proximal import STEPS, step_
from ffrlib.regularizers.weight import CRITERIA, FORMS, matched_strength, penalised, penalty, weight_penalty

GROUPINGS = ("feature", "neuron")


def s1(kernel):
    return sum(abs(v) for v in kernel)


def s2(kernel):
    return sum(v * v for v in kernel)


# What one group (a list of kernels, each a list of numbers) contributes, written out of the paper's table.
BY_HAND = {
    "l1": lambda g: sum(s1(k) for k in g),
    "group_lasso": lambda g: math.sqrt(sum(s2(k) for k in g)),
    "exclusive_sparsity": lambda g: sum(s1(k) for k in g) ** 2,
    "group_l12": lambda g: math.sqrt(sum(s1(k) for k in g)),
    "hierarchical_square_rooted_group_lasso": lambda g: math.sqrt(sum(math.sqrt(s2(k)) for k in g)),
    "hierarchical_squared_group_lasso": lambda g: sum(math.sqrt(s2(k)) for k in g) ** 2,
    "hierarchical_square_rooted_exclusive_sparsity": lambda g: math.sqrt(sum(s1(k) ** 2 for k in g)),
    "hierarchical_squared_exclusive_sparsity": lambda g: sum(s1(k) ** 2 for k in g) ** 2,
    "hierarchical_square_rooted_group_l12": lambda g: math.sqrt(sum(math.sqrt(s1(k)) for k in g)),
    "hierarchical_squared_group_l12": lambda g: sum(math.sqrt(s1(k)) for k in g) ** 2,
}
DEGREES = dict(zip(BY_HAND, (1, 1, 2, 1 / 2, 1 / 2, 2, 1, 4, 1 / 4, 1)))


def brute(name, weight, grouping):
    table = weight.reshape(*weight.shape[:2], -1).tolist()
    outs, ins = weight.shape[:2]
    if grouping == "feature":
        groups = [[table[o][i] for o in range(outs)] for i in range(ins)]
    else:
        groups = [[table[o][i] for i in range(ins)] for o in range(outs)]
    return sum(BY_HAND[name](g) for g in groups)


@st.composite
def weights(draw, zeros=True):
    outs, ins, size = (
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        draw(st.sampled_from([(), (1, 1), (3, 3), (2, 3)])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(outs, ins, *size, generator=generator, dtype=torch.float64) * 10 ** draw(st.floats(-2, 1))
    if zeros and draw(st.booleans()):
        weight[torch.rand(outs, ins, generator=generator) < 0.4] = 0
    return weight


def test_the_ten_criteria_are_those_of_the_paper():
    assert set(CRITERIA) == set(BY_HAND) == set(FORMS)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", CRITERIA)
@settings(max_examples=15, deadline=None)
@given(weight=weights())
def test_equals_loops_over_groups(name, grouping, weight):
    assert CRITERIA[name](weight, grouping).item() == pytest.approx(
        brute(name, weight, grouping), rel=1e-10, abs=1e-300
    )


@pytest.mark.parametrize("name", CRITERIA)
@settings(max_examples=10, deadline=None)
@given(weight=weights(), factor=st.floats(-20, 20).filter(lambda c: abs(c) > 1e-3), seed=st.integers(0, 999))
def test_homogeneity_permutations_and_the_two_groupings(name, weight, factor, seed):
    f, generator = CRITERIA[name], torch.Generator().manual_seed(seed)
    value = f(weight)
    torch.testing.assert_close(f(factor * weight), abs(factor) ** DEGREES[name] * value, rtol=1e-10, atol=0)
    assert math.prod(FORMS[name]) == DEGREES[name]
    order = [torch.randperm(n, generator=generator) for n in weight.shape[:2]]
    shuffled = weight[order[0]][:, order[1]]
    for grouping in GROUPINGS:
        torch.testing.assert_close(f(shuffled, grouping), f(weight, grouping), rtol=1e-12, atol=0)
    torch.testing.assert_close(f(weight.transpose(0, 1), "feature"), f(weight, "neuron"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", CRITERIA)
def test_gradients(name, grouping):
    torch.manual_seed(1)
    for shape in ((4, 3, 3, 3), (3, 5)):
        weight = torch.randn(shape, dtype=torch.float64)
        weight = (weight + 0.3 * weight.sign()).requires_grad_()
        assert torch.autograd.gradcheck(lambda w: CRITERIA[name](w, grouping), [weight])
        assert torch.autograd.gradgradcheck(lambda w: CRITERIA[name](w, grouping), [weight])


def zeroed():
    """A weight with a single zero, a zero kernel, a zero input channel, a zero output channel, all zero."""
    for index in ((0, 0, 0, 0), (1, 1), (slice(None), 2), (2,), ...):
        weight = torch.randn(4, 5, 3, 3)
        weight[index] = 0
        yield index, weight.requires_grad_()


@pytest.mark.parametrize("autocast", (False, True))
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", CRITERIA)
def test_gradient_is_finite_and_zero_at_exact_zeros(name, grouping, autocast):
    torch.manual_seed(0)
    for index, weight in zeroed():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = CRITERIA[name](weight, grouping)
        value.backward()
        assert value.dtype == weight.grad.dtype == torch.float32
        assert weight.grad.isfinite().all() and (weight.grad[index] == 0).all()
        assert (weight.grad[weight != 0] != 0).all()  # and the others do feel it


@pytest.mark.parametrize("name", CRITERIA)
def test_tiny_weights_give_finite_gradients(name):
    for scale in (1e-12, 1e-30, 1e-38, 1e-45):
        weight = (torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
        for grouping in GROUPINGS:
            (gradient,) = torch.autograd.grad(CRITERIA[name](weight, grouping), weight)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", CRITERIA)
def test_nan_weights_are_not_hidden(name):
    weight = torch.ones(2, 2, 3, 3)
    weight[0, 0, 0, 0] = torch.nan
    assert CRITERIA[name](weight).isnan()


@pytest.mark.parametrize("name", ("network_slimming", *CRITERIA))
def test_a_training_step_from_a_dead_layer_leaves_no_nan(name):
    torch.manual_seed(0)
    model = models.build("digits_cnn")
    convolution = models.counted_convolutions(model)[1][1]
    with torch.no_grad():
        convolution.weight[:, 3] = 0
        models.counted_convolutions(model)[2][1].weight.zero_()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8))
        (loss + weight_penalty(model, name, 1e-3)).backward()
    optimiser.step()
    assert all(p.isfinite().all() for p in model.parameters())


@settings(max_examples=60, deadline=None)
@given(weight=weights())
def test_inequalities_of_the_derivations(weight):
    n = {"feature": weight.shape[0], "neuron": weight.shape[1]}  # kernels a group
    m = weight[0, 0].numel()  # weights a kernel
    groups = {"feature": weight.shape[1], "neuron": weight.shape[0]}
    energy = weight.square().sum().item()
    for g in GROUPINGS:
        f = {name: criterion(weight, g).item() for name, criterion in CRITERIA.items()}
        squared, rooted = "hierarchical_squared_", "hierarchical_square_rooted_"
        chains = (
            (energy, f[squared + "group_lasso"], f["exclusive_sparsity"], m * f[squared + "group_lasso"]),
            (f[squared + "group_lasso"], n[g] * energy),
            (math.sqrt(energy), f["group_lasso"], f[rooted + "exclusive_sparsity"], f["l1"]),
            (f["group_lasso"], math.sqrt(groups[g] * energy)),
            (f["l1"], f[squared + "group_l12"], n[g] * f["l1"]),
            (f[rooted + "group_lasso"], f["group_l12"]),
            (f["exclusive_sparsity"], f["l1"] ** 2, groups[g] * f["exclusive_sparsity"]),
            (f[rooted + "exclusive_sparsity"] ** 2, groups[g] * f["exclusive_sparsity"]),
            (energy**2 / groups[g], f[squared + "exclusive_sparsity"]),
        )
        for chain in chains:
            assert all(a <= b * (1 + 1e-9) + 1e-300 for a, b in zip(chain, chain[1:])), chain


def test_squared_group_lasso_may_be_less_than_the_square_of_group_lasso():
    weight = torch.ones(1, 2, 3, 3, dtype=torch.float64)  # one output channel: every group is one kernel
    assert CRITERIA["hierarchical_squared_group_lasso"](weight).item() == pytest.approx(18)
    assert CRITERIA["group_lasso"](weight).item() ** 2 == pytest.approx(36)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", CRITERIA)
def test_vmap_over_stacked_models_and_channels_last(name, grouping):
    torch.manual_seed(0)
    stacked = [torch.randn(3, 4, 5, 3, 3, dtype=torch.float64), torch.randn(3, 6, 4, dtype=torch.float64)]
    stacked[0][:, :, 1] = 0

    def total(a, b, factor=1.0):
        return penalty([a, b], name, grouping) * factor

    gradients = torch.func.vmap(torch.func.grad_and_value(total, argnums=(0, 1)))(*stacked)
    factors = torch.tensor([1.0, 2.0], dtype=torch.float64)
    shared = torch.func.vmap(torch.func.grad(total), (None, None, 0))(stacked[0][0], stacked[1][0], factors)
    for j in range(3):
        ones = [s[j].clone().requires_grad_() for s in stacked]
        value = total(*ones)
        expected = torch.autograd.grad(value, ones)
        torch.testing.assert_close(gradients[1][j], value)
        torch.testing.assert_close([g[j] for g in gradients[0]], list(expected))
        if j == 0:
            torch.testing.assert_close(shared, torch.stack([expected[0], 2 * expected[0]]))
        last = ones[0].detach().to(memory_format=torch.channels_last).requires_grad_()
        again = torch.autograd.grad(total(last, ones[1]), last)[0]
        torch.testing.assert_close(again, expected[0])
        assert again.stride() == last.stride()


@pytest.mark.parametrize("name", ("group_lasso", "hierarchical_squared_group_l12"))
def test_compiled(name):
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    weight[:, 2] = 0

    def value_and_gradient(f):
        w = weight.clone().requires_grad_()
        value = f(w, "neuron")
        return value.detach(), torch.autograd.grad(value, w)[0]

    compiled = torch.compile(CRITERIA[name], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled), value_and_gradient(CRITERIA[name]))


@pytest.mark.parametrize("name", CRITERIA)
def test_never_asks_the_device_for_a_value(name):
    weight = torch.empty(4, 5, 3, 3, device="meta", requires_grad=True)  # a meta tensor has none to give
    CRITERIA[name](weight, "neuron").backward()
    assert weight.grad.shape == weight.shape


def test_model_penalty_counts_what_the_paper_counts():
    torch.manual_seed(0)
    model = models.build("resnet20", shortcut="B").double()
    convolutions = [
        m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert len(convolutions) == 19
    linear = model.linear.weight
    for name, grouping in (("group_lasso", "neuron"), ("hierarchical_squared_group_l12", "feature")):
        expected = sum(brute(name, w.detach(), grouping) for w in convolutions)
        assert weight_penalty(model, name, 1e-3, grouping).item() == pytest.approx(1e-3 * expected, rel=1e-10)
        with_linear = weight_penalty(model, name, 1e-3, grouping, include_linear=True).item()
        assert with_linear == pytest.approx(1e-3 * (expected + brute(name, linear.detach(), grouping)), rel=1e-10)
    mixed = weight_penalty(model, "group_lasso", 2.0, mix=0.3, second="exclusive_sparsity").item()
    parts = [weight_penalty(model, name, 2.0).item() for name in ("group_lasso", "exclusive_sparsity")]
    assert mixed == pytest.approx(0.3 * parts[0] + 0.7 * parts[1], rel=1e-10)
    assert weight_penalty(model, "group_lasso", 2.0, mix=0.0, second="exclusive_sparsity").item() == pytest.approx(
        parts[1]
    )
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight.copy_(torch.linspace(-1, 1, 16))
    slimming = weight_penalty(model, "network_slimming", 0.5)
    assert slimming.item() == pytest.approx(0.5 * sum(m.weight.abs().sum().item() for m in norms))
    slimming.backward()
    torch.testing.assert_close(norms[0].weight.grad, 0.5 * norms[0].weight.detach().sign())
    assert len(penalised(model, "network_slimming")) == len(norms) == 21


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    grouping=st.sampled_from(GROUPINGS),
    seed=st.integers(0, 99),
)
def test_a_grouped_convolution_counts_as_its_dense_twin(groups, size, grouping, seed):
    out, inside = size
    torch.manual_seed(seed)
    conv = torch.nn.Conv2d(groups * inside, groups * out, 3, groups=groups, bias=False).double()
    dense = torch.zeros(groups * out, groups * inside, 3, 3, dtype=torch.float64)
    for g in range(groups):
        dense[g * out : (g + 1) * out, g * inside : (g + 1) * inside] = conv.weight.detach()[g * out : (g + 1) * out]
    x = torch.randn(2, groups * inside, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x), torch.nn.functional.conv2d(x, dense))  # a twin indeed
    model = torch.nn.Sequential(conv)
    for name in CRITERIA:
        assert weight_penalty(model, name, 1.0, grouping).item() == pytest.approx(brute(name, dense, grouping))
        assert matched_strength(model, name, 1.0, grouping) > 0
    for name in STEPS:
        twin = torch.nn.Conv2d(1, 1, 3, bias=False).double()
        twin.weight = torch.nn.Parameter(dense.clone())
        stepped = torch.nn.Conv2d(groups * inside, groups * out, 3, groups=groups, bias=False).double()
        stepped.load_state_dict(conv.state_dict())
        for one in (twin, stepped):
            step_(torch.nn.Sequential(one), name, 0.1, grouping)
        torch.testing.assert_close(stepped(x), torch.nn.functional.conv2d(x, twin.weight))


def test_bad_input_is_told_in_one_sentence():
    weight, model = torch.ones(2, 2, 3, 3), models.build("alexnet_small")
    with pytest.raises(ValueError, match="did you mean 'group_lasso'"):
        penalty([weight], "grup_lasso")
    with pytest.raises(ValueError, match="'feature', 'neuron'"):
        CRITERIA["l1"](weight, "filter")
    with pytest.raises(ValueError, match="allowed: 1 or more"):
        penalty([], "l1")
    with pytest.raises(ValueError, match=r"\(out, in, kh, kw\)"):
        penalty([torch.ones(3)], "l1")
    with pytest.raises(ValueError, match="modules that network_slimming acts on is 0"):
        weight_penalty(model, "network_slimming", 1.0)  # no batch norm in this net
    with pytest.raises(ValueError, match="modules that l1 acts on is 0.* include_linear"):
        weight_penalty(torch.nn.Linear(3, 3), "l1", 1.0)
    with pytest.raises(ValueError, match="strength is -1.0; allowed: 0 or more"):
        weight_penalty(model, "l1", -1.0)
    assert weight_penalty(model, "l1", torch.tensor(0.0)).item() == 0
    with pytest.raises(ValueError, match="0 to 1"):
        weight_penalty(model, "l1", 1.0, mix=2.0)
    with pytest.raises(ValueError, match="second"):
        weight_penalty(model, "l1", 1.0, mix=0.5, second="l2")
