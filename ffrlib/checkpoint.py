"""Checkpoints of a run in progress: all that the rest of it depends on, as arrays and JSON, whole or absent.

Order, augmentation and dropout masks of an epoch come from generators seeded by the run's seed and the epoch's number,
so that a checkpoint needs no generator's state and fits every device.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import warnings
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch

from ffrlib.files import write_atomically
from ffrlib.spec import key
from ffrlib.store import code_hash

PLACE = ("epoch", "curve", "seconds", "failure")
UNREADABLE = (  # what a damaged .npz can raise as it is read
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, TokenError,
)  # fmt: skip


def identity(trainer) -> list:
    """What a checkpoint must share with the run that goes on from it."""
    spec, code = trainer.spec, code_hash(trainer.spec, trainer.device.type == "cuda")
    return [key(spec), spec.seed, trainer.images.digest, str(trainer.dtype), sorted(trainer.masks), code]


def tensors(trainer) -> dict[str, torch.Tensor]:
    """What steps change in place: weights, batch-norm statistics and momentum of a `training.Trainer`."""
    model = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    return model | {f"momentum/{k}": value for k, value in enumerate(trainer.momentum)}


def state(trainer) -> dict[str, np.ndarray]:
    """Copies of the tensors, the curve and the place of a run."""
    arrays = {name: value.cpu().numpy().copy() for name, value in tensors(trainer).items()}
    head = {name: getattr(trainer, name) for name in PLACE} | {"threads": torch.get_num_threads()}
    arrays["head"] = np.frombuffer(json.dumps(head | {"identity": identity(trainer)}).encode(), np.uint8)
    return arrays


@torch.no_grad()
def load_state(trainer, arrays: dict[str, np.ndarray]) -> None:
    """Puts a state back in place, so that a captured graph still reads the right addresses.

    Raises KeyError or ValueError, the trainer untouched, where the state lacks an array or one has another shape.
    """
    head, own = json.loads(bytes(arrays["head"])), tensors(trainer)
    for name, value in own.items():  # all or nothing: what is not whole must not have changed half of the net
        if arrays[name].shape != tuple(value.shape):
            raise ValueError(f"{name} has shape {arrays[name].shape}, the net's has {tuple(value.shape)}")
    for name, value in own.items():
        value.copy_(torch.from_numpy(arrays[name]))
    for name in PLACE:
        setattr(trainer, name, head[name])


@contextlib.contextmanager
def ctrl_c_later():
    """A Ctrl-C within acts behind it: interrupted as it writes, zipfile raises another error, and one more later."""
    handler, seen = signal.getsignal(signal.SIGINT), []
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *args: seen.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if seen:  # where the block failed, too
            handler(*seen[0])


def save(trainer, path: Path) -> None:
    """Writes a checkpoint. Raises OSError that names the file; an older checkpoint is then untouched."""
    with ctrl_c_later():
        write_atomically(path, lambda file: np.savez(file, **state(trainer)))


def threads(path: Path) -> int:
    """With how many threads the run of a checkpoint was trained so far; 0 if none can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(bytes(file["head"]))["threads"]
    except UNREADABLE:
        return 0


def restore(trainer, path: Path) -> bool:
    """Goes on from a checkpoint of the same settings, seed, data, precision and code; says whether it did.

    One of another run is left alone, a damaged one too, with a warning: the run then starts from its beginning.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if json.loads(bytes(arrays["head"]))["identity"] != identity(trainer):
            return False
        load_state(trainer, arrays)
    except FileNotFoundError:
        return False
    except UNREADABLE as error:
        warnings.warn(f"checkpoint {path} cannot be read ({error}); the run starts from its beginning", stacklevel=2)
        return False
    return True
