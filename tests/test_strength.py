"""Matched strengths against a table of mean gradients measured on the paper's nets."""

import pytest
import torch

from ffrlib import models
from ffrlib.regularizers.weight import CRITERIA, matched_strength, mean_gradient

NETS = ("alexnet_small", "vgg11_small", "resnet18_small")
# Mean |gradient|, feature-wise, relative to L1, at the published initialisation of NETS.
TABLE = {
    "group_lasso": (0.065, 0.025, 0.038),
    "hierarchical_square_rooted_group_lasso": (0.091, 0.035, 0.044),
    "hierarchical_squared_group_lasso": (1.70, 8.2, 5.5),
    "exclusive_sparsity": (15.4, 74, 49),
    "hierarchical_square_rooted_exclusive_sparsity": (0.22, 0.090, 0.14),
    "hierarchical_squared_exclusive_sparsity": (4.8, 15, 29),
    "group_l12": (0.19, 0.083, 0.10),
    "hierarchical_square_rooted_group_l12": (0.13, 0.057, 0.063),
    "hierarchical_squared_group_l12": (22, 123, 56),
}


def built(name):
    torch.manual_seed(0)
    return models.build(name)


@pytest.mark.parametrize("column, name", list(enumerate(NETS)))
def test_the_table_of_initial_gradients(column, name):
    model = built(name)
    for criterion, row in TABLE.items():
        strength = matched_strength(model, criterion, 1e-3)
        assert 1e-3 / strength == pytest.approx(row[column], rel=0.06), criterion
    assert matched_strength(model, "l1", 1e-3) == pytest.approx(1e-3)


@pytest.mark.parametrize("grouping", ("feature", "neuron"))
@pytest.mark.parametrize("name", CRITERIA)
def test_equals_the_mean_gradient_of_plain_autograd(name, grouping):
    model = built("alexnet_small").double()
    weights = [c.weight for _, c in models.counted_convolutions(model)]
    grads = torch.autograd.grad(sum(CRITERIA[name](w, grouping) for w in weights), weights)
    expected = torch.cat([g.flatten() for g in grads]).abs().mean().item()
    assert mean_gradient(model, name, grouping) == pytest.approx(expected, rel=1e-12)
    assert matched_strength(model, name, 0.3, grouping) * expected == pytest.approx(0.3, rel=1e-12)
    assert all(w.grad is None for w in weights)


def test_mixtures_and_dead_models():
    model = built("alexnet_small").double()
    mixed = mean_gradient(model, "group_lasso", mix=0.5)
    assert matched_strength(model, "group_lasso", 1.0, mix=0.5) == pytest.approx(1 / mixed)
    assert mixed == pytest.approx(0.5 * mean_gradient(model, "group_lasso") + 0.5, rel=1e-9)  # signs agree everywhere
    with torch.no_grad():
        for _, c in models.counted_convolutions(model):
            c.weight.zero_()
    with pytest.raises(ValueError, match="above 0"):
        matched_strength(model, "group_lasso", 1.0)
    with pytest.raises(ValueError, match="did you mean"):
        matched_strength(model, "grup_lasso", 1.0)
