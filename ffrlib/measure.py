"""What a net is worth and what it costs: accuracy, sparsity, three kinds of channels, parameters, MACs, latency.

`report` and `pruned_report` give the metrics of a record (docs/design.md). Everything leaves weights and modes as they
were. Accuracies are in percent, shares in [0, 1], MACs multiply-accumulates of convolutions and linear layers for one
image, latencies milliseconds; images are uint8 (N, C, H, W), normalised here.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ffrlib.data import ImageSet, normalise
from ffrlib.models import counted_convolutions
from ffrlib.pruning import budgets, criteria, removal
from ffrlib.pruning.criteria import evaluating
from ffrlib.regularizers import flow
from ffrlib.spec import require

THRESHOLD = 1e-3  # |w| below it counts as zero
SWEEP = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
CURVE_IMAGES = 2000  # at most so many images for a point of a curve and for the flow
TOLERANCE = 1.0  # points of validation accuracy that a removable share may cost
GRID, HALVINGS = (0.2, 0.4, 0.6, 0.8), 3  # removable shares are found to 0.2 / 2**3 = 0.025


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, image_shape) -> int:
    """MACs of a net of ffrlib.models for one image of shape (C, H, W); equal to torch's FlopCounterMode / 2."""
    return budgets.costs(model, image_shape)[1]


@contextmanager
def _inference(model: nn.Module, images: Tensor, dtype: torch.dtype):
    """Eval mode, no gradients, autocast for bfloat16; the value is the dtype that the net's input needs."""
    low = torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with evaluating(model), torch.no_grad(), low:
        yield next(model.parameters()).dtype


def accuracy(model, images, labels, mean, std, dtype=torch.float32, batch: int = 0) -> tuple[float, float]:
    """(accuracy in percent, mean cross-entropy), in eval mode; synchronises once, at the end. `batch` 0: 250 (a CPU's
    caches want it small), on a GPU 2,000."""
    sums = torch.zeros(2, dtype=torch.float64, device=images.device)
    batch = batch or (2000 if images.is_cuda else 250)
    with _inference(model, images, dtype) as work:
        for x, y in zip(images.split(batch), labels.split(batch)):
            logits = model(normalise(x, mean, std, work)).to(work)
            sums += torch.stack([(logits.argmax(1) == y).sum(), cross_entropy(logits, y, reduction="sum")])
    right, loss = sums.tolist()
    return 100 * right / len(labels), loss / len(labels)


def sparsity(model: nn.Module, threshold: float = THRESHOLD) -> dict:
    """Shares of |w| < threshold in the counted convolutions: "weights" and "kernels" (W[o, i] as a whole) of all of
    them together, "layers" the weights of each (list). ValueError for a net without any."""
    weights = [conv.weight.detach().abs() for _, conv in counted_convolutions(model)]
    require(len(weights) > 0, "the number of convolutions", 0, "1 or more")
    small = [w < threshold for w in weights]
    layers = torch.stack([s.double().mean() for s in small]).tolist()
    total = sum(share * w.numel() for share, w in zip(layers, weights)) / sum(w.numel() for w in weights)
    return {"weights": total, "kernels": _share(*(s.flatten(2).all(2).flatten() for s in small)), "layers": layers}


def _share(*flags: Tensor) -> float:
    return float(torch.cat(flags).double().mean())


def zero_channels(model: nn.Module, threshold: float = THRESHOLD) -> removal.Keep:
    """{group: (size,) bool}: channels for which |w| < threshold in all weights that write them, or in all that read
    them. Both count, because penalties group by either; neither alone makes a channel removable."""
    out = removal.zero_channels(model, threshold)
    for g in model.groups():
        out[g.name] |= removal.largest_weights(model, g, "readers") < threshold
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


def channel_kinds(model, images, mean, std, dtype=torch.float32) -> dict:
    """Three kinds told apart, as shares of the groups' channels: "zero_channels" (weights; "zero_output_channels":
    by those that write them alone), "removable_channels" (exactly, for every input), "silent_channels" (in all ReLU
    outputs of the group, on `images`); and "layer_silent", a list of shares by ReLU output."""
    layers = silent_channels(model, images, mean, std, dtype)
    places = criteria.feature_places(model).values()
    return {
        "zero_channels": _share(*zero_channels(model).values()),
        "zero_output_channels": _share(*removal.zero_channels(model, THRESHOLD).values()),
        "removable_channels": 1 - _share(*removal.needed(model).values()),
        "silent_channels": _share(*(torch.stack([layers[i] for i in at]).all(0) for at in places)),
        "layer_silent": [_share(flags) for flags in layers],
    }


@torch.no_grad()
def zeroed(model: nn.Module, threshold: float | Tensor) -> nn.Module:
    """A copy with |w| < threshold set to zero in the counted convolutions."""
    model = copy.deepcopy(model)
    for _, conv in counted_convolutions(model):
        conv.weight.masked_fill_(conv.weight.abs() < threshold, 0)
    return model


def cut_weights(model: nn.Module, share: float) -> nn.Module:
    """A copy with the smallest |w| set to zero, `share` of the counted convolutions' weights."""
    flat = torch.cat([conv.weight.detach().abs().flatten() for _, conv in counted_convolutions(model)])
    return zeroed(model, flat.kthvalue(min(round(share * len(flat)) + 1, len(flat))).values)


def cut_channels(model: nn.Module, share: float) -> nn.Module:
    """The net without at least `share` of the channels, smallest L1 norm (`criteria.l1_norm`) first. ValueError where
    so many cannot go."""
    return removal.shrink(model, budgets.choose_keep(model, criteria.l1_norm(model), "channel_share", share)[0])


def threshold_sweep(model: nn.Module, test: Callable[[nn.Module], float]) -> dict:
    """Lists over the thresholds `SWEEP`: shares "sparsity" and "zero_channels", and "test_accuracy": `test(net)` of the
    zeroed net (not asked again where a threshold zeroes no more than the one before)."""
    shares = [sparsity(model, t)["weights"] for t in SWEEP]
    tested = {share: test(zeroed(model, t)) for share, t in dict(zip(shares, SWEEP)).items()}
    return {
        "threshold": list(SWEEP), "sparsity": shares, "test_accuracy": [tested[share] for share in shares],
        "zero_channels": [_share(*zero_channels(model, t).values()) for t in SWEEP],
    }  # fmt: skip


def removable_share(model, cut: Callable[[nn.Module, float], nn.Module], holds: Callable[[nn.Module], bool]) -> float:
    """The largest share for which `holds(cut(model, share))`, without fine-tuning: along GRID up to the first failure,
    then HALVINGS bisections, so to 0.025 (whether a larger share holds again is not asked)."""

    def fine(share: float) -> bool:
        try:
            return holds(cut(model, share))
        except budgets.OutOfReach:  # more than the minimum of one channel a layer allows
            return False

    low = max(takewhile(fine, GRID), default=0.0)
    high = min((share for share in GRID if share > low), default=1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fine(middle) else (low, middle)
    return low


def flow_metrics(model, images, mean, std, dtype=torch.float32, tap: str | None = None, batch: int = 250) -> dict:
    """Of the features at `tap` (None: the net's own), on `images`: the flow's length and total second difference (L1
    over the number of elements), straightness, turning angle (radians), mean |x|. NaN where no shapes agree."""
    sums, none = defaultdict(float), torch.full((), torch.nan, device=images.device)
    with _inference(model, images, dtype) as work:
        for x in images.split(batch):
            features = model.flow(normalise(x, mean, std, work), tap)[1]
            pairs, triples = flow.flow_counts(features)
            values = {
                "flow_length": flow.flow_penalty(features, length=1.0) if pairs else none,
                "flow_curvature": flow.flow_penalty(features, curvature=1.0) if triples else none,
                "straightness": flow.straightness(features),
                "turning_angle": flow.turning_angle(features),
                "activation_mean": flow.activation_penalty(features) / len(features),
            }
            for name, value in values.items():
                sums[name] += value.double() * (len(x) / len(images))
    return {name: float(value) for name, value in sums.items()}


def passes(test: int, validation: int) -> int:
    """How many images `report` sends through a net at most, of so many test and validation images, where no channel is
    silent."""
    return 6 * test + 22 * min(CURVE_IMAGES, validation) + validation


def report(model: nn.Module, image_set: ImageSet, dtype=torch.float32, flow_tap: str | None = None) -> dict:
    """The metrics of a trained net, named and defined in docs/design.md. Costs `passes`; all training images only where
    channels stay silent. ValueError for a net of another library (docs/own.md says what takes any)."""
    removal.groups(model)
    prepare, shape = (image_set.mean, image_set.std, dtype), tuple(image_set.train[0].shape[1:])

    def percent(net, pair, count: int | None = None) -> float:
        return accuracy(net, pair[0][:count], pair[1][:count], *prepare)[0]

    def holds(net) -> bool:
        return percent(net, image_set.validation, CURVE_IMAGES) >= least

    least = percent(model, image_set.validation, CURVE_IMAGES) - TOLERANCE
    small, left = sparsity(model), budgets.costs(model, shape, removal.needed(model))
    weights, channels = (removable_share(model, cut, holds) for cut in (cut_weights, cut_channels))
    (test_accuracy, test_loss), whole = accuracy(model, *image_set.test, *prepare), budgets.costs(model, shape)
    return {
        "test_accuracy": test_accuracy, "test_loss": test_loss,
        "validation_accuracy": percent(model, image_set.validation),
        "zeroed_test_accuracy": percent(zeroed(model, THRESHOLD), image_set.test),
        "unstructured_sparsity": small["weights"], "zero_kernels": small["kernels"], "layer_sparsity": small["layers"],
        "parameters": whole[0], "macs": whole[1], "parameters_left": left[0], "macs_left": left[1],
        "threshold_sweep": threshold_sweep(model, lambda net: percent(net, image_set.test, CURVE_IMAGES)),
        "removable_weight_share": weights, "removable_channel_share": channels,
        "weights_removed_test_accuracy": percent(cut_weights(model, weights), image_set.test),
        "channels_removed_test_accuracy": percent(cut_channels(model, channels), image_set.test),
        "cut_30_test_accuracy": percent(cut_channels(model, 0.3), image_set.test),
        "cut_50_test_accuracy": percent(cut_channels(model, 0.5), image_set.test),
        **channel_kinds(model, image_set.train[0], *prepare),
        **flow_metrics(model, image_set.validation[0][:CURVE_IMAGES], *prepare, flow_tap),
    }  # fmt: skip


def latency(model, batch: int, image_shape, seconds: float = 0.05, least: int = 7, most: int = 50) -> dict:
    """{"median", "spread" (between the quartiles)} of the milliseconds of a forward pass in eval mode, channels_last,
    in the net's precision, on its device (on a GPU by events) and all threads of the process. After 3 passes to warm
    up, `least` or more, up to `most`, until `seconds` have gone by."""
    weight, times = next(model.parameters()), []
    x = torch.rand(batch, *image_shape, dtype=weight.dtype, device=weight.device)
    x = x.contiguous(memory_format=torch.channels_last)
    begin = time.perf_counter()
    with evaluating(model), torch.no_grad():
        while len(times) < least + 3 or (len(times) < most + 3 and time.perf_counter() - begin < seconds):
            if x.is_cuda:
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
    low, middle, high = statistics.quantiles(times[3:], n=4, method="inclusive")
    return {"median": middle, "spread": high - low}


def pruned_report(model: nn.Module, cut: nn.Module, keep: removal.Keep, image_set: ImageSet) -> dict:
    """The metrics of a cut that need no training: `model` is the net before, `cut` = `removal.shrink(model, keep)`."""
    images = normalise(image_set.validation[0][:64], image_set.mean, image_set.std, next(model.parameters()).dtype)
    shape, timing = tuple(images.shape[1:]), {}
    for count, net, when in ((1, model, "_before"), (1, cut, ""), (64, model, "_before"), (64, cut, "")):
        took = latency(net, count, shape)
        timing |= {f"batch_{count}{when}": took["median"], f"batch_{count}{when}_spread": took["spread"]}
    before, after = budgets.costs(model, shape), budgets.costs(cut, shape)
    return {
        "parameters": before[0], "macs": before[1], "parameters_left": after[0], "macs_left": after[1],
        "channels_left": sum(g.size for g in cut.groups()), "widths": list(cut.layout.widths),
        "worst_deviation": removal.worst_deviation(model, keep, images), "latency_ms": timing,
    }  # fmt: skip
