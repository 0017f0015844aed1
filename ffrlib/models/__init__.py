"""The nets. `build` gives any of them at any widths, so that a pruned net is an ordinary one."""

from __future__ import annotations

import math

from torch import nn

from ffrlib.models.layers import ChannelGroup, Dropout, Layout
from ffrlib.models.plain import PLANS as PLAIN
from ffrlib.models.plain import Plain
from ffrlib.models.resnet import PLANS as RESNETS
from ffrlib.models.resnet import ResNet
from ffrlib.spec import CIFAR_RESNETS, MODELS, choose, require

NAMES = MODELS

__all__ = ["NAMES", "ChannelGroup", "Dropout", "Layout", "build", "carried", "counted_convolutions", "scaled_widths"]


def build(name: str, num_classes: int = 10, shortcut: str | None = None, widths=None, maps=None) -> nn.Module:
    """A new net with its published initialisation (`layers.initialise`), drawn from torch's default generator.

    `shortcut`: "A" or "B" for the CIFAR ResNets, None or "" for all others. `widths` (None: as published) and `maps`:
    see `Layout`. digits_cnn reads (N, 1, 8, 8), all others (N, 3, H, W). Raises ValueError for what does not fit.
    """
    choose("model", name, NAMES)
    shortcut = shortcut or None
    choose(f"shortcut of {name}", shortcut, ("A", "B") if name in CIFAR_RESNETS else (None,))
    require(num_classes >= 1, "num_classes", num_classes, "1 or more")
    require(maps is None or shortcut == "A", "maps", maps, "None, but for a net with option-A shortcuts")
    plan = PLAIN[name] if name in PLAIN else RESNETS[name]
    widths = plan.widths if widths is None else tuple(int(w) for w in widths)
    maps = None if maps is None else tuple(tuple(int(s) for s in sources) for sources in maps)
    layout = Layout(name, int(num_classes), shortcut, widths, maps)
    return (Plain if name in PLAIN else ResNet)(layout, plan)


def scaled_widths(name: str, factor: float, shortcut: str | None = None) -> tuple[int, ...]:
    """Published widths times `factor`, rounded half up, at least 1; the same for both shortcuts.

    Hidden linear layers (AlexNet-small, VGG11-small) keep their 128 units.
    """
    choose("model", name, NAMES)
    require(factor > 0, "factor", factor, "above 0")
    plan = PLAIN[name] if name in PLAIN else RESNETS[name]
    return tuple(max(1, math.floor(w * factor + 0.5)) for w in plan.widths)


def counted_convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """(name, convolution) in the order of `layout.widths`: all but the 1x1 projections of the shortcuts (as HGSR)."""
    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [(name, module) for name, module in convs if ".shortcut." not in name]


def carried(model: nn.Module) -> list[tuple[str, str, tuple[int, ...]]]:
    """(earlier group, later group, map) for each option-A shortcut that changes the stage; [] for all other nets."""
    maps = getattr(model, "maps", None) or ()
    return [(f"stage{s}", f"stage{s + 1}", sources) for s, sources in enumerate(maps, 1)]
