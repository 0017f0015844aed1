"""The nets: counts of the papers to the last digit, oracles, flow, initialisation, groups."""

import copy
from dataclasses import asdict

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ffrlib import models, spec
from ffrlib.models.layers import PadShortcut
from ffrlib.models.resnet import Projection

# name, shortcut, parameters, MACs at 32x32 (digits: 8x8), weights of the counted convolutions; None: not published
COUNTS = [
    ("resnet20", "A", 269_722, 40_551_040, None),
    ("resnet32", "A", 464_154, 68_862_592, None),
    ("resnet56", "A", 853_018, 125_485_696, None),
    ("resnet110", "A", 1_727_962, 252_887_680, None),
    ("resnet20", "B", 272_474, 40_813_184, None),
    ("vgg16", None, 14_728_266, 313_201_664, None),
    ("vgg19", None, 20_040_522, 398_136_320, None),
    ("alexnet_small", None, 63_674, None, 12_888),
    ("vgg11_small", None, 611_434, None, 576_432),
    ("vgg11_small_bn", None, 612_810, None, 576_432),
    ("resnet18_small", None, 177_362, None, 175_512 - 2_688),  # the papers' number holds the three 1x1 projections
    ("resnet34_small", None, 336_114, None, 333_336 - 2_688),
    # by hand: 9 (16 + 4 * 16^2 + 16 * 32) weights, 2 (5 * 16 + 32) of batch norm, 32 * 10 + 10 of the linear layer
    ("digits_cnn", None, 13_968 + 224 + 330, 9 * (64 * 16 + 16 * 4 * 256 + 4 * 512) + 320, 13_968),
]
EVERY = [(name, s) for name in models.NAMES for s in (("A", "B") if name in models.CIFAR_RESNETS else (None,))]
THIN = [(name, s) for name, s in EVERY if name not in ("resnet110", "vgg19")]


def images(name, n=2, **like):
    return torch.randn(n, *((1, 8, 8) if name == "digits_cnn" else (3, 32, 32)), **like)


def thin(name, shortcut=None, factor=0.125):
    return models.build(name, shortcut=shortcut, widths=models.scaled_widths(name, factor, shortcut))


@pytest.mark.parametrize("name, shortcut, parameters, macs, weights", COUNTS)
def test_counts_of_the_papers(name, shortcut, parameters, macs, weights):
    model = models.build(name, shortcut=shortcut).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    convs = models.counted_convolutions(model)
    assert tuple(conv.out_channels for _, conv in convs) == model.layout.widths
    if weights:
        assert sum(conv.weight.numel() for _, conv in convs) == weights
    if macs:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images(name, 1))
        assert counter.get_total_flops() == 2 * macs


def copied(ours: nn.Module, theirs: nn.Module) -> None:
    """Gives our net all numbers of another one whose state has the same order."""
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))


def roughen(model: nn.Module) -> nn.Module:
    """Batch norms and biases away from their start values, where many mistakes would not show."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
            elif getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("ours, theirs", [("resnet18_small", "resnet18"), ("resnet34_small", "resnet34")])
def test_small_resnets_are_torchvisions_with_other_widths(ours, theirs):
    torch.manual_seed(0)
    oracle = roughen(getattr(torchvision.models, theirs)(num_classes=7)).eval()
    model = models.build(ours, 7, widths=models.scaled_widths(ours, 8)).eval()
    copied(model, oracle)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 6, 8])
def test_a_narrow_projection_has_the_gradient_of_a_strided_convolution(channels):
    """With the stride inside, oneDNN wrote past its workspace: a crash or a wrong gradient for few channels."""
    way = Projection(channels, 2 * channels).to(memory_format=torch.channels_last).eval()
    x = torch.randn(32, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    (way(x) / len(x)).square().sum().backward()
    weight = way.conv.weight.detach().double().requires_grad_()
    y = nn.functional.conv2d(x.double().contiguous(), weight, stride=2) / (1 + way.bn.eps) ** 0.5  # a fresh batch norm
    (y / len(x)).square().sum().backward()
    torch.testing.assert_close(way.conv.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)


def test_tiny_resnet_is_torchvisions_with_a_small_stem():
    torch.manual_seed(0)
    oracle = torchvision.models.resnet18(num_classes=200)
    oracle.conv1, oracle.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    model = models.build("resnet18_tiny", 200).eval()
    copied(model, roughen(oracle).eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x), rtol=1e-4, atol=1e-4)


def test_vgg16_convolutions_are_torchvisions():
    torch.manual_seed(0)
    oracle = roughen(torchvision.models.vgg16_bn(weights=None, init_weights=False).features).eval()
    model = models.build("vgg16").eval()
    for ours, kind in ((model.convs, nn.Conv2d), (model.norms, nn.BatchNorm2d)):
        for mine, other in zip(ours, (m for m in oracle if isinstance(m, kind)), strict=True):
            mine.load_state_dict(other.state_dict())
    x = images("vgg16")
    model.head = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x).flatten(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name, first", [("alexnet_small", "dropout"), ("vgg11_small", "linear")])
def test_heads_of_hgsr(name, first):
    kinds = [type(module).__name__.lower() for module in models.build(name).head]
    block = ["dropout", "linear", "relu"] if first == "dropout" else ["linear", "relu", "dropout"]
    assert kinds == [*block, *block, "linear"]
    assert [m.out_features for m in models.build(name, 7).head if isinstance(m, nn.Linear)] == [128, 128, 7]


# features, neighbours of one shape, triples of one shape
FLOWS = [
    ("vgg16", None, "post_activation", 13, 8, 3),
    ("vgg16", None, "pre_activation", 13, 8, 3),
    ("alexnet_small", None, "post_activation", 5, 1, 0),
    ("vgg11_small", None, "post_activation", 8, 3, 0),
    ("resnet20", "A", "block_output", 10, 7, 4),
    ("resnet20", "B", "post_activation", 19, 16, 13),
    ("resnet56", "A", "block_output", 28, 25, 22),
    ("resnet18_small", None, "block_output", 9, 5, 1),
    ("digits_cnn", None, "post_activation", 6, 3, 2),
]


@pytest.mark.parametrize("name, shortcut, tap, features, pairs, triples", FLOWS)
def test_flow_facts(name, shortcut, tap, features, pairs, triples):
    model = models.build(name, shortcut=shortcut).eval()
    with torch.no_grad():
        shapes = [f.shape for f in model.flow(images(name, 1), tap)[1]]
    same = [a == b for a, b in zip(shapes, shapes[1:])]
    assert (len(shapes), sum(same), sum(a and b for a, b in zip(same, same[1:]))) == (features, pairs, triples)
    blocks = name.startswith("resnet")
    assert model.default_tap == ("block_output" if blocks else "post_activation")


@pytest.mark.parametrize("name, shortcut", THIN)
def test_flow_gives_the_logits_of_forward_and_untouched_features(name, shortcut):
    torch.manual_seed(0)
    model = roughen(thin(name, shortcut)).eval()
    x = images(name)
    with torch.no_grad():
        logits = model(x)
        taps = {tap: model.flow(x, tap) for tap in model.taps}
        default = model.flow(x)[1]
    assert all(torch.equal(out, logits) for out, _ in taps.values())
    assert all(torch.equal(a, b) for a, b in zip(default, taps[model.default_tap][1], strict=True))
    before, after = taps["pre_activation"][1], taps["post_activation"][1]
    assert any((b < 0).any() for b in before)  # nothing was rectified in place
    assert all(torch.equal(b.relu(), a) for b, a in zip(before, after, strict=True))
    if "block_output" in taps:
        blocks = taps["block_output"][1]
        assert all(torch.equal(a, b) for a, b in zip(blocks[1:], after[2::2], strict=True))


@pytest.mark.parametrize("name, shortcut", THIN)
def test_shortcuts_lead_from_shape_to_shape(name, shortcut):
    model = thin(name, shortcut).eval()
    with torch.no_grad():
        for tap in model.taps:
            features, steps = model.flow(images(name), tap)[1], model.shortcuts(tap)
            assert len(steps) == len(features) - 1
            for a, b, step in zip(features, features[1:], steps):
                if step is not None:
                    assert a.shape != b.shape and step(a).shape == b.shape
                elif tap == "block_output":
                    assert a.shape == b.shape
    if not hasattr(model, "stages"):
        assert all(step is None for step in model.shortcuts())
    else:
        assert sum(step is not None for step in model.shortcuts()) == len(model.stages) - 1


def test_shortcut_does_not_fit_behind_cut_inner_channels():
    widths = list(models.scaled_widths("resnet20", 1))
    widths[7] = 5  # the inner channels of layer2.0
    steps = models.build("resnet20", shortcut="A", widths=widths).shortcuts("post_activation")
    assert [n for n, step in enumerate(steps) if step is not None] == [12]  # only at layer3.0


def test_option_a_pads_a_quarter_of_the_later_width_on_each_side():
    x = torch.randn(2, 16, 7, 7)
    out = models.build("resnet20", shortcut="A").layer2[0].shortcut(x)
    want = torch.zeros(2, 32, 4, 4)
    want[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(out, want)


def test_maps_move_channels():
    x = torch.randn(2, 3, 4, 4)
    out = PadShortcut(3, 4, (2, -1, 0, -1))(x)
    assert torch.equal(out[:, [0, 2]], x[:, [2, 0], ::2, ::2])
    assert not out[:, [1, 3]].any()
    for bad in ((0, 1, 2), (0, 0, 1, 2), (0, 1, 2, 3), (-2, 0, 1, 2)):
        with pytest.raises(ValueError, match="map of a shortcut"):
            PadShortcut(3, 4, bad)


def test_projection_as_a_step_of_the_flow_leaves_the_statistics_alone():
    torch.manual_seed(0)
    model = models.build("resnet20", shortcut="B").train()
    x = torch.randn(4, 16, 8, 8)
    step = [s for s in model.shortcuts() if s is not None][0]
    before = copy.deepcopy(model.state_dict())
    out = step(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(out, model.layer2[0].shortcut(x))
    assert not torch.equal(model.layer2[0].shortcut.bn.running_mean, before["layer2.0.shortcut.bn.running_mean"])


@pytest.mark.parametrize("name, shortcut", THIN)
def test_groups_name_each_writer_and_reader_once(name, shortcut):
    model = thin(name, shortcut)
    groups = model.groups()
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(w for g in groups for w in g.writers) == sorted(convs)
    assert sorted(n for g in groups for n in g.norms if n) == sorted(norms)
    assert sorted(r for g in groups for r in g.readers) == sorted([*convs[1:], linear[0]])
    assert len({g.name for g in groups}) == len(groups)
    for g in groups:
        assert {model.get_submodule(w).out_channels for w in g.writers} == {g.size}
        assert {model.get_submodule(n).num_features for n in g.norms if n} <= {g.size}
        for reader in map(model.get_submodule, g.readers):
            assert (reader.in_channels if isinstance(reader, nn.Conv2d) else reader.in_features) % g.size == 0
        assert g.kind == ("stream" if g.name.startswith("stage") else "inner")


def test_streams_of_a_resnet():
    streams = {s: [g for g in models.build("resnet20", shortcut=s).groups() if g.kind == "stream"] for s in "AB"}
    assert streams["A"][0].writers == ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2")
    assert streams["A"][1].writers == ("layer2.0.conv2", "layer2.1.conv2", "layer2.2.conv2")
    assert streams["B"][1].writers == ("layer2.0.shortcut.conv", *streams["A"][1].writers)
    assert streams["B"][1].norms[0] == "layer2.0.shortcut.bn"
    assert streams["A"][2].readers == ("layer3.1.conv1", "layer3.2.conv1", "linear")
    assert streams["B"][0].readers[-2:] == ("layer2.0.conv1", "layer2.0.shortcut.conv")
    carried = models.carried(models.build("resnet20", shortcut="A"))
    assert carried[1] == ("stage2", "stage3", (-1,) * 16 + tuple(range(32)) + (-1,) * 16)
    assert models.carried(models.build("resnet20", shortcut="B")) == []


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(THIN), st.floats(0.05, 0.5), st.integers(1, 20))
def test_layout_rebuilds_any_width(which, factor, classes):
    name, shortcut = which
    widths = models.scaled_widths(name, factor, shortcut)
    model = models.build(name, classes, shortcut, widths).eval()
    again = models.build(**asdict(model.layout)).eval()
    assert again.layout == model.layout and again.layout.widths == widths
    again.load_state_dict(model.state_dict())
    x = images(name, 1)
    with torch.no_grad():
        assert model(x).shape == (1, classes) and torch.equal(model(x), again(x))


@pytest.mark.parametrize("name", spec.MODELS)
def test_half_of_the_channels_of_the_narrowest_net_can_be_cut(name):
    widths = models.scaled_widths(name, spec.NARROWEST)
    assert sum(w - 1 for w in widths) >= sum(widths) / 2  # one channel of each layer stays


def test_scaled_widths():
    assert models.scaled_widths("digits_cnn", 1) == (16, 16, 16, 16, 16, 32)
    assert models.scaled_widths("alexnet_small", 0.25) == (2, 4, 8, 4, 4)
    assert models.scaled_widths("alexnet_small", 0.0625) == (1, 1, 2, 1, 1)  # half rounds up, never to nothing
    assert models.scaled_widths("resnet20", 2, "A")[::6] == (32, 32, 64, 128)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"name": "vgg61"}, "model is 'vgg61'.*did you mean 'vgg1"),
        ({"name": "resnet20"}, "shortcut of resnet20 is None, which is none of 'A', 'B'"),
        ({"name": "vgg16", "shortcut": "A"}, "shortcut of vgg16"),
        ({"name": "vgg16", "widths": (1, 2)}, "13 of them"),
        ({"name": "digits_cnn", "widths": (1, 1, 0, 1, 1, 1)}, "each 1 or more"),
        ({"name": "vgg16", "maps": ((0,),)}, "maps is"),
        ({"name": "resnet20", "shortcut": "A", "maps": ((0,),)}, "number of maps"),
        ({"name": "resnet20", "shortcut": "B", "widths": (16, 16, 15) + (16,) * 16}, "width of layer1.0.conv2 is 15"),
        ({"name": "digits_cnn", "num_classes": 0}, "num_classes"),
    ],
)
def test_build_refuses_in_one_sentence(wrong, message):
    with pytest.raises(ValueError, match=message):
        models.build(**wrong)


def test_taps_are_checked():
    with pytest.raises(ValueError, match="tap of vgg16 is 'block_output'.*'post_activation'"):
        thin("vgg16").flow(images("vgg16"), "block_output")
    with pytest.raises(ValueError, match="none of"):
        thin("resnet20", "A").shortcuts("after")


@pytest.mark.parametrize("name, shortcut", THIN)
def test_initialisation_follows_the_seed_alone(name, shortcut):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = thin(name, shortcut).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        second = thin(name, shortcut).state_dict()
    other = thin(name, shortcut).state_dict()
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert not all(torch.equal(v, other[k]) for k, v in first.items())


@pytest.mark.parametrize(
    "name, shortcut, layer, deviation",
    [
        ("vgg11_small", None, "convs.5", (2 / (9 * 128)) ** 0.5),
        ("vgg16", None, "convs.2", (2 / (9 * 128)) ** 0.5),
        ("vgg16", None, "head.0", 0.01),
        ("resnet18_small", None, "layer3.0.conv1", (2 / (9 * 32)) ** 0.5),
        ("resnet18_small", None, "layer4.0.shortcut.conv", (2 / 64) ** 0.5),
        ("resnet18_small", None, "linear", (1 / (3 * 64)) ** 0.5),
        ("resnet20", "A", "layer3.0.conv1", (2 / (9 * 32)) ** 0.5),  # fan_in: 32 inputs, not 64 outputs
        ("resnet20", "A", "linear", (2 / 64) ** 0.5),
        ("alexnet_small", None, "convs.2", (1 / (3 * 9 * 16)) ** 0.5),  # torch's own: uniform, variance 1 / (3 fan_in)
    ],
)
def test_initial_deviations(name, shortcut, layer, deviation):
    torch.manual_seed(0)
    module = models.build(name, shortcut=shortcut).get_submodule(layer)
    assert module.weight.std().item() == pytest.approx(deviation, rel=0.08)
    if name.startswith("vgg"):
        assert not module.bias.any()


def test_dropout_draws_from_its_generator():
    drop, x = models.Dropout(0.25), torch.ones(2000, 10)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drop.generator = torch.Generator().manual_seed(5)
    first = drop(x)
    assert torch.equal(torch.get_rng_state(), state)  # the default generator was not touched
    drop.generator.manual_seed(5)
    assert torch.equal(drop(x), first) and not torch.equal(drop(x), first)
    drop.generator.manual_seed(5)
    assert torch.equal(drop(x.double()) > 0, first > 0)  # the same units in double precision
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert first.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


def test_dropout_is_no_state_and_can_be_copied():
    model = models.build("vgg11_small")
    assert not any("generator" in key for key in model.state_dict())
    twin = copy.deepcopy(model)
    x = images("vgg11_small")
    assert torch.equal(twin.eval()(x), model.eval()(x))
    torch.manual_seed(1)
    a = model.train()(x)
    torch.manual_seed(1)
    assert torch.equal(a, twin.train()(x)) and not torch.equal(a, twin(x))


def test_larger_images_fit_every_colour_net():
    with torch.no_grad():
        for name, shortcut in THIN:
            if name != "digits_cnn":
                assert thin(name, shortcut).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 10)
