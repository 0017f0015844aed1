"""Cut channels out for real: `shrink` gives a smaller ordinary net with the outputs of the masked one.

`keep` everywhere is a dict group name -> bool tensor (size,); a group that it does not name is kept whole.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ffrlib import models
from ffrlib.models import ChannelGroup
from ffrlib.spec import choose, require

MINIMUM = 1  # channels that each group keeps

Keep = dict[str, torch.Tensor]


def full_keep(model: nn.Module) -> Keep:
    """All channels kept: {group name: (size,) of True}, on the CPU."""
    return {group.name: torch.ones(group.size, dtype=torch.bool) for group in model.groups()}


def _checked(model: nn.Module, keep: Keep) -> Keep:
    """A full copy of `keep` on the CPU; ValueError for a name, shape or type that does not fit."""
    out = full_keep(model)
    for name, kept in keep.items():
        choose(f"group of {model.layout.name}", name, out)
        kept = torch.as_tensor(kept)
        good = kept.dtype == torch.bool and kept.shape == out[name].shape
        require(good, f"keep[{name!r}]", (kept.dtype, tuple(kept.shape)), f"bool of shape {tuple(out[name].shape)}")
        out[name] = kept.cpu().clone()
    return out


def close(model: nn.Module, keep: Keep) -> Keep:
    """The smallest change of `keep` that can be cut out exactly.

    Two rules. Option A: a channel cut in a later stage is cut in the earlier stage whose channel the shortcut carries
    there, which would otherwise still fill it. And each group keeps at least MINIMUM channel: where none is left, the
    one with the largest sum of |W| over its writers stays, and under option A all that it is carried to.
    """
    keep = _checked(model, keep)
    links = models.carried(model)
    for earlier, later, sources in reversed(links):
        for channel, source in enumerate(sources):
            if source >= 0 and not keep[later][channel]:
                keep[earlier][source] = False
    for group in model.groups():
        if not keep[group.name].any():
            keep[group.name][int(_weight_sums(model, group).argmax())] = True
    for earlier, later, sources in links:
        for channel, source in enumerate(sources):
            if source >= 0 and keep[earlier][source]:
                keep[later][channel] = True
    return keep


def held_back(model: nn.Module, keep: Keep) -> int:
    """Number of channels that `keep` asks to cut and `close` keeps, because a group would be left with none."""
    asked, closed = _checked(model, keep), close(model, keep)
    return sum(int((closed[name] & ~asked[name]).sum()) for name in asked)


def _weight_sums(model: nn.Module, group: ChannelGroup) -> torch.Tensor:
    """(size,) on the CPU: sum of |W| over the writers' weights of each channel."""
    weights = (model.get_submodule(name).weight.detach() for name in group.writers)
    return sum(w.abs().double().sum((1, 2, 3)) for w in weights).cpu()


def _like(model: nn.Module, layout: models.Layout, state: dict[str, torch.Tensor]) -> nn.Module:
    """A net of `layout` with `state`, on the model's device, in its dtype, memory format and mode."""
    with torch.random.fork_rng(devices=[]):  # its first weights are thrown away: leave the caller's stream alone
        new = models.build(**asdict(layout))
    weight = next(model.parameters())
    new.to(weight.device, weight.dtype)
    if _is_channels_last(model):
        new.to(memory_format=torch.channels_last)
    new.load_state_dict(state)
    return new.train(model.training)


def _is_channels_last(model: nn.Module) -> bool:
    weights = [conv.weight for _, conv in models.counted_convolutions(model)]
    return any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)


@torch.no_grad()
def mask(model: nn.Module, keep: Keep, in_place: bool = False) -> nn.Module:
    """Set what writes the channels cut by `close(model, keep)` to zero: weights, bias, batch-norm scale and shift.

    Returns the model itself with `in_place`, else a copy. Its outputs in eval mode are those of `shrink`.
    """
    closed = close(model, keep)
    if not in_place:
        model = _like(model, model.layout, model.state_dict())
    for group in model.groups():
        for name in (*group.writers, *filter(None, group.norms)):
            module = model.get_submodule(name)
            cut = ~closed[group.name].to(module.weight.device)
            module.weight[cut] = 0
            if module.bias is not None:
                module.bias[cut] = 0
    return model


@torch.no_grad()
def shrink(model: nn.Module, keep: Keep) -> nn.Module:
    """A new, smaller net without the channels cut by `close(model, keep)`; the model itself is left alone.

    In eval mode its outputs equal those of `mask(model, keep)`: a cut channel is zero there behind its ReLU, so
    dropping it from its readers changes no sum. Kept channels take their batch-norm statistics along. The new net
    stands on the same device, in the same dtype and mode, can be trained and shrunk again; of a dropout's generator it
    knows nothing.
    """
    keep = close(model, keep)
    state = dict(model.state_dict())
    for group in model.groups():
        kept = keep[group.name].nonzero().flatten().to(next(model.parameters()).device)
        for name in (*group.writers, *filter(None, group.norms)):
            for part in ("weight", "bias", "running_mean", "running_var"):
                if f"{name}.{part}" in state:
                    state[f"{name}.{part}"] = state[f"{name}.{part}"][kept]
        for name in group.readers:
            weight = state[f"{name}.weight"]
            by_channel = weight.unflatten(1, (group.size, -1))  # a linear layer behind flatten reads several pixels each
            state[f"{name}.weight"] = by_channel[:, kept].flatten(1, 2)
    widths = tuple(state[f"{name}.weight"].shape[0] for name, _ in models.counted_convolutions(model))
    maps = []
    for earlier, later, sources in models.carried(model):
        place = {old: new for new, old in enumerate(keep[earlier].nonzero().flatten().tolist())}
        maps.append(tuple(place.get(source, -1) for source, kept in zip(sources, keep[later].tolist()) if kept))
    return _like(model, replace(model.layout, widths=widths, maps=tuple(maps) or None), state)


@torch.no_grad()
def worst_deviation(model: nn.Module, keep: Keep, images: torch.Tensor) -> float:
    """Largest |shrunk - masked| logit in eval mode over the largest |masked| one, on `images` (normalised, NCHW)."""
    masked, shrunk = mask(model, keep).eval()(images), shrink(model, keep).eval()(images)
    return float((shrunk - masked).abs().max() / masked.abs().max().clamp_min(torch.finfo(masked.dtype).tiny))


def zero_channels(model: nn.Module, threshold: float = 0.0) -> Keep:
    """{group: (size,) bool}, True where all writers' weights are zero or |w| < threshold. Not yet removable: a batch
    norm behind them may still write a constant."""
    require(threshold >= 0, "threshold", threshold, "0 or more")
    out = {}
    for group in model.groups():
        weights = [model.get_submodule(name).weight.detach().abs().amax((1, 2, 3)) for name in group.writers]
        largest = torch.stack(weights).amax(0).cpu()
        out[group.name] = (largest < threshold) | (largest == 0)
    return out


def removable(model: nn.Module) -> Keep:
    """The `keep` that cuts every channel that is exactly zero for every input, so that `shrink` changes nothing.

    Such a channel's batch norm has scale and shift 0 (whatever the weights in front of it), or, without a batch norm,
    its weights and bias are 0; in a stream this holds for each writer, and under option A for the channel that the
    shortcut carries there. Of a group that is zero all over, one channel stays (`close`).
    """
    dead = {}
    for group in model.groups():
        silent = torch.ones(group.size, dtype=torch.bool)
        for writer, norm in zip(group.writers, group.norms):
            module = model.get_submodule(norm or writer)
            silent &= (module.weight.detach().flatten(1) if not norm else module.weight.detach()[:, None]).cpu().eq(0).all(1)
            if module.bias is not None:
                silent &= module.bias.detach().cpu() == 0
        dead[group.name] = silent
    for earlier, later, sources in models.carried(model):
        for channel, source in enumerate(sources):
            if source >= 0 and not dead[earlier][source]:
                dead[later][channel] = False
    return close(model, {name: ~silent for name, silent in dead.items()})


def save_pruned(path: str | Path, model: nn.Module) -> None:
    """Write layout and state as one .npz (no pickle), first under a temporary name in the same folder."""
    path = Path(path)
    head = {"format": 1, "layout": asdict(model.layout), "channels_last": _is_channels_last(model)}
    arrays = {f"state/{name}": value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), **arrays)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_pruned(path: str | Path) -> nn.Module:
    """The net of `save_pruned`, on the CPU, in its dtype and memory format, in eval mode: bit-equal outputs.

    Raises ValueError for a file of another format.
    """
    with np.load(path, allow_pickle=False) as file:
        require("head" in file.files, "contents", file.files[:3], "a file that save_pruned wrote")
        head = json.loads(str(file["head"]))
        require(head["format"] == 1, "format", head["format"], "1")
        state = {name[6:]: torch.from_numpy(file[name]) for name in file.files if name.startswith("state/")}
    with torch.random.fork_rng(devices=[]):
        model = models.build(**head["layout"])
    model.to(next(value.dtype for value in state.values() if value.is_floating_point()))
    if head["channels_last"]:
        model.to(memory_format=torch.channels_last)
    model.load_state_dict(state)
    return model.eval()
