"""Proximal steps: exact minimisers, and what they do on the digits that a subgradient does not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ffrlib import models
from ffrlib.regularizers.proximal import STEPS, step_
from ffrlib.regularizers.weight import CRITERIA, weight_penalty

MIXTURES = [("l1", 1.0, "l1"), ("group_lasso", 1.0, "l1"), ("exclusive_sparsity", 1.0, "l1"),
            ("group_lasso", 0.4, "l1"), ("exclusive_sparsity", 0.7, "l1"), ("l1", 0.3, "group_lasso")]  # fmt: skip


class OneLayer(torch.nn.Module):
    """A model whose one counted convolution holds the given weight."""

    def __init__(self, weight):
        super().__init__()
        outs, ins, kh, kw = weight.shape
        self.conv = torch.nn.Conv2d(ins, outs, (kh, kw), bias=False, dtype=weight.dtype)
        self.conv.weight = torch.nn.Parameter(weight.clone())


@pytest.mark.parametrize("grouping", ("feature", "neuron"))
@pytest.mark.parametrize("name, mix, second", MIXTURES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), threshold=st.floats(1e-3, 3), shape=st.sampled_from([(3, 2, 3, 3), (1, 4, 1, 1)]))
def test_is_the_minimiser(name, mix, second, grouping, seed, threshold, shape):
    """The objective F is 1-strongly convex, so X minimises it if and only if F(Y) >= F(X) + |Y - X|^2 / 2 for all Y."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight[0, 0] = 0
    model = OneLayer(weight)
    step_(model, name, threshold, grouping, mix, second)
    x = model.conv.weight.detach()

    def objective(y):
        penalty = mix * CRITERIA[name](y, grouping) + (1 - mix) * CRITERIA[second](y, grouping)
        return 0.5 * (y - weight).square().sum() + threshold * penalty

    for scale in (1e-6, 1e-3, 0.1, 1, 10):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        for y in (
            x + noise,
            x * (1 + scale),
            x * (1 - scale),
            x + noise * (x != 0),
            x + noise * (x == 0),
            x + scale * weight,
        ):
            assert objective(y) - objective(x) - 0.5 * (y - x).square().sum() >= -1e-12 * (1 + objective(y))


def test_group_lasso_zeroes_whole_groups_and_exclusive_sparsity_never():
    torch.manual_seed(0)
    weight = torch.randn(4, 6, 3, 3) * torch.linspace(0.01, 2, 6).reshape(1, 6, 1, 1)
    norms = weight.square().sum((0, 2, 3)).sqrt()
    shrunk = STEPS["group_lasso"](weight, 2.0)
    torch.testing.assert_close(shrunk.square().sum((0, 2, 3)).sqrt(), (norms - 2).clamp_min(0))
    assert ((shrunk == 0).all(3).all(2).all(0) == (norms <= 2)).all() and (norms <= 2).any()
    competing = STEPS["exclusive_sparsity"](weight, 100.0)
    assert (competing == 0).float().mean() > 0.5 and (competing != 0).flatten(2).any(2).any(0).all()


@pytest.mark.parametrize("name", STEPS)
def test_zeros_stay_zeros_thresholds_may_be_tensors_and_nothing_is_asked(name):
    model = models.build("digits_cnn")
    with torch.no_grad():
        model.convs[1].weight[:, 2] = 0
        model.convs[2].weight.zero_()
    before = [c.weight.detach().clone() for c in model.convs]
    step_(model, name, 0.0)
    assert all(torch.equal(c.weight, w) for c, w in zip(model.convs, before))
    other = models.build("digits_cnn")
    other.load_state_dict(model.state_dict())
    head = model.head[0].weight.detach().clone()
    step_(model, name, 0.01)
    step_(other, name, torch.tensor(0.01))
    for c, d, w in zip(model.convs, other.convs, before):
        torch.testing.assert_close(c.weight, d.weight)
        assert c.weight.isfinite().all() and (c.weight[w == 0] == 0).all() and (w.any() == (c.weight != w).any())
    assert torch.equal(model.head[0].weight, head)
    step_(model, name, 0.01, include_linear=True)
    assert not torch.equal(model.head[0].weight, head)
    step_(OneLayer(torch.empty(3, 4, 3, 3, device="meta")), name, torch.empty((), device="meta"), "neuron")


def test_bad_input_is_told_in_one_sentence():
    model = models.build("digits_cnn")
    with pytest.raises(ValueError, match="none of 'l1', 'group_lasso', 'exclusive_sparsity'"):
        step_(model, "group_l12", 0.1)
    with pytest.raises(ValueError, match="the proximal mixture"):
        step_(model, "group_lasso", 0.1, mix=0.5, second="exclusive_sparsity")
    with pytest.raises(ValueError, match="second criterion"):
        step_(model, "l1", 0.1, mix=0.5, second="group_l12")
    with pytest.raises(ValueError, match="threshold is -1"):
        step_(model, "l1", -1)
    with pytest.raises(ValueError, match="mix is 1.5"):
        step_(model, "l1", 0.1, mix=1.5)
    with pytest.raises(ValueError, match="grouping is"):
        step_(model, "l1", 0.1, "channel")


@pytest.mark.slow
def test_digits_have_zero_groups_after_proximal_training_and_only_small_ones_after_subgradients(digits):
    images, labels = digits.train[0][:512].float() / 16, digits.train[1][:512]

    def train(update, strength=0.01, lr=0.05, momentum=0.9, steps=200):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1)]
        model = torch.nn.Sequential(
            *layers, torch.nn.ReLU(), torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(256, 10)
        )
        optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        for i in range(steps):
            rows = slice(i % 4 * 128, i % 4 * 128 + 128)
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            if update == "subgradient":
                loss = loss + weight_penalty(model, "group_lasso", strength)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if update == "proximal":
                step_(model, "group_lasso", lr * strength / (1 - momentum))
        groups = model[2].weight.detach().square().sum((0, 2, 3)).sqrt()
        return groups, (model(images).argmax(1) == labels).float().mean().item()

    (proximal, right), (subgradient, also_right) = train("proximal"), train("subgradient")
    assert right > 0.95 and also_right > 0.95
    assert (proximal == 0).sum() >= 4
    assert (subgradient == 0).sum() == 0 and (subgradient < 0.01).sum() >= 4
