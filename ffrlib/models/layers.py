"""What all nets share: layout, channel groups, taps, dropout, option A's shortcut, initialisation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ffrlib.spec import choose, require


@dataclass(frozen=True)
class Layout:
    """All that `models.build` needs to rebuild a net's shape: `build(**asdict(model.layout))`.

    `widths[i]`: output channels of the i-th counted convolution (no 1x1 projections), in the order in which the image
    meets them. `maps` (option A alone; None: as published): one tuple per change of stage; for each channel of the
    later stage the channel of the earlier one that the shortcut carries there, or -1 for zeros.
    """

    name: str
    num_classes: int
    shortcut: str | None
    widths: tuple[int, ...]
    maps: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True)
class ChannelGroup:
    """`size` channels that are cut together: `writers` (convolutions whose output channel i is channel i of the group),
    `norms` (the batch norm behind each writer, "" where none), `readers` (convolutions and linear layers); `kind` is
    "inner" or "stream". All are module paths inside the net."""

    name: str
    size: int
    writers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    kind: str


class Net(nn.Module):
    """(N, channels, H, W) -> (N, num_classes), by the subclass's `_run(x, tap) -> (logits, features)`."""

    taps: tuple[str, ...] = ("post_activation", "pre_activation")
    default_tap = "post_activation"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, None)[0]

    def flow(self, x: torch.Tensor, tap: str | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits and the L features (N, C, H, W) at `tap`; ValueError for a tap that the net has not.

        "post_activation": the output of every ReLU behind a convolution, before any pooling; "pre_activation": its
        input; "block_output" (ResNets): what enters the first block, then what leaves each block.
        """
        return self._run(x, self.tap_name(tap))

    def tap_name(self, tap: str | None) -> str:
        """`tap`, or the net's default one for None and "default"."""
        tap = self.default_tap if tap in (None, "default") else tap
        choose(f"tap of {self.layout.name}", tap, self.taps)
        return tap


class Dropout(nn.Module):
    """Inverted dropout that draws from its attribute `generator` (None: the device's default one), a plain attribute
    outside the state dict. The draw is float32 whatever x is: runs of different precision drop the same units."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p, self.generator = p, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.p
        return x * (kept.to(x.dtype) / (1 - self.p))


class PadShortcut(nn.Module):
    """Option A: every second pixel, channels moved by `sources` (see `Layout.maps`; None: channel i goes to channel
    i + (later - earlier) // 2, zeros around them). (N, earlier, H, W) -> (N, later, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, earlier: int, later: int, sources: tuple[int, ...] | None = None):
        super().__init__()
        first = sources.index(0) if sources and 0 in sources else max(later - earlier, 0) // 2
        behind = later - earlier - first
        padded = (-1,) * first + tuple(range(earlier)) + (-1,) * behind
        self.sources = sources or padded
        filled = self.sources.count(-1) + len({*self.sources} & {*range(earlier)})
        require(filled == len(self.sources) == later, "map of a shortcut", self.sources,
                f"{later} entries, each -1 or a channel below {earlier}, none twice")  # fmt: skip
        self.padding = (first, behind) if self.sources == padded else None
        index = None if self.padding else torch.tensor([s % (earlier + 1) for s in self.sources])
        self.register_buffer("index", index, persistent=False)  # not in the state dict: the layout has it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, ::2, ::2]
        if self.padding:
            return F.pad(x, (0, 0, 0, 0, *self.padding))
        return F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self.index)  # the channel put behind holds the zeros


def initialise(model: nn.Module, scheme: str) -> None:
    """Draw the weights as published, from torch's default generator (seed it, or use torch.random.fork_rng).

    "torch": torch's own (AlexNet-small). "fan_in": convolutions and linear layers Kaiming normal (akamaster's CIFAR
    ResNets). "fan_out": convolutions Kaiming normal, fan_out, ReLU, zero bias (torchvision's ResNets, hence the small
    ones and resnet18_tiny; digits_cnn; VGG11-small). "vgg": also linear layers N(0, 0.01), zero bias (torchvision's
    VGG: VGG16, VGG19). HGSR's code has "vgg" for VGG11-small too, whose three small linear layers then pass too little:
    its loss stood at log 10 for 800 steps of lr .01, with "fan_out" for 100.
    """
    for module in model.modules():
        conv, linear = isinstance(module, nn.Conv2d), isinstance(module, nn.Linear)
        if scheme == "fan_in" and (conv or linear):
            nn.init.kaiming_normal_(module.weight)
        elif scheme in ("fan_out", "vgg") and conv:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif scheme == "vgg" and linear:
            nn.init.normal_(module.weight, 0, 0.01)
        if (conv and scheme in ("fan_out", "vgg") or linear and scheme == "vgg") and module.bias is not None:
            nn.init.zeros_(module.bias)
