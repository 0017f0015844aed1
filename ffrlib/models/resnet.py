"""Residual nets of two-convolution blocks: CIFAR ResNets (options A and B), HGSR's small ones, ResNet-18 for 64x64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ffrlib.models.layers import TRACKED, ChannelGroup, Layout, PadShortcut, check_widths, initialise, resolve_tap
from ffrlib.spec import require


@dataclass(frozen=True)
class ResNetPlan:
    """`depths[s]` blocks of `stage_widths[s]` channels a stage; from the second stage on each starts with stride 2."""

    depths: tuple[int, ...]
    stage_widths: tuple[int, ...]
    big_stem: bool = False  # 7x7 with stride 2 and a 3x3 max pool of stride 2; else 3x3
    init: str = "fan_out"  # see layers.initialise

    @property
    def widths(self) -> tuple[int, ...]:
        return self.spread(self.stage_widths)

    def spread(self, stage_widths: tuple[int, ...]) -> tuple[int, ...]:
        """One width a convolution: the stem, then both of each block."""
        return (stage_widths[0], *(w for w, d in zip(stage_widths, self.depths) for _ in range(2 * d)))


def _cifar(blocks: int) -> ResNetPlan:
    return ResNetPlan((blocks,) * 3, (16, 32, 64), init="fan_in")


PLANS = {
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
    "resnet18_small": ResNetPlan((2, 2, 2, 2), (8, 16, 32, 64), big_stem=True),
    "resnet34_small": ResNetPlan((3, 4, 6, 3), (8, 16, 32, 64), big_stem=True),
    "resnet18_tiny": ResNetPlan((2, 2, 2, 2), (64, 128, 256, 512)),
}


def default_map(earlier: int, later: int) -> tuple[int, ...]:
    """Option A as published: channel i goes to i + (later - earlier) // 2, zeros around it."""
    require(later >= earlier, "widths of a later and an earlier stage", (later, earlier),
            "a later stage at least as wide, or `maps` given")  # fmt: skip
    before = (later - earlier) // 2
    return tuple(j - before if 0 <= j - before < earlier else -1 for j in range(later))


def _checked_maps(maps, streams: list[int]) -> tuple[tuple[int, ...], ...]:
    require(len(maps) == len(streams) - 1, "number of maps", len(maps), f"{len(streams) - 1}, one a change of stage")
    for sources, earlier, later in zip(maps, streams, streams[1:]):
        carried = [s for s in sources if s >= 0]
        require(
            len(sources) == later and all(-1 <= s < earlier for s in sources) and len(set(carried)) == len(carried),
            "map", sources, f"{later} entries, each -1 or a channel below {earlier} that no other entry names",
        )  # fmt: skip
    return maps


class Projection(nn.Module):
    """Option B: 1x1 convolution of stride 2 and batch norm."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))

    def carry(self, x: torch.Tensor) -> torch.Tensor:
        """The same map as a step of the flow: it leaves the running statistics alone, which forward has updated."""
        if not self.norm.training:
            return self(x)
        return F.batch_norm(self.conv(x), None, None, self.norm.weight, self.norm.bias, True, 0.0, self.norm.eps)


class Block(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(before the first ReLU, after it, before the second, after it)."""
        first = self.bn1(self.conv1(x))
        middle = F.relu(first)
        last = self.bn2(self.conv2(middle)) + self.shortcut(x)
        return first, middle, last, F.relu(last)


class ResNet(nn.Module):
    """A residual net of the shape that `layout` and `plan` give; (N, 3, H, W) -> (N, num_classes)."""

    default_tap = "block_output"
    taps = (*TRACKED, "block_output")

    def __init__(self, layout: Layout, plan: ResNetPlan):
        super().__init__()
        widths, starts = layout.widths, [1]
        check_widths(layout.name, widths, len(plan.widths))
        for depth in plan.depths:
            starts.append(starts[-1] + 2 * depth)
        streams = [widths[start + 1] for start in starts[:-1]]
        written = (widths[0], *widths[2::2])  # the stem and each second convolution write the stream
        require(written == plan.spread(tuple(streams))[::2], f"widths of {layout.name}", widths,
                "one width for the stem and all second convolutions of stage 1, and one for those of each later stage")  # fmt: skip
        self.layout, self.big_stem = layout, plan.big_stem
        self.maps = None  # option A: what Layout.maps says, defaults filled in
        if layout.shortcut == "A":
            self.maps = layout.maps or tuple(default_map(a, b) for a, b in zip(streams, streams[1:]))
            _checked_maps(self.maps, streams)
        kernel, stride = (7, 2) if plan.big_stem else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{s}" for s in range(1, len(plan.depths) + 1)]
        size = widths[0]
        for s, (name, depth) in enumerate(zip(self.stages, plan.depths)):
            blocks = []
            for k in range(depth):
                inner, out = widths[starts[s] + 2 * k : starts[s] + 2 * k + 2]
                changes = s > 0 and k == 0
                shortcut = nn.Identity()
                if changes:
                    shortcut = PadShortcut(size, self.maps[s - 1]) if self.maps else Projection(size, out)
                blocks.append(Block(size, inner, out, 2 if changes else 1, shortcut))
                size = out
            self.add_module(name, nn.ModuleList(blocks))
        self.linear = nn.Linear(size, layout.num_classes)
        initialise(self, plan.init)

    def _blocks(self) -> list[Block]:
        return [block for name in self.stages for block in getattr(self, name)]

    def _run(self, x: torch.Tensor, tap: str | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        before = self.bn1(self.conv1(x))
        x = F.relu(before)
        features = [before] if tap == "pre_activation" else [x]
        if self.big_stem:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
            if tap == "block_output":
                features = [x]
        for block in self._blocks():
            first, middle, last, x = block(x)
            if tap == "pre_activation":
                features += [first, last]
            elif tap == "post_activation":
                features += [middle, x]
            elif tap == "block_output":
                features.append(x)
        return self.linear(x.mean((2, 3))), features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, None)[0]

    def flow(self, x: torch.Tensor, tap: str | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits and the features, each (N, C, H, W).

        "block_output": what enters the first block (a big stem's max pool included), then each block's output;
        "post_activation": every ReLU's output (a big stem's before its pool); "pre_activation": every ReLU's input.
        """
        return self._run(x, resolve_tap(self, tap))

    def shortcuts(self, tap: str | None = None) -> list[Callable | None]:
        """For each of the L - 1 steps of `flow`: the shortcut of the block where the shape changes, else None.

        Between ReLU outputs (or inputs) the change happens inside that block, so its shortcut fits as long as the inner
        width equals the stage's: a net with cut inner channels gets None there. A projection is called as
        `Projection.carry`, without a second update of its running statistics.
        """
        tap = resolve_tap(self, tap)
        steps = []
        for block in self._blocks():
            module = block.shortcut
            step = None if isinstance(module, nn.Identity) else getattr(module, "carry", module)
            if tap == "block_output":
                steps.append(step)
            else:
                steps += [step if block.conv1.out_channels == block.conv2.out_channels else None, None]
        return steps

    def groups(self) -> list[ChannelGroup]:
        """A "stream" group a stage, named "stage1", ..., each followed by the "inner" groups of its blocks."""
        out = []
        for s, stage in enumerate(self.stages):
            blocks, inner = getattr(self, stage), []
            writers, norms, readers = [], [], []
            if s == 0:
                writers, norms = ["conv1"], ["bn1"]
            elif self.maps is None:
                writers, norms = [f"{stage}.0.shortcut.conv"], [f"{stage}.0.shortcut.norm"]
            for k, block in enumerate(blocks):
                at = f"{stage}.{k}"
                writers.append(f"{at}.conv2")
                norms.append(f"{at}.bn2")
                if s == 0 or k > 0:
                    readers.append(f"{at}.conv1")
                size = block.conv1.out_channels
                inner.append(ChannelGroup(f"{at}.conv1", size, (f"{at}.conv1",), (f"{at}.bn1",), (f"{at}.conv2",), "inner"))
            if s + 1 == len(self.stages):
                readers.append("linear")
            else:
                after = f"{self.stages[s + 1]}.0"
                readers += [f"{after}.conv1"] + [f"{after}.shortcut.conv"] * (self.maps is None)
            size = blocks[0].conv2.out_channels
            out += [ChannelGroup(f"stage{s + 1}", size, tuple(writers), tuple(norms), tuple(readers), "stream"), *inner]
        return out
