"""Models and checkpoints: every file against the digest that was written beside it."""

from __future__ import annotations

from pathlib import Path

from segformer_spark.checkpoint.export import read_card
from segformer_spark.checkpoint.store import read, refuse_not_finite, verify
from segformer_spark.errors import CheckpointError
from segformer_spark.files.checksums import CHECKSUMS
from segformer_spark.models.weights import CARD, check_weights_folder
from segformer_spark.run.verification import Verification, verify_sealed


def verify_model(folder: Path) -> Verification:
    """An exported, fetched or published model's folder."""
    found = verify_sealed(folder) if (folder / CHECKSUMS).is_file() else Verification()
    if found.digest is None and (folder / CARD).is_file():
        found.faults.append(f"{CHECKSUMS}: missing; exports of before version 0.3 have none")
    for check in (check_weights_folder, read_card):
        try:
            check(folder)
        except CheckpointError as error:
            if not found.faults:
                found.faults.append(error.problem)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    with_digest = (folder / CHECKSUMS).is_file() or (folder / "fetched.json").is_file()
    (found.hashed if with_digest else found.unchecked).extend(names)
    return found


def verify_checkpoint(folder: Path) -> Verification:
    """A checkpoint: complete, as its manifest says, and finite."""
    found = Verification()
    try:
        verify(folder)
        refuse_not_finite(read(folder), str(folder))
    except CheckpointError as error:
        found.faults.append(error.problem)
    found.hashed = sorted(path.name for path in folder.iterdir() if path.is_file())
    return found
