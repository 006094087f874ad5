"""What `verify` finds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Verification:
    """What was found.

    Attributes:
        faults: what is wrong, by file.
        recomputed: files and figures that follow from others and were computed anew.
        hashed: files of which only the digest was compared.
        unchecked: files that have no digest and were only read.
        digest: of SHA256SUMS; None without.
    """

    faults: list[str] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    hashed: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    digest: str | None = None
