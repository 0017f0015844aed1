"""Checkpoints of a run in progress: all that the rest of it depends on, as arrays and JSON, whole or absent.

Order, augmentation and dropout masks of an epoch come from generators seeded by the run's seed and the epoch's number,
so that a checkpoint needs no generator's state and fits every device.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from ffrlib.files import write_atomically
from ffrlib.spec import key

PLACE = ("epoch", "curve", "seconds", "failure")


def identity(trainer) -> list:
    """What a checkpoint must share with the run that goes on from it."""
    return [key(trainer.spec), trainer.spec.seed, trainer.images.digest, str(trainer.dtype), sorted(trainer.masks)]


def state(trainer) -> dict[str, np.ndarray]:
    """Copies of weights, batch-norm statistics, momentum, curve and place of a `training.Trainer`."""
    arrays = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    arrays |= {f"momentum/{k}": value for k, value in enumerate(trainer.momentum())}
    arrays = {name: value.detach().cpu().numpy().copy() for name, value in arrays.items()}
    head = {name: getattr(trainer, name) for name in PLACE}
    arrays["head"] = np.frombuffer(json.dumps(head | {"identity": identity(trainer)}).encode(), np.uint8)
    return arrays


@torch.no_grad()
def load_state(trainer, arrays: dict[str, np.ndarray]) -> None:
    """Puts a state back in place, so that a captured graph still reads the right addresses."""
    for name, value in trainer.model.state_dict().items():
        value.copy_(torch.from_numpy(arrays[f"model/{name}"]))
    for k, value in enumerate(trainer.momentum()):
        value.copy_(torch.from_numpy(arrays[f"momentum/{k}"]))
    head = json.loads(bytes(arrays["head"]))
    for name in PLACE:
        setattr(trainer, name, head[name])


def save(trainer, path: Path) -> None:
    """Writes a checkpoint. Raises OSError that names the file; an older checkpoint is then untouched."""
    write_atomically(path, lambda file: np.savez(file, **state(trainer)))


def restore(trainer, path: Path) -> bool:
    """Goes on from a checkpoint of the same settings, seed, data and precision; says whether it did.

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
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"checkpoint {path} cannot be read ({error}); the run starts from its beginning", stacklevel=2)
        return False
    return True
