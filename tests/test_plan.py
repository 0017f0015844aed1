"""The price of what would run: by records where there are any, by MACs beside them."""

from dataclasses import replace

import pytest
import torch

from ffrlib import catalogue, data, jobs, measure, plan, store
from ffrlib.spec import Pruning


@pytest.fixture(autouse=True)
def _full_grids(monkeypatch, results):
    """Five strengths for every arm, whatever the pilot has chosen so far; an empty store."""
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


def keep(spec, seconds_an_epoch, **made):
    seconds = seconds_an_epoch * spec.recipe.epochs
    made = store.provenance(spec, "cpu", torch.float32, "one", "digest", seconds) | made
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
    minutes = (count - 1) * (plain.recipe.epochs + jobs.FORWARD * measure.passes(500, 297) / 1000)
    text = told("quick", "1_hgsr_criteria")
    assert f"{count - 1} of {count} runs to make" in text and "and more" not in text
    assert f"together {minutes:.1f} min (3 days);" in text
    assert f"{minutes / 4:.1f} min" in told("quick", "1_hgsr_criteria", 4)


def test_a_net_without_a_record_is_priced_by_its_macs(monkeypatch):
    small, large = (catalogue.BASES["laptop"][net] for net in ("resnet20", "resnet56"))
    sizes = [plan.size("cifar10", net, "A", 1.0) for net in ("resnet20", "resnet56")]
    assert sizes == [40551040, 125485696]
    keep(small, 60)
    later = replace(large, pruning=Pruning("l1_norm", "macs_share", 0.5, epochs=1))
    monkeypatch.setattr(catalogue, "specs", lambda scale, name, seeds=0: [small, large, later])
    text = told("laptop", "5_ffr_pruning")
    measured = (
        jobs.FORWARD * measure.passes(10000, 5000) + (10000 + 2 * 0.5 * 15000) * 0.4
    ) / 20000  # of the net, and of its half
    assert f"2 of 3 runs to make, {(2 + 0.5 + measured) * sizes[1] / sizes[0]:.1f} min priced by MACs: resnet56" in text


def test_a_gpu_prices_no_cpu_and_has_no_workers(monkeypatch):
    small, large = catalogue.BASES["laptop"]["resnet20"], catalogue.BASES["paper"]["resnet20"]
    monkeypatch.setattr(catalogue, "specs", lambda scale, name, seeds=0: [large, replace(large, seed=1)])
    keep(large, 0.6, device="some card")
    keep(small, 60)
    epochs = large.recipe.epochs + jobs.FORWARD * measure.passes(10000, 5000) / 45000
    for device, workers, minutes in (("cpu", 2, epochs * 60 * 45 / 20 / 60 / 2), ("cuda", 2, epochs * 0.6 / 60)):
        text = " ".join(plan.plan("paper", "4_ffr_flow", workers, device=device).split())
        assert f"1 of 2 runs to make, {minutes:.1f} min" in text and ("worker" in text) == (device == "cpu")
    with pytest.raises(ValueError, match="device is 'gpu'"):
        plan.plan("paper", device="gpu")


def test_a_scale_without_records_is_priced_by_the_others(monkeypatch):
    small, large = catalogue.BASES["laptop"]["resnet20"], catalogue.BASES["paper"]["resnet20"]
    monkeypatch.setattr(catalogue, "specs", lambda scale, name, seeds=0: [large, replace(large, data="cifar100")])
    assert "no record tells the speed: resnet20" in told("paper", "4_ffr_flow")
    keep(small, 60)  # a minute for 20,000 images
    text = told("paper", "4_ffr_flow")
    macs = [plan.size(data, "resnet20", "A", 1.0) for data in ("cifar10", "cifar100")]
    images = 100 * 45000 + jobs.FORWARD * measure.passes(10000, 5000)
    minutes = images / 20000 * (1 + macs[1] / macs[0])
    assert f"2 of 2 runs to make, {minutes:.1f} min priced by MACs: resnet20" in text
    assert "at the speed of the other scales' records" in text
    keep(large, 10)
    assert f"1 of 2 runs to make, {images / 45000 * 10 / 60 * macs[1] / macs[0]:.1f} min" in told("paper", "4_ffr_flow")
    minutes = images / 45000 * 10 / 60 * (1 + macs[1] / macs[0])
    assert f"With what is stored, this list of runs takes {minutes:.1f} min." in told("paper", "4_ffr_flow")
    keep(replace(large, seed=1), 90)  # the median is five times as slow
    hours = f"With what is stored, this list of runs takes {5 * minutes / 60:.1f} hours."
    assert hours in told("paper", "4_ffr_flow")
    assert "other scales" not in told("paper", "4_ffr_flow")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet", "digits"])
def test_the_images_of_a_set_are_those_that_are_trained_on(name):
    try:
        images = data.load(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert len(images.train[1]) == plan.TRAINING_IMAGES[name]
    assert (len(images.test[1]), len(images.validation[1])) == plan.MEASURED[name]


def test_an_arm_without_strengths_is_named(monkeypatch):
    monkeypatch.setattr(catalogue, "strengths", lambda scale, net, arm: [])
    assert "no strength chosen yet, so not counted: resnet20: control, length, curvature, both" in told("laptop")


def test_a_number_of_seeds_is_priced_as_it_would_run(results):
    counts = [len(catalogue.specs("quick", "4_ffr_flow", seeds)) for seeds in (1, 0)]
    for seeds, count in zip((1, 0), counts):
        assert f"{count} of {count} runs to make" in " ".join(plan.plan("quick", "4_ffr_flow", 1, seeds).split())
    assert counts[0] * 4 < counts[1]


def test_the_plan_of_one_net_leaves_the_others_out():
    text = plan.plan("laptop", net="resnet20")
    assert "2_hgsr_structure      0 of    0" in text and "speed: resnet20" in text and "alexnet" not in text
