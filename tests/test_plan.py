"""The price of what would run: by records where there are any, by MACs beside them."""

from dataclasses import replace

import pytest
import torch

from ffrlib import catalogue, plan, store
from ffrlib.spec import Pruning


@pytest.fixture(autouse=True)
def _full_grids(monkeypatch, results):
    """Five strengths for every arm, whatever the pilot has chosen so far; an empty store."""
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


def keep(spec, seconds_an_epoch):
    seconds = seconds_an_epoch * spec.recipe.epochs
    made = store.provenance(spec, "cpu", torch.float32, "one", "digest", seconds)
    store.save(spec, "finished", {}, {"test_accuracy": 1.0}, made)


def told(scale, name=None, workers=1):
    return " ".join(plan.plan(scale, name, workers).split())


def test_it_counts_what_has_no_record():
    specs = catalogue.specs("quick", "1_hgsr_criteria")
    count, plain = len(specs), specs[0]
    assert f"{count} of {count} runs to make" in told("quick", "1_hgsr_criteria")
    assert "no record tells the speed: digits_cnn" in told("quick", "1_hgsr_criteria")
    assert "0.0 min and more" in told("quick", "1_hgsr_criteria")
    keep(plain, 60)
    minutes = (count - 1) * plain.recipe.epochs
    text = told("quick", "1_hgsr_criteria")
    assert f"{count - 1} of {count} runs to make" in text and f"{minutes:.1f} min;" in text and "and more" not in text
    assert f"{minutes / 4:.1f} min" in told("quick", "1_hgsr_criteria", 4)


def test_a_net_without_a_record_is_priced_by_its_macs(monkeypatch):
    small, large = (catalogue.BASES["laptop"][net] for net in ("resnet20", "resnet56"))
    sizes = [plan.size("cifar10", net, "A", 1.0) for net in ("resnet20", "resnet56")]
    assert sizes == [40551040, 125485696]
    keep(small, 60)
    later = replace(large, pruning=Pruning("l1_norm", amount=0.5, epochs=1))
    monkeypatch.setattr(catalogue, "specs", lambda scale, name: [small, large, later])
    text = told("laptop", "5_ffr_pruning")
    assert f"2 of 3 runs to make, {(2 + 1) * sizes[1] / sizes[0]:.1f} min priced by MACs: resnet56" in text


def test_an_arm_without_strengths_is_named(monkeypatch):
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [])
    assert "no strength chosen yet, so not counted: resnet20: control, length, curvature, both" in told("laptop")
