"""Splits, statistics and digests of the sets; loaders on fabricated folders and, where present, on the real files."""

import hashlib
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ffrlib import data, fetch

MOMENTS = {  # of all 50,000 training images, as published
    "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
}


def digest_of(images):
    """An image's bytes as a key, to count which images a split holds."""
    return [hashlib.md5(image.numpy().tobytes()).digest() for image in images]


def md5s(folder, name):
    """The checksums of a fabricated folder in the place of the official ones."""
    return fetch.SOURCES[name]._replace(
        files={file: fetch.checksum(folder / file) for file in fetch.SOURCES[name].files}
    )


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def arrays(count=100, shape=(1, 4, 4), classes=5):
    random = np.random.RandomState(0)
    return random.randint(0, 256, (count, *shape)).astype(np.uint8), np.arange(count) % classes


def test_a_set_of_ones_own_arrays_is_split_and_normalised():
    train, test = arrays(), arrays(20)
    own = data.from_arrays(train, test, 5, "own", train_size=50)
    assert [len(pair[1]) for pair in (own.train, own.validation, own.test)] == [50, 10, 20]
    assert own.validation[1].bincount().tolist() == [2] * 5, "the validation set is not even over the classes"
    seen = digest_of(torch.cat([own.train[0], own.validation[0]]))
    assert len(set(seen)) == 60 and set(seen) <= set(digest_of(torch.tensor(train[0])))
    x = data.normalise(own.train[0], own.mean, own.std)
    assert abs(float(x.mean())) < 1e-5 and float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(own.test[1], torch.tensor(test[1]))
    assert data.from_arrays(train, test, 5, "own").digest != own.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x / 255, y), r"the test part of own is 'float64 .* uint8"),
        (lambda x, y: (x.transpose(0, 2, 3, 1)[..., 0], y), r"\(20, 4, 4\), labels .* \(N, C, H, W\)"),
        (lambda x, y: (x, y[:-1]), r"labels int64 \(19,\)"),
        (lambda x, y: (x, y + 1), r"the range of the test labels of own is \(1, 5\).* from 0 to 4"),
        (lambda x, y: (x, y / 2), r"labels float64"),
        (lambda x, y: (x[:0], y[:0]), r"\(0, 1, 4, 4\)"),
    ],
)
def test_arrays_of_another_kind_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(arrays(), change(*arrays(20)), 5, "own")


def test_digits_are_split_evenly_and_completely(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    sizes = [len(pair[1]) for pair in (digits.train, digits.validation, digits.test)]
    assert sizes == [1000, 297, 500] and digits.num_classes == 10 and digits.value_range == 16
    for images, labels in (digits.train, digits.validation, digits.test):
        assert images.shape == (len(labels), 1, 8, 8)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.is_contiguous()
        share = labels.bincount(minlength=10) / len(labels) - torch.tensor(np.bincount(bunch.target) / 1797)
        assert share.abs().max() < 1.5 / len(labels)  # at most one image more or less than the even share
    everything = torch.cat([digits.train[0], digits.validation[0], digits.test[0]])
    original = torch.tensor(bunch.images, dtype=torch.uint8)[:, None]
    assert sorted(digest_of(everything)) == sorted(digest_of(original)) and everything.max() == 16
    label = dict(zip(digest_of(original), bunch.target.tolist(), strict=True))
    for images, labels in (digits.train, digits.validation, digits.test):
        assert [label[key] for key in digest_of(images)] == labels.tolist()


def test_the_split_of_the_digits_never_moves(digits):
    """Literal values: a change here would silently make every stored record incomparable."""
    assert digits.digest == "5241ab777cacb373"
    assert digits.test[1][:10].tolist() == [3, 1, 5, 4, 6, 9, 7, 0, 2, 8]
    state = torch.get_rng_state()
    np.random.seed(3)
    assert data.load("digits").digest == digits.digest  # no global generator is read,
    assert torch.equal(state, torch.get_rng_state())  # none is moved


def test_train_size_takes_the_first_of_a_fixed_order(digits):
    small = data.load("digits", train_size=60)
    assert torch.equal(small.train[0], digits.train[0][:60]) and torch.equal(small.train[1], digits.train[1][:60])
    assert torch.equal(small.validation[0], digits.validation[0]) and torch.equal(small.test[0], digits.test[0])
    assert small.digest != digits.digest and data.load("digits", train_size=1000).digest == digits.digest
    assert not torch.equal(small.mean, digits.mean)  # statistics come from the images in use
    pixels = small.train[0].double() / 255
    torch.testing.assert_close(small.mean.double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(small.std.double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [-1, 1001, 2.5, "10"])
def test_impossible_train_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"train_size is .*0 \(all\) to 1000 for digits"):
        data.load("digits", train_size=size)


def test_unknown_sets_get_the_nearest_name_and_sets_are_frozen(digits):
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        data.load("cifar-10")
    with pytest.raises(FrozenInstanceError):
        digits.mean = torch.zeros(1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120))
def test_even_order_is_a_permutation_with_even_prefixes(labels):
    labels = np.array(labels)
    order = data.even_order(labels)
    assert sorted(order) == list(range(len(labels)))
    for n in range(1, len(labels) + 1):
        for value in np.unique(labels):
            share = n * (labels == value).mean()
            assert abs((labels[order[:n]] == value).sum() - share) <= len(np.unique(labels)) / 2 + 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_moments_equal_the_definition(n, channels, size, seed):
    images = np.random.default_rng(seed).integers(0, 256, (n, channels, size, size + 1), dtype=np.uint8)
    mean, std = data.moments(images)
    flat = images.astype(np.float64).transpose(1, 0, 2, 3).reshape(channels, -1) / 255
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(std, flat.std(1), rtol=1e-6, atol=1e-9)


def test_moments_sum_over_all_images():
    images = np.zeros((4001, 1, 1, 1), np.uint8)
    images[[0, 2500, 4000]] = 255
    assert float(data.moments(images)[0]) == pytest.approx(3 / 4001, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.integers(0, 4), st.integers(0, 999)
)
def test_crop_and_flip_equals_one_image_after_the_other(b, c, h, w, padding, seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (b, c, h, w), generator=g, dtype=torch.uint8)
    dy, dx = (torch.randint(0, 2 * padding + 1, (b,), generator=g) for _ in range(2))
    flip = torch.rand(b, generator=g) < 0.5
    wanted = torch.zeros_like(images)
    for i in range(b):
        for y in range(h):
            for x in range(w):
                row, column = y + int(dy[i]) - padding, (w - 1 - x if flip[i] else x) + int(dx[i]) - padding
                if 0 <= row < h and 0 <= column < w:
                    wanted[i, :, y, x] = images[i, :, row, column]
    out = data.crop_and_flip(images, dy, dx, flip, padding)
    assert out.dtype == torch.uint8 and torch.equal(out, wanted)


def test_crop_and_flip_leaves_an_image_alone_in_the_middle():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    middle, no = torch.full((3,), 4), torch.zeros(3, dtype=torch.bool)
    assert torch.equal(data.crop_and_flip(images, middle, middle, no), images)
    assert torch.equal(data.crop_and_flip(images, middle, middle, ~no), images.flip(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalise_is_the_formula_rounded_once(dtype):
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.7]), torch.tensor([0.2, 0.3, 0.4])
    exact = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    out = data.normalise(images, mean, std, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    unit = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8 * 1.01}[dtype]
    assert ((out.double() - exact).abs() <= unit * exact.abs().clamp(min=1)).all()


def test_normalised_training_images_have_mean_0_and_deviation_1(digits):
    x = data.normalise(digits.train[0], digits.mean, digits.std, torch.float64)
    assert abs(x.mean()) < 1e-6 and abs(x.std(correction=0) - 1) < 1e-6


def test_preparation_reads_nothing_back_from_the_device():
    """On the meta device any `.item()` or data-dependent shape raises, as it would break a captured graph."""
    images = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="meta")
    dy = torch.empty(4, dtype=torch.int64, device="meta")
    x = data.crop_and_flip(images, dy, dy, torch.empty(4, dtype=torch.bool, device="meta"))
    mean = torch.empty(3, device="meta")
    assert data.normalise(x, mean, mean, torch.bfloat16).shape == (4, 3, 32, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_preparation_can_be_captured_in_a_cuda_graph():
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, device="cuda")
    dy, dx = (torch.randint(0, 9, (8,), device="cuda") for _ in range(2))
    flip, mean, std = torch.rand(8, device="cuda") < 0.5, torch.rand(3, device="cuda"), torch.ones(3, device="cuda")
    data.normalise(data.crop_and_flip(images, dy, dx, flip), mean, std)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = data.normalise(data.crop_and_flip(images, dy, dx, flip), mean, std)
    dy.fill_(2)
    graph.replay()
    assert torch.equal(out.cpu(), data.normalise(data.crop_and_flip(images, dy, dx, flip), mean, std).cpu())


def test_cifar_binaries_on_fabricated_files(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for name, train, test, label_bytes in (
        ("cifar10", data.CIFAR10_BATCHES, "test_batch.bin", 1),
        ("cifar100", ["train.bin"], "test.bin", 2),
    ):
        folder = tmp_path / fetch.SOURCES[name].folder
        folder.mkdir()
        records = {file: random.integers(0, 10, (20, label_bytes + 3072), dtype=np.uint8) for file in [*train, test]}
        for file, rows in records.items():
            rows[:, label_bytes - 1] = np.arange(20) % 10
            (folder / file).write_bytes(rows.tobytes())
        monkeypatch.setitem(fetch.SOURCES, name, md5s(folder, name))
        loaded = data.load(name, root=tmp_path)
        total = 20 * len(train)
        assert len(loaded.validation[1]) == total // 10 and len(loaded.train[1]) == total - total // 10
        assert loaded.test[1].tolist() == (np.arange(20) % 10).tolist()
        for i in (0, 7, 19):  # pixel by pixel: plane, row, column
            row = records[test][i, label_bytes:]
            assert loaded.test[0][i, 1, 2, 3] == row[1024 + 2 * 32 + 3]
        everything = [image for pair in (loaded.train, loaded.validation) for image in digest_of(pair[0])]
        wanted = [hashlib.md5(row[label_bytes:].tobytes()).digest() for file in train for row in records[file]]
        assert sorted(everything) == sorted(wanted)


def test_stl10_is_stored_column_by_column(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    random = np.random.default_rng(1)
    pixels = {
        part: random.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8) for part, n in (("train", 20), ("test", 10))
    }
    for part, images in pixels.items():
        (folder / f"{part}_X.bin").write_bytes(images.tobytes())
        (folder / f"{part}_y.bin").write_bytes((np.arange(len(images)) % 10 + 1).astype(np.uint8).tobytes())
    monkeypatch.setitem(fetch.SOURCES, "stl10", md5s(folder, "stl10"))
    loaded = data.load("stl10", root=tmp_path)
    assert loaded.test[1].tolist() == list(range(10)) and loaded.test[0].is_contiguous()
    assert loaded.test[0][4, 2, 10, 50] == pixels["test"][4, 2, 50, 10]  # (row, column) from [column][row]
    assert len(loaded.train[1]) == 18 and len(loaded.validation[1]) == 2


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A Tiny ImageNet of two classes, ten training and two validation images each, one of them grey."""
    folder = tmp_path / "tiny-imagenet-200"
    random = np.random.default_rng(2)
    monkeypatch.setattr(data, "TINY_COUNTS", (2, 20, 4))
    classes = ["n02", "n01"]  # the official list is not sorted: the loader must be the same whatever its order
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(classes) + "\n")
    for number, name in enumerate(classes):
        (folder / "train" / name / "images").mkdir(parents=True)
        for i in range(10):
            shade = np.full((64, 64, 3), 100 * number + 5 * i, np.uint8)
            Image.fromarray(shade).save(folder / "train" / name / "images" / f"{name}_{i}.JPEG", quality=100)
    rows = []
    for i in range(4):
        picture = Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8))  # grey
        picture.save(folder / "val" / "images" / f"val_{i}.JPEG")
        rows.append(f"val_{i}.JPEG\t{classes[i % 2]}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_tiny_imagenet_from_the_official_folders(tiny):
    loaded = data.load("tiny_imagenet", root=tiny)
    assert loaded.test[0].shape == (4, 3, 64, 64) and loaded.test[1].tolist() == [1, 0, 1, 0]  # n01 is class 0
    assert torch.equal(loaded.test[0][:, 0], loaded.test[0][:, 2])  # grey: the same in all three channels
    assert len(loaded.train[1]) == 18 and len(loaded.validation[1]) == 2
    for images, labels in (loaded.train, loaded.validation):  # class 0 is the lighter one
        assert ((images.float().mean((1, 2, 3)) >= 97) == (labels == 0)).all()


def test_an_incomplete_tiny_imagenet_is_refused(tiny):
    next((tiny / "tiny-imagenet-200" / "train" / "n01" / "images").glob("*.JPEG")).unlink()
    with pytest.raises(FileNotFoundError, match=r"\(2, 19, 4\) classes, training and validation images"):
        data.load("tiny_imagenet", root=tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_real_cifar(name):
    if not fetch.available(name):
        pytest.skip(f"{name} is not on this machine")
    loaded = data.load(name)
    assert [len(pair[1]) for pair in (loaded.train, loaded.validation, loaded.test)] == [45_000, 5_000, 10_000]
    assert loaded.validation[1].bincount().tolist() == [5_000 // loaded.num_classes] * loaded.num_classes
    if name == "cifar10":
        assert loaded.test[1][:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    read = data.READERS[name][0]
    (images, labels), _ = read(None)
    if name == "cifar10":
        assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    for got, wanted in zip(data.moments(images), MOMENTS[name], strict=True):
        torch.testing.assert_close(got, torch.tensor(wanted), rtol=2e-7, atol=0)
    small = data.load(name, train_size=20_000)
    assert torch.equal(small.train[1], loaded.train[1][:20_000]) and small.digest != loaded.digest
