"""The nets. `build` gives any of them at any widths, so that a pruned net is an ordinary one."""

import math
from dataclasses import asdict

import torch
from torch import nn

from ffrlib.models import plain, resnet
from ffrlib.models.layers import ChannelGroup, Dropout, Layout, PadShortcut
from ffrlib.spec import CIFAR_RESNETS, choose, require
from ffrlib.spec import MODELS as NAMES

__all__ = ["NAMES", "ChannelGroup", "Dropout", "Layout"]
PLANS = {**plain.PLANS, **resnet.PLANS}


def build(name: str, num_classes: int = 10, shortcut: str | None = None, widths=None, maps=None) -> nn.Module:
    """A new net with its published initialisation (`layers.initialise`), drawn from torch's default generator.

    `shortcut`: "A" or "B" for the CIFAR ResNets, None or "" for all others. `widths` (None: as published) and `maps`:
    see `Layout`. digits_cnn reads (N, 1, 8, 8), all others (N, 3, H, W), the VGGs from 32 x 32
    on. Raises ValueError for what does not fit.
    """
    choose("model", name, NAMES)
    plan, shortcut = PLANS[name], shortcut or None
    choose(f"shortcut of {name}", shortcut, ("A", "B") if name in CIFAR_RESNETS else (None,))
    require(num_classes >= 1, "num_classes", num_classes, "1 or more")
    widths = plan.widths if widths is None else tuple(int(w) for w in widths)
    fits = len(widths) == len(plan.widths) and min(widths) >= 1
    require(fits, f"widths of {name}", widths, f"{len(plan.widths)} of them, one a counted convolution, each 1 or more")
    require(maps is None or shortcut == "A", "maps", maps, "None where the shortcuts are not of option A")
    maps = maps and tuple(tuple(int(s) for s in sources) for sources in maps)
    layout = Layout(name, int(num_classes), shortcut, widths, maps)
    return (plain.Plain if name in plain.PLANS else resnet.ResNet)(layout, plan)


def rebuild(layout: Layout, state: dict[str, torch.Tensor], channels_last: bool = False) -> nn.Module:
    """The net of `layout` with the tensors of `state`, in their dtype, on their device."""
    with torch.random.fork_rng(devices=[]):  # the first weights are thrown away: they use up no random numbers
        model = build(**asdict(layout))
    weight = next(iter(state.values()))
    model.to(weight.device, weight.dtype, memory_format=torch.channels_last if channels_last else None)
    model.load_state_dict(state)
    return model


def scaled_widths(name: str, factor: float, shortcut: str | None = None) -> tuple[int, ...]:
    """Published widths times `factor`, rounded half up, at least 1; the same for both shortcuts.

    Hidden linear layers (AlexNet-small, VGG11-small) keep their 128 units.
    """
    choose("model", name, NAMES)
    require(factor > 0, "factor", factor, "above 0")
    return tuple(max(1, math.floor(w * factor + 0.5)) for w in PLANS[name].widths)


def counted_convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """(name, convolution) in the order of `layout.widths`: all but the projections of the shortcuts (as HGSR).

    Those are known by their place, inside a submodule named `shortcut` of a block, in a net of one's own too.
    """
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and ".shortcut." not in n]


def carried(model: nn.Module) -> list[tuple[str, str, tuple[int, ...]]]:
    """(earlier group, later group, map) for each option-A shortcut that changes the stage; [] for all other nets."""
    pads = [module for module in model.modules() if isinstance(module, PadShortcut)]
    return [(f"stage{s}", f"stage{s + 1}", pad.sources) for s, pad in enumerate(pads, 1)]
