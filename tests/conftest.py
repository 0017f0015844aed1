"""What several test files share: one thread, the digits, images of CIFAR's shape, a store of its own for each test."""

import os

import numpy as np
import pytest
import torch
from hypothesis import settings

from ffrlib import data

torch.set_num_threads(1)
os.environ.setdefault("FFR_DOWNLOAD", "never")  # what is not on the disk is skipped
settings.register_profile("ffrlib", deadline=None, derandomize=True)
settings.load_profile("ffrlib")


@pytest.fixture(scope="session")
def digits() -> data.ImageSet:
    return data.load("digits")


def colour_images(count: int = 512, num_classes: int = 10, size: int = 32, device="cpu") -> data.ImageSet:
    """Random images of CIFAR's shape whose class shows in their brightness: `count`, 64 and 64."""
    random = np.random.default_rng(0)

    def part(n):
        labels = random.integers(num_classes, size=n)
        pixels = random.integers(256, size=(n, 3, size, size)) * 0.6 + labels[:, None, None, None] * 10
        return torch.from_numpy(pixels.astype(np.uint8)).to(device), torch.from_numpy(labels).to(device)

    mean, std = (torch.full((3,), value, device=device) for value in (0.47, 0.2))
    return data.ImageSet("cifar10", num_classes, part(count), part(64), part(64), mean, std, "random")


@pytest.fixture(scope="session")
def colours() -> data.ImageSet:
    return colour_images()


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results store, which is also the default one during the test."""
    monkeypatch.setenv("FFR_RESULTS", str(tmp_path / "results"))
    for name in ("FFR_TRAIN", "FFR_STALE", "FFR_SUMMARY", "FFR_RUNNER", "FFR_SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "results"
