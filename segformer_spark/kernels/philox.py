"""Random bits as Triton draws them: Philox-4x32-10 (Salmon et al. 2011, section 3.3) in torch."""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(seed: Tensor, counter: Tensor) -> list[Tensor]:
    """Four words of 32 random bits for every counter, as int64: those of triton.language.randint4x.

    Args:
        seed: int64 (1,).
        counter: int64, any shape.
    """
    words = [counter & _MASK, (counter >> 32) & _MASK, torch.zeros_like(counter), torch.zeros_like(counter)]
    keys = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(10):
        (high_0, low_0), (high_2, low_2) = (
            _product(word, factor) for word, factor in zip((words[0], words[2]), _MULTIPLIERS, strict=True)
        )
        words = [high_2 ^ words[1] ^ keys[0], low_2, high_0 ^ words[3] ^ keys[1], low_0]
        keys = [(key + increment) & _MASK for key, increment in zip(keys, _INCREMENTS, strict=True)]
    return words


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two words; it does not fit into int64, but its halves do."""
    low = word * (factor & 0xFFFF)
    high = word * (factor >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def kept_by_dropout(seed: Tensor, rows: int, columns: int, dropped: int) -> Tensor:
    """Which values of a map dropout keeps, each with probability 1 - dropped / 65536: bool (rows, columns).

    A counter gives eight neighbours of a row their 16 bits.
    """
    groups = -(-columns // 8)
    words = philox(seed, torch.arange(rows * groups, device=seed.device).view(rows, groups))
    levels = [part for word in words for part in (word & 0xFFFF, word >> 16)]
    return torch.stack(levels, -1).view(rows, -1)[:, :columns] >= dropped
