"""What all nets share: their layout as data, groups of channels, dropout, and the option-A shortcut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ffrlib.spec import choose, require

TRACKED = ("post_activation", "pre_activation")  # taps that every net has


@dataclass(frozen=True)
class Layout:
    """All that `models.build` needs to rebuild a net's shape: `build(**asdict(model.layout))`.

    `widths[i]` is the number of output channels of the i-th counted convolution (no 1x1 shortcut projections), in the
    order in which the image meets them. `maps` (option A alone; None: the published zero-padding) holds one tuple per
    change of stage: for each channel of the later stage the channel of the earlier one that the shortcut carries there,
    or -1 for zeros.
    """

    name: str
    num_classes: int
    shortcut: str | None
    widths: tuple[int, ...]
    maps: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True)
class ChannelGroup:
    """`size` channels that are cut together; all names are module paths inside the net.

    `writers`: convolutions whose output channel i is channel i of the group; `norms`: the batch norm behind each writer
    ("" where none); `readers`: convolutions and linear layers that read the group; `kind`: "inner" or "stream".
    """

    name: str
    size: int
    writers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    kind: str


class Dropout(nn.Module):
    """Inverted dropout whose mask comes from `self.generator` (None: torch's default generator of the device).

    `generator` is a plain attribute, set by whoever trains the net and absent from the state dict. The draw is float32
    for every dtype of x, so that runs of different precision drop the same units.
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        require(0 <= p < 1, "p", p, "0 to less than 1")
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.p
        return x * (kept.to(x.dtype) / (1 - self.p))


class PadShortcut(nn.Module):
    """Option A: every second pixel, channels moved by `sources` (see `Layout.maps`), zeros elsewhere; no parameters.

    (N, in_channels, H, W) -> (N, len(sources), ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_channels: int, sources: tuple[int, ...]):
        super().__init__()
        before = sources.index(0) if 0 in sources else 0
        after = len(sources) - in_channels - before
        whole = (-1,) * before + tuple(range(in_channels)) + (-1,) * after
        self.padding = (before, after) if sources == whole else None
        index = None if self.padding else torch.tensor([in_channels if s < 0 else s for s in sources])
        self.register_buffer("index", index, persistent=False)  # not in the state dict: it is in the layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, ::2, ::2]
        if self.padding:
            return F.pad(x, (0, 0, 0, 0, *self.padding))
        return F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self.index)  # the appended channel holds the zeros


def resolve_tap(model: nn.Module, tap: str | None) -> str:
    """The tap's name (None and "default" give `model.default_tap`); ValueError for one that the net has not."""
    tap = model.default_tap if tap in (None, "default") else tap
    choose(f"tap of {model.layout.name}", tap, model.taps)
    return tap


def check_widths(name: str, widths: tuple[int, ...], count: int) -> None:
    """ValueError unless `widths` are `count` positive ints."""
    require(len(widths) == count, f"number of widths of {name}", len(widths), f"{count}, one a counted convolution")
    require(min(widths) >= 1, f"widths of {name}", widths, "1 or more in each layer")


def initialise(model: nn.Module, scheme: str) -> None:
    """Draw all weights anew, as published, from torch's default generator.

    - "torch": torch's own (AlexNet-small in HGSR's code).
    - "fan_out": convolutions Kaiming normal, fan_out, ReLU, zero bias; linear layers torch's own (torchvision's ResNets;
      ResNet18-small and 34-small).
    - "vgg": the same, and linear layers N(0, 0.01) with zero bias (torchvision's VGG; VGG11-small, VGG16, VGG19).
    - "fan_in": weights of convolutions and linear layers Kaiming normal, fan_in (akamaster's CIFAR ResNets).
    """
    choose("scheme", scheme, ("torch", "fan_out", "vgg", "fan_in"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and scheme in ("fan_out", "vgg"):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and scheme == "vgg":
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and scheme == "fan_in":
            nn.init.kaiming_normal_(module.weight)
