"""Cut channels out for real: `shrink` gives a smaller, ordinary net with the outputs of the masked one.

`keep` is a dict group name -> bool tensor (size,); a group that it does not name is kept whole. Whatever is cut, one
channel of each group stays (`close`, `held_back`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ffrlib import models
from ffrlib.files import write_atomically
from ffrlib.models import ChannelGroup
from ffrlib.spec import choose, require

Keep = dict[str, torch.Tensor]


def groups(model: nn.Module) -> list[ChannelGroup]:
    """The groups of channels that go together. ValueError for a net of another library."""
    fits = hasattr(model, "groups") and hasattr(model, "layout")
    require(fits, "the net", type(model).__name__, "one of ffrlib.models (how to cut others: docs/own.md)")
    return model.groups()


def full_keep(model: nn.Module) -> Keep:
    """All channels kept: {group name: (size,) of True}, on the CPU. ValueError for a net of another library."""
    return {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups(model)}


def _filled(model: nn.Module, keep: Keep) -> Keep:
    """A copy of `keep` on the CPU with all groups; ValueError for a name, shape or type that does not fit."""
    out = full_keep(model)
    for name, kept in keep.items():
        choose(f"group of {model.layout.name}", name, out)
        good = kept.dtype == torch.bool and kept.shape == out[name].shape
        require(good, f"keep[{name!r}]", (kept.dtype, tuple(kept.shape)), f"bool of shape {tuple(out[name].shape)}")
        out[name] = kept.cpu().clone()
    return out


def close(model: nn.Module, keep: Keep) -> Keep:
    """`keep` changed as little as an exact cut needs. Option A: with a channel of a later stage goes the channel of the
    earlier one that the shortcut carries there, which would still fill it. And of a group of which nothing is left, the
    channel with the largest sum of |W| over its writers stays, under option A with those that it is carried to."""
    keep, links = _filled(model, keep), []
    for earlier, later, sources in models.carried(model):
        source = torch.tensor(sources)
        to = (source >= 0).nonzero()[:, 0]
        links.append((keep[earlier], source[to], keep[later], to))
    for earlier, source, later, to in reversed(links):
        earlier[source] &= later[to]
    for group in model.groups():
        if not keep[group.name].any():
            sums = sum(model.get_submodule(name).weight.detach().abs().sum((1, 2, 3)) for name in group.writers)
            keep[group.name][int(sums.argmax())] = True
    for earlier, source, later, to in links:
        later[to] |= earlier[source]
    return keep


def held_back(model: nn.Module, keep: Keep) -> int:
    """Number of channels that `keep` asks to cut and `close` keeps, because a group would have been left with none."""
    asked, closed = _filled(model, keep), close(model, keep)
    return sum(int((closed[name] & ~asked[name]).sum()) for name in asked)


def gates(model: nn.Module, group: ChannelGroup) -> list[torch.Tensor]:
    """What masking a group's channel sets to zero: scale and shift of its norms, or weights and bias of its writers."""
    holders = [norm or writer for norm, writer in zip(group.norms, group.writers)]
    return [parameter for name in holders for parameter in model.get_submodule(name).parameters()]


def largest_weights(model: nn.Module, group: ChannelGroup, part: str) -> torch.Tensor:
    """(size,), on the CPU: for each channel the largest |w| of the group's "writers", or "readers"."""
    weights = [model.get_submodule(name).weight.detach().abs() for name in getattr(group, part)]
    if part == "readers":  # behind flatten several columns read one channel
        weights = [w.unflatten(1, (group.size, -1)).transpose(0, 1) for w in weights]
    return torch.stack([w.flatten(1).amax(1) for w in weights]).amax(0).cpu()


def _channels_last(model: nn.Module) -> bool:
    weights = [conv.weight for _, conv in models.counted_convolutions(model)]
    return any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)


@torch.no_grad()
def mask(model: nn.Module, keep: Keep, in_place: bool = False) -> nn.Module:
    """Zero what writes the channels that `close(model, keep)` cuts: weights, bias, batch-norm scale and shift. Returns
    the model itself with `in_place`, else a copy."""
    keep = close(model, keep)
    if not in_place:
        model = models.rebuild(model.layout, model.state_dict(), _channels_last(model)).train(model.training)
    for group in model.groups():
        for module in (model.get_submodule(name) for name in (*group.writers, *group.norms) if name):
            cut = ~keep[group.name].to(module.weight.device)
            for parameter in module.parameters():
                parameter[cut] = 0
    return model


@torch.no_grad()
def shrink(model: nn.Module, keep: Keep) -> nn.Module:
    """A new, smaller net without the channels that `close(model, keep)` cuts; the model itself is left alone.

    In eval mode its outputs are those of `mask(model, keep)`, where a cut channel is zero behind its ReLU: its readers
    lose a sum of zeros. Kept channels take their batch-norm statistics along. The new net has the device, dtype, memory
    format and mode of the model, not its dropout generator; it can be trained and shrunk again.
    """
    keep, state = close(model, keep), model.state_dict()
    for group in model.groups():
        kept = keep[group.name].nonzero()[:, 0].to(next(model.parameters()).device)
        for name in (*group.writers, *group.norms):
            for key in (f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")):
                if key in state:
                    state[key] = state[key][kept]
        for key in (f"{name}.weight" for name in group.readers):
            channels = state[key].unflatten(1, (group.size, -1))  # behind flatten several columns read one channel
            state[key] = channels[:, kept].flatten(1, 2)
    widths = tuple(len(state[f"{name}.weight"]) for name, _ in models.counted_convolutions(model))
    maps, carried = (), models.carried(model)
    for earlier, later, sources in carried:
        place = {old: new for new, old in enumerate(keep[earlier].nonzero()[:, 0].tolist())}
        maps += (tuple(place.get(source, -1) for source, stays in zip(sources, keep[later].tolist()) if stays),)
    if maps == tuple(sources for _, _, sources in carried):
        maps = model.layout.maps  # the streams are whole (or not of option A): the layout says so as before
    layout = replace(model.layout, widths=widths, maps=maps)
    return models.rebuild(layout, state, _channels_last(model)).train(model.training)


@torch.no_grad()
def worst_deviation(model: nn.Module, keep: Keep, images: torch.Tensor) -> float:
    """Largest |shrunk - masked| logit in eval mode over the largest |masked| one, on `images` (normalised, NCHW)."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU's TF32 would round both differently
        masked, shrunk = mask(model, keep).eval()(images), shrink(model, keep).eval()(images)
    return float((shrunk - masked).abs().max() / masked.abs().max().clamp_min(torch.finfo(masked.dtype).tiny))


def zero_channels(model: nn.Module, threshold: float = 0.0) -> Keep:
    """{group: (size,) bool}: True where each weight of all writers is zero or below `threshold` in size. Not yet
    removable: a batch norm behind may still write a constant. ValueError for a negative threshold."""
    require(threshold >= 0, "threshold", threshold, "0 or more")
    out = {}
    for group in model.groups():
        largest = largest_weights(model, group, "writers")
        out[group.name] = (largest < threshold) | (largest == 0)
    return out


def needed(model: nn.Module) -> Keep:
    """The `keep` without the removable channels, those that are exactly zero, or unread, for every input: `shrink` with
    it changes no output.

    Zero is a channel whose `gates` are 0 (weights before a batch norm that is 0 act no more); for a stream that holds
    for every writer, and under option A for the channel carried there. A batch norm that turns zero weights into a
    constant keeps its channel: even where the constant could be moved into the readers, their zero padding has none of
    it at the border. Unread is a channel inside a block or of a plain net to which all readers give weight 0: what
    feature-wise penalties lead to.
    """
    keep = {}
    for group in model.groups():
        keep[group.name] = torch.stack([p.reshape(group.size, -1).any(1) for p in gates(model, group)]).any(0).cpu()
        if group.kind == "inner":  # a stream's channel also travels on through the shortcuts
            keep[group.name] &= largest_weights(model, group, "readers") != 0
    for earlier, later, sources in models.carried(model):
        keep[later] |= torch.tensor([source >= 0 and bool(keep[earlier][source]) for source in sources])
    return close(model, keep)


def save_pruned(path: str | Path, model: nn.Module) -> None:
    """Write layout and state as one .npz without pickle, first under a temporary name in the same folder.
    ValueError for a net of another library."""
    groups(model)
    head = json.dumps({"format": 1, "layout": asdict(model.layout), "channels_last": _channels_last(model)})
    arrays = {f"state/{name}": value.cpu().numpy() for name, value in model.state_dict().items()}
    write_atomically(path, lambda file: np.savez(file, head=np.array(head), **arrays))


def load_pruned(path: str | Path) -> nn.Module:
    """The net of `save_pruned`, on the CPU, in its dtype and memory format, in eval mode: bit-equal outputs. Raises
    ValueError for a file that `save_pruned` has not written."""
    with np.load(path, allow_pickle=False) as file:
        require("head" in file.files, f"content of {path}", file.files[:3], "'head' and 'state/...' of save_pruned")
        head = json.loads(file["head"].item())
        require(head["format"] == 1, f"format of {path}", head["format"], "1")
        state = {name.removeprefix("state/"): torch.from_numpy(file[name]) for name in file.files if name != "head"}
    return models.rebuild(models.Layout(**head["layout"]), state, head["channels_last"]).eval()
