"""Image sets as uint8 tensors on the device; splits that no run's seed touches; batched preparation there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from ffrlib import fetch, spec

CIFAR10_BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]
TINY_COUNTS = (200, 100_000, 10_000)  # classes, training and validation images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set on one device: pairs of images uint8 (N, C, H, W) and labels int64 (N,).

    `mean`, `std`: float32 (C,), of the training images in use, in units of pixel value / 255 (the digits too).
    `digest`: one for each choice and order of images and labels. `value_range`: largest pixel value, for showing them.
    """

    name: str
    num_classes: int
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mean: Tensor
    std: Tensor
    digest: str
    value_range: int = 255


def load(name: str, train_size: int = 0, device="cpu", root: str | os.PathLike | None = None) -> ImageSet:
    """The set `name` (one of spec.DATA) on `device`, from `root` alone if given, else from where `fetch` finds it.

    A fixed tenth of the official training images, even over the classes, is the validation set (CIFAR: 5,000); of the
    rest the first `train_size` of a fixed order are used (0: all). Digits: 1,000 train, 297 validation, 500 test.
    An absent set is fetched where that is allowed (`fetch`; not with `root`). Raises ValueError for an unknown name or
    too large a `train_size`, FileNotFoundError for a missing or damaged set.
    """
    spec.choose("data", name, spec.DATA)
    read, num_classes, value_range = READERS[name]
    train, test = read(root)
    held = 297 if name == "digits" else 0
    return from_arrays(train, test, num_classes, name, train_size, held, device, value_range)


def from_arrays(train, test, num_classes: int, name: str, train_size: int = 0, held: int = 0, device="cpu",
                value_range: int = 255) -> ImageSet:  # fmt: skip
    """The set of two pairs of numpy arrays, images uint8 (N, C, H, W) and labels (N,) from 0 to num_classes - 1.

    `held` of the training images (0: a tenth), even over the classes, are the validation set; `train_size` and the
    order as in `load`. Raises ValueError for arrays of another kind.
    """
    for part, (x, y) in (("train", train), ("test", test)):
        found = f"{x.dtype} {x.shape}, labels {y.dtype} {y.shape}"
        good = x.dtype == np.uint8 and x.ndim == 4 and y.shape == x.shape[:1] and y.dtype.kind in "iu" and len(y)
        spec.require(good, f"the {part} part of {name}", found, "images uint8 (N, C, H, W), labels whole numbers (N,)")
        labels = (int(y.min()), int(y.max()))
        good = 0 <= labels[0] and labels[1] < num_classes
        spec.require(good, f"the range of the {part} labels of {name}", labels, f"from 0 to {num_classes - 1}")
    images, labels = train
    order = even_order(labels)
    held, rest = np.split(order, [held or len(order) // 10])
    allowed = f"0 (all) to {len(rest)} for {name}"
    spec.require(isinstance(train_size, int) and 0 <= train_size <= len(rest), "train_size", train_size, allowed)
    rest = rest[: train_size or None]
    tensors, digest = [], hashlib.sha256(name.encode())
    for pixels, numbers in ((images[rest], labels[rest]), (images[held], labels[held]), test):
        pair = np.ascontiguousarray(pixels), numbers.astype(np.int64)
        for array in pair:
            digest.update(str(array.shape).encode())
            digest.update(array)
        tensors.append(tuple(torch.from_numpy(array).to(device) for array in pair))
    mean, std = (values.to(device) for values in moments(images[rest]))
    return ImageSet(name, num_classes, *tensors, mean, std, digest.hexdigest()[:16], value_range)


def even_order(labels: np.ndarray) -> np.ndarray:
    """A fixed random order of the indices of `labels` (N,) in which every stretch has (nearly) equal class shares."""
    random = np.random.RandomState(0)  # the one generator of numpy whose stream is frozen for all versions
    position = np.empty(len(labels))
    for value in np.unique(labels):  # the k-th of a class's n images, shuffled, goes to (k + 1/2) / n of the way
        members = random.permutation(np.flatnonzero(labels == value))
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((random.permutation(len(labels)), position))


def moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each channel of uint8 (N, C, H, W) / 255: two float32 (C,)."""
    counts = [torch.from_numpy(images[:, c].ravel()).bincount(minlength=256) for c in range(images.shape[1])]
    counts, values = torch.stack(counts).numpy(), np.arange(256)  # exact, hence the same on every machine
    mean, square = (counts @ values**power / (images.size // images.shape[1]) for power in (1, 2))
    return torch.tensor(mean / 255).float(), torch.tensor(np.sqrt(square - mean**2) / 255).float()


def _digits(root):
    """scikit-learn's 1,797 digits, 8 x 8, values 0 to 16; there is no official test set, so 500 are held out."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    test, rest = np.split(even_order(labels), [500])
    return [(images[part], labels[part]) for part in (rest, test)]


def _cifar(root, name: str, train: list[str], test: str, skipped: int = 0):
    """CIFAR's binary layout: label (CIFAR-100: one coarse, `skipped`, one fine), then three planes of 32 x 32 bytes."""
    folder = fetch.locate(name, root)
    flat = [np.concatenate([np.fromfile(folder / file, np.uint8) for file in files]) for files in (train, [test])]
    rows = [records.reshape(-1, skipped + 1 + 3072)[:, skipped:] for records in flat]
    return [(part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0]) for part in rows]


def _stl10(root):
    """STL-10's labelled images, 96 x 96: planes stored column by column, labels 1 to 10."""
    folder = fetch.locate("stl10", root)
    x, y = ([np.fromfile(folder / f"{part}_{kind}.bin", np.uint8) for part in ("train", "test")] for kind in "Xy")
    return [(flat.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2), numbers - 1) for flat, numbers in zip(x, y)]


def _tiny_imagenet(root):
    """Tiny ImageNet-200, 64 x 64, decoded from the official folders (its val is our test); grey JPEGs become RGB."""
    folder = fetch.locate("tiny_imagenet", root)
    number = {name: i for i, name in enumerate(sorted((folder / "wnids.txt").read_text().split()))}
    train = [(path, i) for c, i in number.items() for path in sorted((folder / "train" / c / "images").glob("*.JPEG"))]
    rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    test = [(folder / "val" / "images" / row[0], number[row[1]]) for row in rows]
    found = (len(number), len(train), sum(path.exists() for path, _ in test))
    if found != TINY_COUNTS:
        raise FileNotFoundError(f"{folder} holds {found} classes, training and validation images instead of "
                                f"{TINY_COUNTS}: delete it, then fetch it with python -m ffrlib.fetch.")  # fmt: skip
    x = [np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in part]) for part in (train, test)]
    return [(p.transpose(0, 3, 1, 2), np.array([i for _, i in part])) for p, part in zip(x, (train, test))]


# name -> (reader of the official training and test pairs (images, labels), number of classes, largest pixel value)
READERS = {
    "digits": (_digits, 10, 16),
    "cifar10": (partial(_cifar, name="cifar10", train=CIFAR10_BATCHES, test="test_batch.bin"), 10, 255),
    "cifar100": (partial(_cifar, name="cifar100", train=["train.bin"], test="test.bin", skipped=1), 100, 255),
    "tiny_imagenet": (_tiny_imagenet, 200, 255),
    "stl10": (_stl10, 10, 255),
}


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(images / 255 - mean) / std, channels_last, rounded once to `dtype`; images (B, C, H, W), mean and std (C,)."""
    work = torch.promote_types(dtype, torch.float32)
    mean, std = mean.to(work)[:, None, None], std.to(work)[:, None, None]
    return ((images.to(work) / 255 - mean) / std).to(dtype, memory_format=torch.channels_last)


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int = 4) -> Tensor:
    """Each image zero-padded by `padding`, cropped to its size at (dy, dx), then mirrored left to right where `flip`.

    images uint8 (B, C, H, W); dy, dx int64 (B,) in [0, 2 * padding], unchecked: nothing here synchronises, so that it
    may be captured in a CUDA graph; flip bool (B,).
    """
    b, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = torch.arange(h, device=images.device) + dy[:, None]
    columns = torch.arange(w, device=images.device)
    columns = torch.where(flip[:, None], w - 1 - columns, columns) + dx[:, None]
    index = rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]
    return padded.flatten(2).gather(2, index.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)
