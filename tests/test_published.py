"""The published weights: found, checked, and right to the last test image."""

import numpy as np
import pytest
import torch

from ffrlib import data, models
from ffrlib.fetch import available, checksum
from ffrlib.models import published


def present(name):
    try:
        return published.locate(name).is_file()
    except FileNotFoundError:
        return False


needs_weights = pytest.mark.skipif(not all(map(present, published.CHECKSUMS)), reason="published weights are not here")


def fake_original(path):
    """A file of the author's format (data-parallel names, a dict around them), with random numbers in it."""
    torch.manual_seed(0)
    model = models.build("resnet20", shortcut="A").eval()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, path)
    return model


def test_a_converted_original_is_the_same_net(tmp_path, monkeypatch):
    model = fake_original(tmp_path / "original.th")
    path = published.convert(tmp_path / "original.th", tmp_path / "resnet20-A-cifar10.npz")
    monkeypatch.setitem(published.CHECKSUMS, "resnet20", checksum(path, "sha256"))
    state = torch.get_rng_state()
    loaded = published.load("resnet20", tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training and loaded.layout == model.layout
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))


def test_another_checksum_is_refused(tmp_path):
    fake_original(tmp_path / "original.th")
    published.convert(tmp_path / "original.th", tmp_path / "resnet20-A-cifar10.npz")
    with pytest.raises(ValueError, match="SHA-256 of .*resnet20-A-cifar10.npz is .* allowed: .*ef390b25"):
        published.load("resnet20", tmp_path)


def test_absent_weights_say_where_they_are_published(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="akamaster/pytorch_resnet_cifar10.*FFR_WEIGHTS"):
        published.load("resnet56", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'resnet20'"):
        published.load("resnet2")
    monkeypatch.setenv("FFR_WEIGHTS", str(tmp_path / "named"))
    monkeypatch.setattr(published, "REPOSITORY", tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        published.locate("resnet20")
    for place in ("named", "data/weights", "data/raw/weights"):
        assert str(tmp_path / place) in str(error.value)


@needs_weights
def test_converting_gives_the_published_file_back(tmp_path):
    with np.load(published.locate("resnet20"), allow_pickle=False) as file:
        state = {f"module.{name}": torch.from_numpy(file[name]) for name in file.files}
    torch.save({"state_dict": state}, tmp_path / "original.th")
    path = published.convert(tmp_path / "original.th", tmp_path / "resnet20-A-cifar10.npz")
    assert checksum(path, "sha256") == published.CHECKSUMS["resnet20"]


@needs_weights
@pytest.mark.slow
@pytest.mark.skipif(not available("cifar10"), reason="CIFAR-10 is not here")
@pytest.mark.parametrize("name, right", [("resnet20", 9173), ("resnet56", 9339)])
def test_published_accuracy_to_the_last_image(name, right):
    images, labels = data.load("cifar10").test
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (published.PUBLISHED_MEAN, published.PUBLISHED_STD))
    model = published.load(name).to(memory_format=torch.channels_last)
    hits = 0
    with torch.inference_mode():
        for x, y in zip(images.split(500), labels.split(500)):
            x = ((x / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            hits += int((model(x).argmax(1) == y).sum())
    assert (len(labels), hits) == (10_000, right)
