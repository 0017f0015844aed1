"""Exact removal: the shrunk net is the masked one, for every family and any cut."""

import zipfile
from collections import Counter
from importlib.metadata import version

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ffrlib import data, measure, models
from ffrlib.pruning import criteria, removal
from ffrlib.spec import FlowPenalty, RunSpec
from ffrlib.training import Trainer

EVERY = [(name, s) for name in models.NAMES for s in (("A", "B") if name in models.CIFAR_RESNETS else (None,))]
# One or two of each family for the random cuts, thin where the whole net is big.
FAMILIES = [
    ("digits_cnn", None, 1),
    ("alexnet_small", None, 1),
    ("vgg11_small", None, 0.25),
    ("vgg11_small_bn", None, 0.25),
    ("vgg16", None, 0.0625),
    ("resnet18_small", None, 1),
    ("resnet34_small", None, 0.5),
    ("resnet18_tiny", None, 0.0625),
    ("resnet20", "A", 0.5),
    ("resnet20", "B", 0.5),
    ("resnet32", "A", 0.25),
    ("resnet56", "B", 0.25),
]


def net(name, shortcut=None, factor=1.0, seed=0, dtype=torch.float64):
    """In eval mode, its biases and batch norms away from their start values."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = models.build(name, shortcut=shortcut, widths=models.scaled_widths(name, factor, shortcut))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
            elif getattr(module, "bias", None) is not None:
                module.bias.normal_(0, 0.1)
    return model.to(dtype).eval()


def images(model, n=2, seed=0):
    shape = (1, 8, 8) if model.layout.name == "digits_cnn" else (3, 32, 32)
    dtype = next(model.parameters()).dtype
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_keep(model, share, seed):
    draws = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=draws) >= share for g in model.groups()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


shares = st.one_of(st.floats(0, 1), st.sampled_from([0.05, 0.5, 0.97, 1.0]))  # 1.0: one channel is left everywhere


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FAMILIES), shares, st.integers(0, 2**20))
def test_shrunk_equals_masked(family, share, seed):
    model = net(*family, seed=seed)
    keep = random_keep(model, share, seed)
    assert removal.worst_deviation(model, keep, images(model, seed=seed)) < 1e-12
    assert removal.worst_deviation(model.float(), keep, images(model, seed=seed)) < 1e-5


@pytest.mark.parametrize("name, shortcut", EVERY)
def test_shrunk_equals_masked_for_every_net(name, shortcut):
    model = net(name, shortcut, 0.25 if name in ("vgg16", "vgg19", "resnet18_tiny") else 1, dtype=torch.float32)
    for share in (0.3, 0.95):
        assert removal.worst_deviation(model, random_keep(model, share, 1), images(model)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "resnet18_tiny"])
def test_shrunk_equals_masked_at_full_width(name):
    model = net(name)
    for share in (0.5, 0.9):
        assert removal.worst_deviation(model, random_keep(model, share, 1), images(model, 1)) < 1e-12


def test_the_deviation_sees_a_wrong_cut():
    """The measure itself must be able to fail: one channel dropped from the reader only."""
    model = net("digits_cnn")
    keep = random_keep(model, 0.3, 0)
    shrunk, x = removal.shrink(model, keep), images(model)
    with torch.no_grad():
        shrunk.convs[1].weight[:, 0] = 0
        masked = removal.mask(model, keep)(x)
        assert (shrunk(x) - masked).abs().max() / masked.abs().max() > 1e-6


def test_mask_zeroes_the_writers_and_nothing_else():
    model = net("resnet20", "A", 0.5)
    keep = removal.close(model, random_keep(model, 0.4, 3))
    masked = removal.mask(model, keep)
    before, after = model.state_dict(), masked.state_dict()
    touched = set()
    for group in model.groups():
        for name in (*group.writers, *group.norms):
            for part in ("weight", "bias"):
                if f"{name}.{part}" in after:
                    touched.add(f"{name}.{part}")
                    assert not after[f"{name}.{part}"][~keep[group.name]].any()
                    kept = keep[group.name]
                    assert torch.equal(after[f"{name}.{part}"][kept], before[f"{name}.{part}"][kept])
    assert all(torch.equal(before[k], after[k]) for k in before if k not in touched)
    assert removal.mask(model, keep, in_place=True) is model
    assert same(model.state_dict(), after)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_cut_gives_the_same_net(family):
    model = net(*family)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    again = removal.shrink(model, {})
    assert again is not model and again.layout == model.layout
    assert same(again.state_dict(), state)
    removal.shrink(model, random_keep(model, 0.5, 0))
    assert same(model.state_dict(), state)  # the model that is cut stays as it is
    assert torch.equal(again(images(model)), model(images(model)))


def test_shrinking_uses_up_no_random_numbers():
    model = net("digits_cnn")
    state = torch.get_rng_state()
    removal.mask(model, {})
    removal.shrink(model, {})
    assert torch.equal(torch.get_rng_state(), state)


def test_kept_channels_take_their_statistics_along():
    model = net("vgg16", None, 0.0625)
    keep = random_keep(model, 0.5, 0)
    shrunk = removal.shrink(model, keep)
    closed = removal.close(model, keep)
    for n, norm in enumerate(model.norms):
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(shrunk.norms[n], part), getattr(norm, part)[closed[f"convs.{n}"]])


def test_hidden_units_of_a_classifier_stay():
    model = net("alexnet_small")
    keep = removal.full_keep(model)
    keep["convs.4"][:13] = False
    shrunk = removal.shrink(model, keep)
    assert shrunk.head[1].weight.shape == (128, 3 * 16)
    want = model.head[1].weight.reshape(128, 16, 16)[:, 13:].reshape(128, -1)
    assert torch.equal(shrunk.head[1].weight, want)
    assert shrunk.head[4].weight.shape == (128, 128)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FAMILIES), shares, st.integers(0, 2**20))
def test_close_is_the_smallest_exact_cut(family, share, seed):
    model = net(*family)
    keep = random_keep(model, share, seed)
    closed = removal.close(model, keep)
    assert same(removal.close(model, closed), closed)
    assert all(kept.any() for kept in closed.values())
    links = models.carried(model)
    for earlier, later, sources in links:
        for channel, source in enumerate(sources):
            if source >= 0:
                assert closed[later][channel] or not closed[earlier][source]
    tied = {name for link in links for name in link[:2]}
    for name in closed.keys() - tied:
        assert torch.equal(closed[name], keep[name]) or (not keep[name].any() and closed[name].sum() == 1)
    held = sum(int((closed[name] & ~keep[name]).sum()) for name in keep)
    assert removal.held_back(model, keep) == held
    if all(kept.any() for kept in keep.values()) and not links:
        assert held == 0 and same(closed, keep)


def test_close_carries_a_cut_to_earlier_stages():
    model = net("resnet20", "A")
    keep = removal.full_keep(model)
    keep["stage3"][[30, 3, 40]] = (
        False  # 30 - 16 = 14 in stage 2, 14 - 8 = 6 in stage 1; 3 and 40 - 16 = 24 are padding
    )
    closed = removal.close(model, keep)
    cut = {name: (~kept).nonzero()[:, 0].tolist() for name, kept in closed.items() if not kept.all()}
    assert cut == {"stage3": [3, 30, 40], "stage2": [14, 24], "stage1": [6]}
    keep = removal.full_keep(model)
    keep["stage1"][6] = False  # the other way nothing follows: the later stages write their channels themselves
    assert same(removal.close(model, keep), keep)
    shrunk = removal.shrink(model, keep)
    assert shrunk.layout.maps[0][14] == -1 and shrunk.layout.maps[0][13:16:2] == (5, 6)


def test_the_strongest_channel_is_held_back():
    model = net("digits_cnn")
    with torch.no_grad():
        model.convs[2].weight[5] *= 10
    nothing = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in model.groups()}
    closed = removal.close(model, nothing)
    assert closed["convs.2"].nonzero().tolist() == [[5]]
    assert removal.held_back(model, nothing) == 6
    assert removal.shrink(model, nothing).layout.widths == (1,) * 6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shrunk_net_can_be_shrunk_again(family):
    model, x = net(*family), images(net(*family))
    first = removal.close(model, random_keep(model, 0.3, 0))
    once = removal.shrink(model, first)
    second = removal.close(once, random_keep(once, 0.5, 1))
    both = {name: kept.clone() for name, kept in first.items()}
    for name, kept in second.items():
        both[name][first[name]] = kept
    twice, at_once = removal.shrink(once, second), removal.shrink(model, both)
    assert twice.layout == at_once.layout
    torch.testing.assert_close(twice(x), at_once(x), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shrunk_net_trains(family):
    model = net(*family, dtype=torch.float32)
    shrunk = removal.shrink(model, random_keep(model, 0.5, 0)).train()
    x, y = images(model, 8), torch.arange(8) % 10
    before = [p.detach().clone() for p in shrunk.parameters()]
    optimiser = torch.optim.SGD(shrunk.parameters(), lr=0.01)
    nn.functional.cross_entropy(shrunk(x), y).backward()
    optimiser.step()
    assert all(p.grad.isfinite().all() for p in shrunk.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, shrunk.parameters()))
    shrunk.eval()
    tap = shrunk.default_tap
    assert torch.equal(shrunk.flow(x, tap)[0], shrunk(x))
    assert len(shrunk.shortcuts(tap)) == len(shrunk.flow(x, tap)[1]) - 1


def test_a_scratch_net_of_the_cut_layout_is_ordinary():
    model = net("resnet20", "A", 0.5)
    layout = removal.shrink(model, random_keep(model, 0.5, 0)).layout
    fresh = models.build(layout.name, layout.num_classes, layout.shortcut, layout.widths, layout.maps).eval()
    assert fresh.layout == layout and fresh(images(model).float()).isfinite().all()


@pytest.mark.parametrize(
    "keep, message",
    [
        ({"convs.9": torch.ones(16, dtype=torch.bool)}, "group of digits_cnn is 'convs.9'.*did you mean"),
        ({"convs.0": torch.ones(15, dtype=torch.bool)}, r"keep\['convs.0'\].*allowed: bool of shape \(16,\)"),
        ({"convs.0": torch.ones(16)}, "allowed: bool"),
    ],
)
def test_a_keep_that_does_not_fit_is_refused(keep, message):
    with pytest.raises(ValueError, match=message):
        removal.shrink(net("digits_cnn"), keep)


# --- what can go without any change -----------------------------------------------------------------------------------


def kill(model, group, channels, norm=True):
    with torch.no_grad():
        for name in (*group.writers, *(group.norms if norm else ())):
            if name:
                for parameter in model.get_submodule(name).parameters():
                    parameter[channels] = 0


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FAMILIES), st.floats(0, 1), st.integers(0, 2**20))
def test_removing_the_removable_changes_nothing(family, share, seed):
    model = net(*family, seed=seed)
    dead = random_keep(model, share, seed)
    for group in model.groups():
        kill(model, group, ~dead[group.name])
    keep = removal.needed(model)
    x = images(model)
    out, cut = model(x), removal.shrink(model, keep)(x)
    assert (out - cut).abs().max() <= 1e-12 * out.abs().max()
    for group in model.groups():
        if not models.carried(model) or group.kind == "inner":
            weights = [model.get_submodule(name).weight for name in group.readers]
            read = [any(bool(w.unflatten(1, (group.size, -1))[:, c].any()) for w in weights) for c in range(group.size)]
            living = [bool(a) and (r or group.kind == "stream") for a, r in zip(dead[group.name], read)]
            assert keep[group.name].sum() == max(1, sum(living))


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_zero_channel_whose_shift_lives_is_not_removable(shortcut):
    model = net("resnet20", shortcut)
    inner = next(g for g in model.groups() if g.name == "layer2.1.conv1")
    kill(model, inner, [4], norm=False)
    assert removal.zero_channels(model)["layer2.1.conv1"].nonzero().tolist() == [[4]]
    assert removal.needed(model)["layer2.1.conv1"].all()
    with torch.no_grad():
        model.get_submodule("layer2.1.bn1").bias[4] = 1.0
        model.get_submodule("layer2.1.bn1").running_mean[4] = 0.0
    keep = removal.full_keep(model)
    keep["layer2.1.conv1"][4] = False
    x = images(model)
    assert (removal.shrink(model, keep)(x) - model(x)).abs().max() / model(x).abs().max() > 1e-4
    kill(model, inner, [4])
    assert removal.needed(model)["layer2.1.conv1"].nonzero().numel() == inner.size - 1
    assert (removal.shrink(model, keep)(x) - model(x)).abs().max() / model(x).abs().max() < 1e-12


def test_scale_and_shift_alone_decide_behind_a_batch_norm():
    model = net("vgg16", None, 0.0625)
    with torch.no_grad():
        model.norms[3].weight[0] = model.norms[3].bias[0] = 0
    keep = removal.needed(model)
    assert not removal.zero_channels(model)["convs.3"].any()
    assert not keep["convs.3"][0] and sum(int((~kept).sum()) for kept in keep.values()) == 1


def test_a_dead_stream_channel_that_the_shortcut_fills_stays():
    model = net("resnet20", "A")
    groups = {g.name: g for g in model.groups()}
    kill(model, groups["stage2"], [14])  # filled from channel 6 of stage 1
    assert removal.needed(model)["stage2"].all()
    kill(model, groups["stage1"], [6])
    keep = removal.needed(model)
    assert not keep["stage2"][14] and not keep["stage1"][6]


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-6, 1.0), st.integers(0, 100))
def test_zero_channels_are_all_below_the_threshold(threshold, seed):
    model = net("resnet20", "B", 0.25, seed=seed)
    zeros = removal.zero_channels(model, threshold)
    for group in model.groups():
        weights = [model.get_submodule(w).weight for w in group.writers]
        for channel, zero in enumerate(zeros[group.name].tolist()):
            assert zero == all(bool((w[channel].abs() < threshold).all()) for w in weights)
    with pytest.raises(ValueError, match="threshold"):
        removal.zero_channels(model, -1.0)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [False, True])
def test_a_loaded_net_gives_equal_bits(family, last, tmp_path):
    model = net(*family, dtype=torch.float32)
    shrunk = removal.shrink(model, random_keep(model, 0.4, 2))
    if last:
        shrunk.to(memory_format=torch.channels_last)
    path = tmp_path / "cut.npz"
    removal.save_pruned(path, shrunk.train())
    loaded = removal.load_pruned(path)
    assert loaded.layout == shrunk.layout and not loaded.training
    assert same(loaded.state_dict(), shrunk.state_dict())
    assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in shrunk.parameters()]
    x = images(model)
    assert torch.equal(loaded(x), shrunk.eval()(x))
    assert [p.name for p in tmp_path.iterdir()] == ["cut.npz"]  # no temporary file stays
    with zipfile.ZipFile(path) as file:
        assert all(name.endswith(".npy") for name in file.namelist())
    with np.load(path, allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= {"U", "f", "i"}


def test_double_precision_survives_the_file(tmp_path):
    model = net("digits_cnn")
    removal.save_pruned(tmp_path / "net.npz", model)
    loaded = removal.load_pruned(str(tmp_path / "net.npz"))
    assert next(loaded.parameters()).dtype == torch.float64
    assert torch.equal(loaded(images(model)), model(images(model)))


def test_another_file_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="content of .*other.npz"):
        removal.load_pruned(tmp_path / "other.npz")
    np.savez(tmp_path / "later.npz", head=np.array('{"format": 2}'))
    with pytest.raises(ValueError, match="format of .*later.npz is 2; allowed: 1"):
        removal.load_pruned(tmp_path / "later.npz")


def test_a_net_of_another_kind_is_told_where_to_go():
    with pytest.raises(ValueError, match="the net is 'Sequential'.* docs/own.md"):
        removal.shrink(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)), {})
    other, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), data.load("digits")
    unfit = (
        lambda: removal.save_pruned("nowhere.npz", other), lambda: criteria.l1_norm(other),
        lambda: measure.report(other, images), lambda: Trainer(RunSpec(flow=FlowPenalty(0.1)), images, model=other),
    )  # fmt: skip
    for call in unfit:
        with pytest.raises(ValueError, match="the net is 'Sequential'.*docs/own.md"):
            call()
    with pytest.raises(ValueError, match="the number of convolutions is 0"):
        measure.sparsity(other)


# --- oracles ----------------------------------------------------------------------------------------------------------


def by_torch_pruning(model, group, channels):
    """The same cut by Torch-Pruning, started at the group's first writer, on a copy of the net."""
    tp = pytest.importorskip("torch_pruning")
    other = models.rebuild(model.layout, model.state_dict()).eval()
    graph = tp.DependencyGraph().build_dependency(other, images(model, 1))
    plan = graph.get_pruning_group(other.get_submodule(group.writers[0]), tp.prune_conv_out_channels, idxs=channels)
    assert graph.check_pruning_group(plan)
    plan.prune()
    return other


@pytest.mark.parametrize("family", [f for f in FAMILIES if f[1] != "A"])
def test_torch_pruning_agrees(family):
    model, x = net(*family), images(net(*family))
    groups = [g for g in model.groups() if g.size > 2]
    for group in (groups[0], groups[len(groups) // 2], groups[-1]):
        keep = removal.full_keep(model)
        keep[group.name][:2] = False
        ours, theirs = removal.shrink(model, keep), by_torch_pruning(model, group, [0, 1])
        assert Counter(p.shape for p in ours.parameters()) == Counter(p.shape for p in theirs.parameters())
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12 * theirs(x).abs().max().item())


def test_torch_pruning_misplaces_the_stream_of_option_a():
    """Torch-Pruning 1.6.1 cuts channel i of every stage, without an error; the shortcut carries it to i + 8 and i + 24.

    Both nets have the same shapes, ours alone has the masked net's outputs. Inner channels are right in both.
    """
    pytest.importorskip("torch_pruning")
    if version("torch-pruning") != "1.6.1":  # its own __version__ still says 1.6.0
        pytest.skip(f"shown for Torch-Pruning 1.6.1, here is {version('torch-pruning')}")
    model = net("resnet20", "A")
    x = images(model)
    groups = {g.name: g for g in model.groups()}
    theirs = by_torch_pruning(model, groups["stage1"], [3])
    keep = removal.full_keep(model)
    keep["stage1"][3] = keep["stage2"][3 + 8] = keep["stage3"][3 + 24] = False
    ours, masked = removal.shrink(model, keep), removal.mask(model, keep)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert torch.equal(theirs.layer3[1].conv2.weight, model.layer3[1].conv2.weight[torch.arange(64) != 3])
    largest = masked(x).abs().max()
    assert (ours(x) - masked(x)).abs().max() / largest < 1e-12
    assert (theirs(x) - masked(x)).abs().max() / largest > 1e-3
    as_they_cut = {"stage1": keep["stage1"].clone(), "stage2": torch.arange(32) != 3, "stage3": torch.arange(64) != 3}
    wanted = removal.mask(model, as_they_cut)(x)
    assert (theirs(x) - wanted).abs().max() / wanted.abs().max() > 1e-3  # nor is it the mask of what it cut
    inner = groups["layer2.1.conv1"]
    keep = removal.full_keep(model)
    keep[inner.name][:2] = False
    torch.testing.assert_close(removal.shrink(model, keep)(x), by_torch_pruning(model, inner, [0, 1])(x))


@pytest.mark.slow
def test_onnx_export_of_a_cut_net(tmp_path):
    pytest.importorskip("onnx", reason="onnx is an optional extra")
    pytest.importorskip("onnxscript", reason="onnxscript is an optional extra")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is an optional extra")
    model = net("resnet20", "A", 0.5, dtype=torch.float32)
    shrunk, x = removal.shrink(model, random_keep(model, 0.5, 0)), images(model)
    torch.onnx.export(shrunk, (x,), tmp_path / "cut.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "cut.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert abs(out - shrunk(x).detach().numpy()).max() <= 1e-5 * shrunk(x).abs().max().item()


def test_a_channel_that_nobody_reads_is_removable_but_not_from_a_stream():
    for name, shortcut in (("digits_cnn", None), ("alexnet_small", None), ("resnet20", "A"), ("resnet20", "B")):
        model = net(name, shortcut)
        groups = {group.name: group for group in model.groups()}
        with torch.no_grad():
            for group in groups.values():
                for reader in group.readers:
                    weight = model.get_submodule(reader).weight
                    weight.reshape(len(weight), group.size, -1)[:, : group.size // 2] = 0
        keep = removal.needed(model)
        for name, group in groups.items():
            gone = group.size // 2 if group.kind == "inner" else 0
            assert int((~keep[name]).sum()) == gone, name
        x = images(model)
        with torch.no_grad():
            assert torch.equal(model(x), removal.mask(model, keep)(x))
            assert (model(x) - removal.shrink(model, keep)(x)).abs().max() < 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_deviation_is_rounding_in_float32_not_in_tf32():
    model = net("resnet20", "A", dtype=torch.float32).cuda()
    assert removal.worst_deviation(model, random_keep(model, 0.5, 1), images(model).cuda()) < 1e-5
