"""What a net is worth and what it costs: accuracy, sparsity, three kinds of channels, parameters, MACs, latency.

`report` and `pruned_report` give the metrics of a record (docs/design.md). Everything leaves weights and modes as they
were. Accuracies are in percent, shares in [0, 1], MACs multiply-accumulates of convolutions and linear layers for one
image, latencies milliseconds; images are uint8 (N, C, H, W), normalised here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ffrlib.data import ImageSet, normalise
from ffrlib.models import counted_convolutions
from ffrlib.pruning import budgets, criteria, removal
from ffrlib.pruning.criteria import evaluating
from ffrlib.regularizers import flow

THRESHOLD = 1e-3  # |w| below it counts as zero
SWEEP = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
CURVE_IMAGES = 2000  # at most so many images for a point of a curve and for the flow
TOLERANCE = 1.0  # points of validation accuracy that a removable share may cost
GRID, HALVINGS = (0.2, 0.4, 0.6, 0.8), 3  # removable shares are found to 0.2 / 2**3 = 0.025


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def nonzero_parameters(model: nn.Module) -> int:
    """Number of parameters that are not exactly zero."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def macs(model: nn.Module, image_shape) -> int:
    """MACs for one image of shape (C, H, W); equal to torch's FlopCounterMode / 2."""
    return budgets.costs(model, image_shape)[1]


@contextmanager
def _inference(model: nn.Module, images: Tensor, dtype: torch.dtype):
    """Eval mode, no gradients, autocast for bfloat16; the value is the dtype that the net's input needs."""
    low = torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with evaluating(model), torch.no_grad(), low:
        yield next(model.parameters()).dtype


def accuracy(model, images, labels, mean, std, dtype=torch.float32, batch: int = 500) -> tuple[float, float]:
    """(accuracy in percent, mean cross-entropy) with labels (N,), in eval mode; synchronises once, at the end."""
    sums = torch.zeros(2, dtype=torch.float64, device=images.device)
    with _inference(model, images, dtype) as work:
        for x, y in zip(images.split(batch), labels.split(batch)):
            logits = model(normalise(x, mean, std, work)).to(work)
            sums += torch.stack([(logits.argmax(1) == y).sum(), cross_entropy(logits, y, reduction="sum")])
    right, loss = (sums / len(labels)).tolist()
    return 100 * right, loss


def sparsity(model: nn.Module, threshold: float = THRESHOLD) -> dict:
    """Shares of |w| < threshold in the counted convolutions: "weights" and "kernels" (W[o, i] as a whole) of all of them
    together, "layers" the weights of each (list)."""
    weights = [conv.weight.detach().abs() for _, conv in counted_convolutions(model)]
    small = [w < threshold for w in weights]
    kernels = torch.cat([s.all(-1).all(-1).flatten() for s in small])
    layers = torch.stack([s.double().mean() for s in small]).tolist()
    total = sum(share * w.numel() for share, w in zip(layers, weights)) / sum(w.numel() for w in weights)
    return {"weights": total, "kernels": _share(kernels), "layers": layers}


def _share(*flags: Tensor) -> float:
    return float(torch.cat(flags).double().mean())


def zero_channels(model: nn.Module, threshold: float = THRESHOLD) -> removal.Keep:
    """{group: (size,) bool}: channels for which |w| < threshold in all weights that write them, or in all that read them.
    Both count, because penalties group by either; neither alone makes a channel removable."""
    out = removal.zero_channels(model, threshold)
    for g in model.groups():
        weights = [model.get_submodule(name).weight.detach().abs() for name in g.readers]
        largest = torch.stack([w.reshape(len(w), g.size, -1).amax((0, 2)) for w in weights]).amax(0)
        out[g.name] = out[g.name] | (largest < threshold).cpu()
    return out


def silent_channels(model, images, mean, std, dtype=torch.float32, batch: int = 500) -> list[Tensor]:
    """A (C,) bool for each ReLU output: channels that are zero at all positions of all images. Stops once every channel
    has spoken, mostly after the first batch."""
    loud = False
    with _inference(model, images, dtype) as work:
        for x in images.split(batch):
            features = model.flow(normalise(x, mean, std, work), "post_activation")[1]
            loud = loud | (torch.cat([f.amax((0, 2, 3)) for f in features]) > 0)
            if loud.all():
                break
    return list((~loud).cpu().split([f.shape[1] for f in features]))


def channel_kinds(model, images, mean, std, dtype=torch.float32, threshold: float = THRESHOLD) -> dict:
    """Three kinds told apart, as shares of the groups' channels: "zero_channels" (weights), "removable_channels" (exactly,
    for every input), "silent_channels" (in all ReLU outputs of the group, on `images`); and "layer_silent", a list of
    shares by ReLU output."""
    layers = silent_channels(model, images, mean, std, dtype)
    places = criteria.feature_places(model).values()
    return {
        "zero_channels": _share(*zero_channels(model, threshold).values()),
        "removable_channels": 1 - _share(*removal.removable(model).values()),
        "silent_channels": _share(*(torch.stack([layers[i] for i in at]).all(0) for at in places)),
        "layer_silent": [_share(flags) for flags in layers],
    }


@contextmanager
def restoring(model: nn.Module):
    """Parameters may be changed in place inside; the value, a function, brings them back, and so does the end."""
    saved = [(p, p.detach().clone()) for p in model.parameters()]

    @torch.no_grad()
    def restore():
        for p, value in saved:
            p.copy_(value)

    try:
        yield restore
    finally:
        restore()


@torch.no_grad()
def zero_below(model: nn.Module, threshold: float | Tensor) -> None:
    """Set |w| < threshold to zero in the counted convolutions, in place."""
    for _, conv in counted_convolutions(model):
        conv.weight.masked_fill_(conv.weight.abs() < threshold, 0)


def cut_weights(model: nn.Module, share: float) -> None:
    """Zero the smallest |w|, `share` of the counted convolutions' weights, in place."""
    flat = torch.cat([conv.weight.detach().abs().flatten() for _, conv in counted_convolutions(model)])
    zero_below(model, flat.kthvalue(min(round(share * len(flat)) + 1, len(flat))).values)


def cut_channels(model: nn.Module, share: float) -> None:
    """Mask at least `share` of the channels, smallest L1 norm (`criteria.l1_norm`) first, in place. ValueError where so
    many cannot go."""
    removal.mask(model, budgets.choose_keep(model, criteria.l1_norm(model), "channel_share", share)[0], in_place=True)


def threshold_sweep(model: nn.Module, test: Callable[[nn.Module], float]) -> dict:
    """Lists over the thresholds `SWEEP`: shares "sparsity" and "zero_channels", and "test_accuracy": `test(model)` after
    zeroing (not asked again where a threshold zeroes no more than the one before)."""
    out = {"threshold": list(SWEEP), "sparsity": [], "zero_channels": [], "test_accuracy": []}
    with restoring(model):
        for t in SWEEP:
            share, known = sparsity(model, t)["weights"], out["sparsity"][-1:]
            out["zero_channels"].append(_share(*zero_channels(model, t).values()))
            zero_below(model, t)
            out["test_accuracy"].append(out["test_accuracy"][-1] if [share] == known else test(model))
            out["sparsity"].append(share)
    return out


def removable_share(model, validate: Callable[[nn.Module], float], cut: Callable[[nn.Module, float], None]) -> float:
    """The largest share that `cut(model, share)` can remove with `validate(model)` at most TOLERANCE points lower, without
    fine-tuning: along GRID up to the first failure, then HALVINGS bisections (whether more holds again is not asked)."""
    low, high = 0.0, 1.0
    least = validate(model) - TOLERANCE
    with restoring(model) as restore:

        def holds(share: float) -> bool:
            restore()
            try:
                cut(model, share)
            except ValueError:  # more than the minimum of one channel a layer allows
                return False
            return validate(model) >= least

        for share in GRID:
            low, high = (share, high) if holds(share) else (low, share)
            if high < 1:
                break
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def flow_metrics(model, images, mean, std, dtype=torch.float32, tap: str | None = None, batch: int = 500) -> dict:
    """Of the features at `tap` (None: the net's own), on `images`: the flow's length and total second difference (L1, over
    the number of elements), straightness, turning angle (radians), and the mean |x|. NaN where shapes give no pair."""
    sums = 0.0
    with _inference(model, images, dtype) as work:
        for x in images.split(batch):
            features = model.flow(normalise(x, mean, std, work), tap)[1]
            counts = flow.flow_counts(features)
            size = flow.flow_penalty(features, length=1.0) if counts[0] else torch.tensor(torch.nan)
            bend = flow.flow_penalty(features, curvature=1.0) if counts[1] else torch.tensor(torch.nan)
            mean_size = flow.activation_penalty(features) / len(features)
            values = (size, bend, flow.straightness(features), flow.turning_angle(features), mean_size)
            sums = sums + torch.stack([v.double().to(x.device) for v in values]) * len(x)
    names = ("flow_length", "flow_curvature", "straightness", "turning_angle", "activation_mean")
    return dict(zip(names, (sums / len(images)).tolist()))


def report(
    model: nn.Module, image_set: ImageSet, dtype: torch.dtype = torch.float32, flow_tap: str | None = None
) -> dict:
    """The metrics of a trained net, named and defined in docs/design.md. Costs some 5 passes over the test images and 20
    over at most CURVE_IMAGES of test or validation."""
    mean_std, shape = (image_set.mean, image_set.std), tuple(image_set.train[0].shape[1:])
    (few_images, few_labels) = (t[:CURVE_IMAGES] for t in image_set.validation)

    def test(net, count: int | None = None) -> float:
        return accuracy(net, image_set.test[0][:count], image_set.test[1][:count], *mean_std, dtype)[0]

    def validate(net) -> float:
        return accuracy(net, few_images, few_labels, *mean_std, dtype)[0]

    out, small = {}, sparsity(model)
    out["test_accuracy"], out["test_loss"] = accuracy(model, *image_set.test, *mean_std, dtype)
    out["validation_accuracy"] = accuracy(model, *image_set.validation, *mean_std, dtype)[0]
    out |= {
        "unstructured_sparsity": small["weights"],
        "zero_kernels": small["kernels"],
        "layer_sparsity": small["layers"],
    }
    out |= channel_kinds(model, image_set.train[0], *mean_std, dtype)
    out["parameters"], out["macs"] = budgets.costs(model, shape)
    out["parameters_left"], out["macs_left"] = budgets.costs(model, shape, removal.removable(model))
    out["threshold_sweep"] = threshold_sweep(model, lambda net: test(net, CURVE_IMAGES))
    for name, cut in (("weight", cut_weights), ("channel", cut_channels)):
        out[f"removable_{name}_share"] = removable_share(model, validate, cut)
    steps = {"zeroed": (zero_below, THRESHOLD), "cut_30": (cut_channels, 0.3), "cut_50": (cut_channels, 0.5)}
    with restoring(model) as restore:
        for name, (change, amount) in steps.items():
            change(model, amount)
            out[f"{name}_test_accuracy"] = test(model)
            restore()
    return out | flow_metrics(model, few_images, *mean_std, dtype, flow_tap)


def latency(model: nn.Module, batch: int, image_shape, device=None, seconds: float = 0.1, repeats: int = 50) -> dict:
    """{"median", "spread"} of the milliseconds of a forward pass in eval mode and the net's own precision, channels_last;
    the spread is between the quartiles. After 3 warm-up passes, at least 5 passes, then up to `repeats` while less than
    `seconds` have gone by. On a GPU timed by events. Threads are the process's own (`torch.get_num_threads`)."""
    weight = next(model.parameters())
    device, times = torch.device(device or weight.device), []
    x = torch.rand(batch, *image_shape, dtype=weight.dtype, device=device).contiguous(memory_format=torch.channels_last)
    with evaluating(model), torch.no_grad():
        for _ in range(3):
            model(x)
        begin = time.perf_counter()
        while len(times) < 5 or (len(times) < repeats and time.perf_counter() - begin < seconds):
            if device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                model(x)
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                start = time.perf_counter()
                model(x)
                times.append(1000 * (time.perf_counter() - start))
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": middle, "spread": high - low}


def pruned_report(model: nn.Module, cut: nn.Module, keep: removal.Keep, image_set: ImageSet) -> dict:
    """The metrics of a cut that need no training: `model` is the net before, `cut` = `removal.shrink(model, keep)`."""
    images = normalise(image_set.validation[0][:64], image_set.mean, image_set.std, next(model.parameters()).dtype)
    shape, timing = tuple(images.shape[1:]), {}
    for count in (1, 64):
        for net, when in ((model, "_before"), (cut, "")):
            for what, value in latency(net, count, shape).items():
                timing[f"batch_{count}{when}" + "_spread" * (what == "spread")] = value
    before, after = budgets.costs(model, shape), budgets.costs(cut, shape)
    return {
        "parameters": before[0], "macs": before[1], "parameters_left": after[0], "macs_left": after[1],
        "channels_left": sum(g.size for g in cut.groups()), "widths": list(cut.layout.widths),
        "worst_deviation": removal.worst_deviation(model, keep, images), "latency_ms": timing,
    }  # fmt: skip
