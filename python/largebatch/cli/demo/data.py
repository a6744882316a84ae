# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Real text that every machine has: the sources of the Python standard library, as bytes."""

from __future__ import annotations

import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Installed packages and the test suites are left out: the first differ from one machine to the
# next, the second are half of the bytes and much of them tables of constants.
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
VALIDATION_SHARE = 10  # one file in ten


@dataclass(frozen=True)
class Corpus:
    """Training and validation bytes, split by whole files.

    Attributes
    ----------
    train, validation : Tensor
        ``[bytes]`` uint8 on the CPU; files follow each other, separated by one zero byte.
    files : int
        Number of files in both parts together.
    """

    train: Tensor
    validation: Tensor
    files: int


def load(root: Path | None = None) -> Corpus:
    """Read every ``*.py`` under ``root`` (default: the standard library) into a `Corpus`.

    A file belongs to the validation part when the CRC-32 of its relative path is a multiple of
    `VALIDATION_SHARE`, so the split is the same on every machine and does not move when files
    are added.

    Raises
    ------
    FileNotFoundError
        When one of the two parts would be empty, as in a Python that ships its library zipped.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(name.parts):
            in_validation = zlib.crc32(name.as_posix().encode()) % VALIDATION_SHARE == 0
            parts[in_validation].append(path.read_bytes())
    train, validation = (b"\0".join(part) for part in parts)
    if not train or not validation:
        raise FileNotFoundError(f"no Python sources to train on under {root}")
    return Corpus(
        torch.frombuffer(bytearray(train), dtype=torch.uint8),
        torch.frombuffer(bytearray(validation), dtype=torch.uint8),
        len(parts[0]) + len(parts[1]),
    )


def sample(text: Tensor, batch: int, context: int, generator: torch.Generator) -> Tensor:
    """Draw ``batch`` windows of ``context + 1`` bytes at random positions.

    Returns
    -------
    Tensor
        ``[batch, context + 1]`` int64 on the CPU; a window's first ``context`` bytes are the
        input, its last ``context`` bytes the targets.
    """
    starts = torch.randint(text.numel() - context, (batch, 1), generator=generator)
    return text[starts + torch.arange(context + 1)].long()
