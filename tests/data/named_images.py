"""Data sets that are names and categories alone, for what is cut and grouped by them."""

from __future__ import annotations

from typing import Any


def images(names: list[str], categories: tuple[str, ...] = (), category: tuple[int, ...] = ()) -> Any:
    """A data set of these names; `category` has an index into `categories` for each."""

    class Images:
        def __len__(self) -> int:
            return len(names)

        def sample_id(self, index: int) -> str:
            return names[index]

        def category(self, index: int) -> int:
            return category[index] if category else 0

    found: Any = Images()
    found.categories = categories
    return found
