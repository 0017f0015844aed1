"""Plain nets, AlexNet-small, VGG11-small, VGG16, VGG19, and a small one for the digits."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ffrlib.models.layers import ChannelGroup, Dropout, Layout, Net, initialise


@dataclass(frozen=True)
class PlainPlan:
    """3x3 convolutions in stages with a 2x2 max pool behind each, average pooling to `grid` x `grid`, linear layers."""

    stages: tuple[tuple[int, ...], ...]
    norm: bool = True
    bias: bool = True  # of the convolutions
    grid: int = 1
    hidden: tuple[int, ...] = ()  # hidden linear layers with dropout: never scaled, never cut
    dropout_first: bool = False  # before each of them, not behind
    last_pool: bool = True  # a max pool behind the last stage too
    in_channels: int = 3
    init: str = "vgg"

    @property
    def widths(self) -> tuple[int, ...]:
        return sum(self.stages, ())


def _vgg(*depths: int) -> PlainPlan:
    return PlainPlan(tuple((w,) * d for w, d in zip((64, 128, 256, 512, 512), depths)))


_VGG11 = ((16,), (32,), (64, 64), (128, 128), (128, 128))
PLANS = {
    "digits_cnn": PlainPlan(((16,), (16,) * 4, (32,)), bias=False, last_pool=False, in_channels=1, init="fan_out"),
    "alexnet_small": PlainPlan(((8,), (16,), (32, 16, 16)), False, True, 4, (128, 128), True, init="torch"),
    "vgg11_small": PlainPlan(_VGG11, False, hidden=(128, 128), init="fan_out"),
    "vgg11_small_bn": PlainPlan(_VGG11, hidden=(128, 128), init="fan_out"),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
}


class Plain(Net):
    """A plain net of the shape that `layout` and `plan` give."""

    def __init__(self, layout: Layout, plan: PlainPlan):
        super().__init__()
        widths = layout.widths
        self.layout, self.grid = layout, plan.grid
        inputs = (plan.in_channels, *widths)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=plan.bias) for i, o in zip(inputs, widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if plan.norm else nn.Identity() for o in widths)
        ends = list(accumulate(map(len, plan.stages)))
        self.pool_behind = frozenset(ends if plan.last_pool else ends[:-1])  # counted from 1
        head, sizes = [], (widths[-1] * plan.grid**2, *plan.hidden)
        for i, o in pairwise(sizes):
            linear = [nn.Linear(i, o), nn.ReLU()]
            head += [Dropout(), *linear] if plan.dropout_first else [*linear, Dropout()]
        self.head = nn.Sequential(*head, nn.Linear(sizes[-1], layout.num_classes))
        initialise(self, plan.init)

    def _run(self, x: torch.Tensor, tap: str | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = []
        for n, (conv, norm) in enumerate(zip(self.convs, self.norms), 1):
            before = norm(conv(x))
            x = F.relu(before)  # out of place: `before` may be a feature
            features += [before if tap == "pre_activation" else x] if tap else []
            x = F.max_pool2d(x, 2) if n in self.pool_behind else x
        if self.grid == 1:
            return self.head(x.mean((2, 3))), features
        if x.shape[2:] != (self.grid, self.grid):  # at 32x32 there is nothing to pool
            x = F.adaptive_avg_pool2d(x, self.grid)
        return self.head(x.flatten(1)), features

    def shortcuts(self, tap: str | None = None) -> list[None]:
        """None for each of the L - 1 steps of `flow`: a plain net has no shortcut."""
        self.tap_name(tap)
        return [None] * (len(self.convs) - 1)

    def groups(self) -> list[ChannelGroup]:
        """One "inner" group a convolution, read by the next one or by the first linear layer."""
        names = [f"convs.{n}" for n in range(len(self.convs))]
        linear = next(f"head.{n}" for n, module in enumerate(self.head) if isinstance(module, nn.Linear))
        norms = [f"norms.{n}" if isinstance(norm, nn.BatchNorm2d) else "" for n, norm in enumerate(self.norms)]
        return [
            ChannelGroup(name, conv.out_channels, (name,), (norm,), (reader,), "inner")
            for name, conv, norm, reader in zip(names, self.convs, norms, [*names[1:], linear])
        ]
