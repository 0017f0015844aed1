"""Scores of channels against explicit loops, masked nets and numerical derivatives."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from ffrlib import models, spec
from ffrlib.pruning import criteria, removal

NETS = [("digits_cnn", None), ("alexnet_small", None), ("vgg11_small_bn", None), ("resnet20", "A"), ("resnet20", "B"),
        ("resnet18_small", None)]  # fmt: skip


def net(name, shortcut=None, factor=0.25, seed=0):
    """A thin net in float64 whose batch norms are not trivial, in train mode."""
    torch.manual_seed(seed)
    model = models.build(name, shortcut=shortcut, widths=models.scaled_widths(name, factor, shortcut)).double()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
            nn.init.normal_(m.running_mean, 0, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return model


def batch(model, n=12):
    shape = (1, 8, 8) if model.layout.name == "digits_cnn" else (3, 32, 32)
    return torch.randn(n, *shape, dtype=torch.float64), torch.arange(n) % 10


def by_layer_mean(scores):
    """`relative` by hand."""
    means = {name: sum(s) / len(s) for name, s in scores.items()}
    floor = sorted(means.values())[(len(means) - 1) // 2] / 10
    return {name: [value / max(means[name], floor) for value in s] for name, s in scores.items()}


def rows(model, group):
    return [model.get_submodule(w).weight.detach() for w in group.writers]


def l1(model, g, i):
    return sum(float(w[i].abs().sum()) / math.sqrt(w[i].numel()) for w in rows(model, g)) / len(g.writers)


def l2(model, g, i):
    return sum(float((w[i] ** 2).sum()) ** 0.5 for w in rows(model, g)) / len(g.writers)


def median_distance(model, g, i):
    total = sum(float(((w[i] - w[j]) ** 2).sum()) ** 0.5 for w in rows(model, g) for j in range(g.size))
    return total / g.size / len(g.writers)


def read(model, g, i):
    total = 0.0
    for name in g.readers:
        w = model.get_submodule(name).weight.detach()
        each = w.shape[1] // g.size
        total += math.sqrt(float((w[:, i * each : (i + 1) * each] ** 2).sum()) * g.size / len(w))
    return total / len(g.readers)


@pytest.mark.parametrize("name, shortcut", NETS)
def test_weight_scores_equal_loops(name, shortcut):
    model = net(name, shortcut)
    for score, by_hand in (
        ("l1_norm", l1),
        ("l2_norm", l2),
        ("geometric_median", median_distance),
        ("feature_group", read),
    ):
        expected = by_layer_mean({g.name: [by_hand(model, g, i) for i in range(g.size)] for g in model.groups()})
        found = criteria.scores(score, model)
        assert found.keys() == expected.keys()
        for group, values in expected.items():
            torch.testing.assert_close(found[group].double(), torch.tensor(values).double(), rtol=1e-4, atol=1e-5)


KERNEL_SIZE = {  # criterion -> (s ** inner of a kernel's values, outer exponent), written out of the paper's table
    "group_lasso": (lambda k: sum(v * v for v in k), 0.5),
    "exclusive_sparsity": (lambda k: sum(map(abs, k)), 2),
    "group_l12": (lambda k: sum(map(abs, k)), 0.5),
    "hierarchical_square_rooted_group_lasso": (lambda k: math.sqrt(sum(v * v for v in k)), 0.5),
    "hierarchical_squared_group_lasso": (lambda k: math.sqrt(sum(v * v for v in k)), 2),
    "hierarchical_square_rooted_exclusive_sparsity": (lambda k: sum(map(abs, k)) ** 2, 0.5),
    "hierarchical_squared_exclusive_sparsity": (lambda k: sum(map(abs, k)) ** 2, 2),
    "hierarchical_square_rooted_group_l12": (lambda k: math.sqrt(sum(map(abs, k))), 0.5),
    "hierarchical_squared_group_l12": (lambda k: math.sqrt(sum(map(abs, k))), 2),
}


def kernels_of(model, layer, channel, size, grouping):
    """The kernels, each a list of numbers, of the weights of `layer` that read or write one channel."""
    w = model.get_submodule(layer).weight.detach()
    if grouping == "neuron":
        return w[channel].flatten(1).tolist()
    if w.dim() == 4:
        return w[:, channel].flatten(1).tolist()
    columns = w.shape[1] // size
    return [row[channel * columns : (channel + 1) * columns] for row in w.tolist()]


@pytest.mark.parametrize("name, shortcut", [("digits_cnn", None), ("alexnet_small", None), ("resnet20", "A"),
                                            ("resnet20", "B")])  # fmt: skip
@pytest.mark.parametrize("grouping", ["feature", "neuron"])
@pytest.mark.parametrize("criterion", KERNEL_SIZE)
def test_group_terms_equal_loops_over_kernels(criterion, grouping, name, shortcut):
    model, (inside, outer), by_hand = net(name, shortcut), KERNEL_SIZE[criterion], {}
    with torch.no_grad():  # zero kernels, one group of them alone
        model.get_submodule(model.groups()[1].readers[0]).weight[:, 1] = 0
        model.get_submodule(model.groups()[1].writers[0]).weight[0] = 0
    for g in model.groups():
        layers = g.readers if grouping == "feature" else g.writers
        by_hand[g.name] = []
        for i in range(g.size):
            terms = [sum(inside(k) for k in kernels_of(model, layer, i, g.size, grouping)) ** outer for layer in layers]
            by_hand[g.name].append(sum(terms) / len(terms))
    found, expected = criteria.scores(criterion, model, grouping=grouping), by_layer_mean(by_hand)
    assert found.keys() == expected.keys()
    for group, values in expected.items():
        torch.testing.assert_close(found[group].double(), torch.tensor(values).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grouping", ["feature", "neuron"])
@pytest.mark.parametrize("kind", ["group_lasso", "exclusive_sparsity", "group_l12"])
def test_square_rooted_and_squared_rank_a_layer_equally(kind, grouping):
    model = net("vgg11_small_bn")
    rooted = criteria.scores(f"hierarchical_square_rooted_{kind}", model, grouping=grouping)
    squared = criteria.scores(f"hierarchical_squared_{kind}", model, grouping=grouping)
    assert all(torch.equal(rooted[g].argsort(), squared[g].argsort()) for g in rooted)
    assert not torch.equal(*(torch.cat(list(s.values())).argsort() for s in (rooted, squared)))


def test_group_lasso_is_feature_group_where_nothing_is_averaged():
    model = net("digits_cnn")
    ours, old = criteria.scores("group_lasso", model), criteria.scores("feature_group", model)
    assert all(torch.allclose(ours[g], old[g], rtol=1e-4) for g in old)


def test_bn_scale_is_the_mean_of_the_scales():
    model = net("resnet20", "B")
    found = criteria.scores("bn_scale", model)
    for g in model.groups():
        expected = sum(model.get_submodule(n).weight.detach().abs() for n in g.norms) / len(g.norms)
        torch.testing.assert_close(found[g.name].double(), expected, rtol=1e-5, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 3), st.sampled_from(["l1_norm", "l2_norm", "geometric_median"]))
def test_the_scale_of_a_layer_does_not_matter(factor, score):
    model = net("digits_cnn")
    before = criteria.scores(score, model)["convs.2"]
    with torch.no_grad():
        model.convs[2].weight *= factor
    torch.testing.assert_close(criteria.scores(score, model)["convs.2"], before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score", ["l1_norm", "l2_norm", "geometric_median"])
def test_a_layer_that_died_as_a_whole_goes_first(score):
    model = net("resnet20", "A")
    with torch.no_grad():
        model.layer2[1].conv1.weight *= 1e-5
    found = criteria.scores(score, model)
    dead = found.pop("layer2.1.conv1")
    assert float(dead.max()) < 1e-3 < float(torch.cat(list(found.values())).min())


def test_equal_channels_lie_at_the_geometric_median():
    model = net("alexnet_small")
    with torch.no_grad():
        model.convs[1].weight[1:] = model.convs[1].weight[1].clone()
    found = criteria.scores("geometric_median", model)["convs.1"]
    assert int(found.argmax()) == 0 and float(found[1:].max()) < float(found[0]) / (len(found) - 1) * 1.001


@pytest.mark.parametrize("name, shortcut", NETS)
def test_flow_equals_loops(name, shortcut):
    model = net(name, shortcut)
    x, _ = batch(model)
    found = criteria.flow(model, x, batch=5)
    features = [f.detach() for f in model.eval().flow(x, "post_activation")[1]]
    order, expected = [n for n, _ in models.counted_convolutions(model)], {}
    for g in model.groups():
        own = [order.index(w) for w in g.writers if w in order]
        expected[g.name] = []
        for i in range(g.size):
            total = 0.0
            for k, at in enumerate(own):
                total += float(features[at][:, i].abs().mean())
                before = own[k - 1] if k else at - 1
                if before >= 0 and features[before].shape == features[at].shape:
                    total += float((features[at][:, i] - features[before][:, i]).abs().mean())
            expected[g.name].append(total / len(own))
    for group, values in by_layer_mean(expected).items():
        torch.testing.assert_close(found[group].double(), torch.tensor(values).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name, shortcut", [("digits_cnn", None), ("alexnet_small", None), ("resnet20", "B")])
def test_taylor_is_the_derivative_along_the_mask(name, shortcut):
    model = net(name, shortcut)
    x, y = batch(model)
    found, h = criteria.taylor(model, x, y, batch=len(x)), 1e-5
    model.eval()
    for g in model.groups()[:4]:
        holders = [model.get_submodule(n or w) for n, w in zip(g.norms, g.writers)]
        for i in (0, g.size - 1):
            losses = []
            for factor in (1 + h, (1 - h) / (1 + h), 1 / (1 - h)):
                with torch.no_grad():
                    for p in (p for m in holders for p in (m.weight, m.bias) if p is not None):
                        p[i] *= factor
                    losses.append(float(cross_entropy(model(x), y)))
            assert float(found[g.name][i]) == pytest.approx(abs(losses[0] - losses[1]) / (2 * h), rel=1e-3, abs=1e-7)


def test_taylor_averages_over_batches():
    model = net("digits_cnn")
    x, y = batch(model)
    parts = [criteria.taylor(model, x[s], y[s], batch=99) for s in (slice(0, 8), slice(8, 12))]
    whole = criteria.taylor(model, x, y, batch=8)
    for group, score in whole.items():
        torch.testing.assert_close(score, (8 * parts[0][group] + 4 * parts[1][group]) / 12)


@pytest.mark.parametrize("name, shortcut", NETS)
def test_loss_increase_is_that_of_the_masked_net(name, shortcut):
    model = net(name, shortcut, 0.125)
    x, y = batch(model, 6)
    found = criteria.loss_increase(model, x, y, batch=4)
    model.eval()
    with torch.no_grad():
        base = cross_entropy(model(x), y)
        for g in model.groups():
            for i in {0, g.size // 2, g.size - 1} if g.size > 1 else ():
                keep = removal.full_keep(model)
                keep[g.name][i] = False
                rise = cross_entropy(removal.mask(model, keep)(x), y) - base
                torch.testing.assert_close(found[g.name][i].double(), rise, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet_small", "digits_cnn"])
def test_loss_increase_under_autocast_sees_every_mask(name):
    model = net(name).float()
    x, y = (t.float() if t.is_floating_point() else t for t in batch(model))
    with torch.autocast("cpu", torch.bfloat16):
        found = criteria.loss_increase(model, x, y)
    model.eval()
    with torch.no_grad():
        for g in model.groups():
            keep, losses = {g.name: torch.arange(g.size) != 1}, []
            for masked in (removal.mask(model, keep), model):
                with torch.autocast("cpu", torch.bfloat16):
                    losses.append(cross_entropy(masked(x), y))
            torch.testing.assert_close(found[g.name][1], losses[0] - losses[1], rtol=1e-4, atol=1e-5)
    assert len({float(v) for s in found.values() for v in s}) > 5


def test_loss_increase_computes_less_than_the_whole_net_for_each_channel():
    model = net("digits_cnn")
    calls, channels = [], sum(g.size for g in model.groups())
    handle = model.convs[0].register_forward_pre_hook(lambda m, args: calls.append("forward" not in m.__dict__))
    criteria.loss_increase(model, *batch(model))
    handle.remove()
    assert len(calls) == 1 + channels and sum(calls) == 1 + model.convs[0].out_channels


@pytest.mark.parametrize("score", sorted(criteria.CRITERIA))
def test_scores_leave_the_net_as_it_was(score):
    model = net("resnet20", "A", 0.125)
    model.layer1.eval()
    state, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    found = criteria.scores(score, model, *batch(model, 4), seed=3)
    assert all(found[g.name].shape == (g.size,) and found[g.name].isfinite().all() for g in model.groups())
    assert not any(v.requires_grad for v in found.values())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_an_error_inside_leaves_the_net_as_it_was():
    model = net("digits_cnn")
    state, (x, y) = {k: v.clone() for k, v in model.state_dict().items()}, batch(model)
    broken, calls = model.head.forward, []

    def fail_later(x):
        calls.append(x)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return broken(x)

    model.head.forward = fail_later
    with pytest.raises(KeyboardInterrupt):
        criteria.loss_increase(model, x, y)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any("forward" in m.__dict__ for m in model.convs) and model.training


def test_loss_of_a_keep_is_that_of_the_masked_net():
    model = net("resnet20", "A")
    x, y = batch(model)
    keep = {g.name: torch.arange(g.size) != 1 for g in model.groups()}
    with torch.no_grad():
        expected = float(cross_entropy(removal.mask(model, keep).eval()(x), y))
    assert criteria.loss_of(model, x, y)(keep) == pytest.approx(expected, rel=1e-10)


def test_every_score_of_a_setting_exists():
    assert set(spec.SCORES) == {*criteria.CRITERIA, "magnitude"}
    cut = spec.Pruning("group_l12", "macs_share", 0.3)
    assert spec.key(spec.RunSpec(pruning=cut)) != spec.key(spec.RunSpec(pruning=replace(cut, grouping="neuron")))
    assert "grouping" not in spec.non_defaults(cut)
    with pytest.raises(ValueError, match="pruning.grouping is 'input'"):
        spec.RunSpec(pruning=replace(cut, grouping="input"))


def test_random_scores_follow_the_seed_alone():
    model = net("digits_cnn")
    first = criteria.scores("random", model, seed=1)
    torch.manual_seed(99)
    again, other = criteria.scores("random", model, seed=1), criteria.scores("random", model, seed=2)
    assert all(torch.equal(first[k], again[k]) and not torch.equal(first[k], other[k]) for k in first)


def test_bad_input():
    model = net("alexnet_small")
    with pytest.raises(ValueError, match="did you mean 'l1_norm'"):
        criteria.scores("l1norm", model)
    with pytest.raises(ValueError, match="grouping is 'channel'.*none of 'feature', 'neuron'"):
        criteria.scores("group_lasso", model, grouping="channel")
    with pytest.raises(ValueError, match="normalised images"):
        criteria.scores("taylor", model)
    with pytest.raises(ValueError, match="without batch norms"):
        criteria.scores("bn_scale", model)
