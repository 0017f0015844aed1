"""Measures against explicit loops, torch's own counter, and nets whose answer is known."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ffrlib import data, measure, models
from ffrlib.pruning import budgets, criteria, removal
from ffrlib.regularizers import flow

KEYS = {
    "test_accuracy", "validation_accuracy", "test_loss", "zeroed_test_accuracy", "unstructured_sparsity",
    "zero_kernels", "zero_channels", "zero_output_channels", "removable_channels", "silent_channels", "layer_sparsity",
    "layer_silent", "parameters", "macs", "parameters_left", "macs_left", "threshold_sweep", "removable_weight_share",
    "removable_channel_share", "weights_removed_test_accuracy", "channels_removed_test_accuracy",
    "cut_30_test_accuracy", "cut_50_test_accuracy", "flow_length", "flow_curvature", "straightness", "turning_angle",
    "activation_mean",
}  # fmt: skip


def net(name="digits_cnn", shortcut=None, factor=1.0, seed=0):
    torch.manual_seed(seed)
    return models.build(name, shortcut=shortcut, widths=models.scaled_widths(name, factor, shortcut))


@pytest.fixture(scope="module")
def trained(digits):
    """A net that a few plain steps have brought far above chance."""
    model = net()
    x, y = data.normalise(digits.train[0], digits.mean, digits.std), digits.train[1]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for part in torch.arange(1000).repeat(6).split(100):
        optimiser.zero_grad()
        cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("name, shortcut", [("digits_cnn", None), ("resnet20", "B"), ("resnet18_tiny", None),
                                            ("alexnet_small", None)])  # fmt: skip
def test_macs_are_half_of_torchs_flops(name, shortcut):
    model = models.build(name, shortcut=shortcut)
    shape = {"digits_cnn": (1, 8, 8), "resnet18_tiny": (3, 64, 64)}.get(name, (3, 32, 32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    assert 2 * measure.macs(model, shape) == counter.get_total_flops()
    assert measure.parameters(model) == sum(p.numel() for p in model.parameters())


def test_published_macs():
    assert measure.macs(models.build("resnet56", shortcut="A"), (3, 32, 32)) == 125_485_696
    assert measure.macs(models.build("vgg16"), (3, 32, 32)) == 313_201_664


def test_accuracy_equals_a_loop(trained, digits):
    trained.train()
    trained.norms[0].eval()
    images, labels = digits.test
    right = loss = 0
    with torch.no_grad():
        other = removal.mask(trained, {}).eval()
        for image, label in zip(images, labels):
            logits = other(((image / 255 - digits.mean[:, None, None]) / digits.std[:, None, None])[None])
            right += int(logits.argmax() == label)
            loss += float(cross_entropy(logits, label[None]))
    for batch in (0, 7, 499, 500, 1000):
        found = measure.accuracy(trained, images, labels, digits.mean, digits.std, batch=batch)
        assert found[0] == pytest.approx(100 * right / len(labels), abs=1e-9)
        assert found[1] == pytest.approx(loss / len(labels), rel=1e-4)
    assert found[0] > 60 and trained.training and not trained.norms[0].training


def test_accuracy_in_bfloat16_and_float64(trained, digits):
    images, labels = digits.validation
    x = data.normalise(images, digits.mean, digits.std)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = trained.eval()(x).float()
    found = measure.accuracy(trained, images, labels, digits.mean, digits.std, torch.bfloat16, batch=len(labels))
    assert found[0] == pytest.approx(100 * float((logits.argmax(1) == labels).double().mean()), abs=1e-9)
    assert found[1] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    single = measure.accuracy(trained, images, labels, digits.mean, digits.std)
    double = measure.accuracy(
        removal.mask(trained, {}).double(), images, labels, digits.mean, digits.std, torch.float64
    )
    assert found[1] != single[1] and double[1] == pytest.approx(single[1], rel=1e-5) and double[1] != single[1]


@settings(max_examples=8)
@given(st.floats(0, 0.5), st.integers(0, 5))
def test_sparsity_equals_loops(threshold, seed):
    model = net("resnet20", "B", 0.25, seed)
    found = measure.sparsity(model, threshold)
    small = total = kernels = dead = 0
    layers = []
    for _, conv in models.counted_convolutions(model):
        w = conv.weight.detach().abs()
        layers.append(int((w < threshold).sum()) / w.numel())
        small, total = small + int((w < threshold).sum()), total + w.numel()
        for kernel in w.flatten(0, 1):
            kernels, dead = kernels + 1, dead + int(float(kernel.max()) < torch.tensor(threshold))
    assert found["weights"] == pytest.approx(small / total, abs=1e-12)
    assert found["layers"] == pytest.approx(layers, abs=1e-12)
    assert found["kernels"] == pytest.approx(dead / kernels, abs=1e-12)


@torch.no_grad()
def calibrated(model, images, mean, std):
    """The net with batch norms that standardise each channel on these images, so that none is silent by chance."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    model.train()(data.normalise(images, mean, std))
    return model.eval()


@torch.no_grad()
def test_kinds_of_channels_are_told_apart(digits):
    model = calibrated(net(), digits.train[0], digits.mean, digits.std)
    model.convs[1].weight[0] = 1e-4  # zero, but its shift writes a constant: neither removable nor silent
    model.norms[1].bias[0] = 1.0
    model.norms[2].weight[3] = model.norms[2].bias[3] = 0  # removable, its weights alive; silent too
    model.norms[3].bias[5] = -50  # silent, alive
    model.convs[5].weight[:, 7] = -1e-4  # read by nobody: channel 7 of convs.4 counts as zero
    found = measure.channel_kinds(model, digits.train[0], digits.mean, digits.std)
    widths = model.layout.widths
    assert found["zero_channels"] == pytest.approx(2 / sum(widths))
    assert found["zero_output_channels"] == pytest.approx(1 / sum(widths)), "those that are read by nobody do not count"
    assert found["removable_channels"] == pytest.approx(1 / sum(widths))
    assert found["silent_channels"] == pytest.approx(2 / sum(widths))
    assert found["layer_silent"] == pytest.approx([0, 0, 1 / widths[2], 1 / widths[3], 0, 0])


@torch.no_grad()
def test_a_stream_channel_is_silent_only_in_all_its_features():
    images, prepare = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), (torch.full((3,), 0.5), torch.ones(3))
    model = calibrated(net("resnet20", "B"), images, *prepare)
    assert not any(flags.any() for flags in measure.silent_channels(model, images, *prepare))
    for name in ("bn1", *(f"layer1.{k}.bn2" for k in range(3))):
        model.get_submodule(name).bias[1] = -99  # the block's input being silent, the sum is silent too
    model.layer2[0].bn2.bias[2] = -99
    found = measure.channel_kinds(model, images, *prepare)
    assert found["silent_channels"] == pytest.approx(1 / sum(g.size for g in model.groups()))
    assert sum(f > 0 for f in found["layer_silent"]) == 5


def test_silence_is_asked_of_all_images_only_where_there_is_any(digits):
    model, batches = calibrated(net(), digits.train[0], digits.mean, digits.std), []
    handle = model.convs[0].register_forward_pre_hook(lambda m, args: batches.append(len(args[0])))
    assert not torch.cat(measure.silent_channels(model, digits.train[0], digits.mean, digits.std, batch=400)).any()
    assert batches == [400]
    with torch.no_grad():
        model.norms[0].bias[2] = -99
    silent = measure.silent_channels(model, digits.train[0], digits.mean, digits.std, batch=400)
    assert sum(batches) == 1400 and silent[0].tolist() == [i == 2 for i in range(16)]
    handle.remove()


def test_threshold_sweep_against_zeroing_by_hand(trained, digits):
    asked = []

    def test(model):
        asked.append(model)
        return measure.accuracy(model, *digits.test, digits.mean, digits.std)[0]

    found = measure.threshold_sweep(trained, test)
    assert found["threshold"] == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    for i, t in enumerate(found["threshold"]):
        model = removal.mask(trained, {})
        with torch.no_grad():
            for conv in model.convs:
                conv.weight[conv.weight.abs() < t] = 0
        assert found["test_accuracy"][i] == measure.accuracy(model, *digits.test, digits.mean, digits.std)[0]
        assert found["sparsity"][i] == measure.sparsity(trained, t)["weights"]
    assert found["sparsity"] == sorted(found["sparsity"]) and len(asked) == len(set(found["sparsity"]))


@settings(max_examples=60)
@given(st.floats(0, 1))
def test_removable_share_finds_the_edge(edge):
    asked = []
    found = measure.removable_share(None, lambda _, share: asked.append(share) or share, lambda share: share <= edge)
    assert found <= edge < found + 0.2 / 2**3 + 1e-9 or (edge == 1 and found == pytest.approx(0.975))
    assert len(asked) <= 7


def test_a_share_that_cannot_be_cut_does_not_hold(trained):
    with pytest.raises(ValueError, match="at most"):
        measure.cut_channels(trained, 0.96)
    assert 0.9 <= measure.removable_share(trained, measure.cut_channels, lambda net: True) < 0.96


@settings(max_examples=15)
@given(st.floats(0, 1))
def test_cut_weights_zeroes_the_smallest(share):
    model = net()
    sizes = torch.randperm(sum(c.weight.numel() for c in model.convs), generator=torch.Generator().manual_seed(0)) + 1
    with torch.no_grad():  # no two alike: of equal ones, whether one or both go is open
        for conv, own in zip(model.convs, sizes.split([c.weight.numel() for c in model.convs])):
            conv.weight.copy_((own / len(sizes) * (-1) ** own).view_as(conv.weight))
    cut = measure.cut_weights(model, share)
    before = torch.cat([c.weight.detach().abs().flatten() for c in model.convs])
    after = torch.cat([c.weight.detach().abs().flatten() for c in cut.convs])
    gone = after == 0
    assert int(gone.sum()) == min(round(share * len(before)), len(before) - 1)
    assert not gone.any() or float(before[gone].max()) < float(before[~gone].min())


def test_removable_shares_of_a_net_are_what_they_say(trained, digits):
    def validate(model):
        return measure.accuracy(model, *digits.validation, digits.mean, digits.std)[0]

    least = validate(trained) - 1
    for cut in (measure.cut_weights, measure.cut_channels):
        share = measure.removable_share(trained, cut, lambda net: validate(net) >= least)
        assert share == 0 or validate(cut(trained, share)) >= least
        assert validate(cut(trained, share + 0.025)) < least


@pytest.mark.parametrize("tap", [None, "pre_activation"])
def test_flow_metrics_equal_those_of_one_batch(tap, digits):
    model, images = net(), digits.validation[0]
    found = measure.flow_metrics(model, images, digits.mean, digits.std, tap=tap, batch=100)
    with torch.no_grad():
        features = model.eval().flow(data.normalise(images, digits.mean, digits.std), tap)[1]
    expected = {
        "flow_length": flow.flow_penalty(features, length=1.0),
        "flow_curvature": flow.flow_penalty(features, curvature=1.0),
        "straightness": flow.straightness(features),
        "turning_angle": flow.turning_angle(features),
        "activation_mean": sum(f.abs().mean() for f in features) / len(features),
    }
    assert found == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)


def test_flow_metrics_without_pairs_are_nan(colours):
    found = measure.flow_metrics(net("alexnet_small"), colours.validation[0], colours.mean, colours.std)
    assert found["flow_length"] > 0 and math.isnan(found["flow_curvature"]) and found["activation_mean"] > 0


def test_report(trained, digits):
    trained.train()
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    found = measure.report(trained, digits)
    assert set(found) == KEYS
    json.dumps(found, allow_nan=False)
    assert all(torch.equal(v, state[k]) for k, v in trained.state_dict().items()) and trained.training
    prepare = (digits.mean, digits.std)
    assert found["test_accuracy"] == measure.accuracy(trained, *digits.test, *prepare)[0]
    assert found["validation_accuracy"] == measure.accuracy(trained, *digits.validation, *prepare)[0]
    assert found["zeroed_test_accuracy"] == found["threshold_sweep"]["test_accuracy"][3]
    assert found["unstructured_sparsity"] == found["threshold_sweep"]["sparsity"][3]
    assert found["macs_left"] == found["macs"] and found["parameters_left"] == found["parameters"]
    for what, cut in (("weights", measure.cut_weights), ("channels", measure.cut_channels)):
        by_hand = measure.accuracy(cut(trained, found[f"removable_{what[:-1]}_share"]), *digits.test, *prepare)[0]
        assert found[f"{what}_removed_test_accuracy"] == by_hand
    for share in (30, 50):
        keep, _ = budgets.choose_keep(trained, criteria.l1_norm(trained), "channel_share", share / 100)
        by_hand = measure.accuracy(removal.mask(trained, keep), *digits.test, *prepare)[0]
        assert found[f"cut_{share}_test_accuracy"] == by_hand


def test_report_counts_what_can_go(trained, digits):
    model = removal.mask(trained, {"convs.1": torch.arange(16) > 3, "convs.5": torch.arange(32) != 0})
    found, cut = measure.report(model, digits), removal.shrink(model, removal.needed(model))
    assert found["removable_channels"] == pytest.approx(5 / sum(model.layout.widths)) == found["zero_channels"]
    assert (found["parameters_left"], found["macs_left"]) == (measure.parameters(cut), measure.macs(cut, (1, 8, 8)))
    assert found["macs_left"] < found["macs"]


@pytest.mark.parametrize("name, shortcut", [("resnet20", "A"), ("resnet20", "B"), ("vgg11_small", None)])
def test_report_of_other_nets(name, shortcut, colours):
    model = net(name, shortcut, 0.25)
    found = measure.report(model, colours, torch.bfloat16, "pre_activation")
    assert set(found) == KEYS and len(found["layer_sparsity"]) == len(model.layout.widths) == len(found["layer_silent"])
    assert not math.isnan(found["flow_length"])


def test_latency_times_the_forward_pass(monkeypatch):
    model, passes = net(), []
    model.head.register_forward_hook(lambda m, args, out: passes.append((m.training, len(out))))
    found = measure.latency(model, 3, (1, 8, 8), seconds=0, most=50)
    assert set(found) == {"median", "spread"} and found["median"] > 0 and found["spread"] >= 0
    assert passes == [(False, 3)] * 10 and model.training
    clock = iter(range(100))  # a clock that ticks once each time it is read: every pass takes one second
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure.latency(model, 1, (1, 8, 8), seconds=0) == {"median": 1000.0, "spread": 0.0}


@pytest.mark.parametrize("name, shortcut", [("digits_cnn", None), ("resnet20", "A")])
def test_pruned_report(name, shortcut, digits, colours):
    model, images = net(name, shortcut), digits if name == "digits_cnn" else colours
    model.load_state_dict(removal.mask(model, {}).state_dict())
    keep, _ = budgets.choose_keep(model, criteria.l1_norm(model), "channel_share", 0.5)
    cut, shape = removal.shrink(model, keep), tuple(images.train[0].shape[1:])
    found = measure.pruned_report(model, cut, keep, images)
    assert (found["parameters"], found["macs"]) == (measure.parameters(model), measure.macs(model, shape))
    assert (found["parameters_left"], found["macs_left"]) == (measure.parameters(cut), measure.macs(cut, shape))
    assert found["channels_left"] == sum(int(k.sum()) for k in keep.values())
    assert found["widths"] == [c.out_channels for _, c in models.counted_convolutions(cut)]
    assert 0 <= found["worst_deviation"] <= 1e-5
    timed = {f"batch_{n}{when}{what}" for n in (1, 64) for when in ("", "_before") for what in ("", "_spread")}
    assert set(found["latency_ms"]) == timed and all(v >= 0 for v in found["latency_ms"].values())
    assert isinstance(model, nn.Module) and model.training
