"""What the names of modules say: in transformers a block's modules carry its number."""

from __future__ import annotations

from collections.abc import Iterable


def split_at_block(name: str) -> tuple[str | None, str]:
    """(the block, the rest) of a module's name: model.layers.3 and mlp.up_proj. Outside the blocks there is
    no block, and the rest is the whole name.
    """
    parts = name.split(".")
    place = next((n for n, part in enumerate(parts) if part.isdecimal()), None)
    if place is None:
        return None, name
    return ".".join(parts[: place + 1]), ".".join(parts[place + 1 :])


def block_number(name: str) -> int | None:
    """The first number in a module's name: the block it belongs to, None outside the blocks."""
    block, _ = split_at_block(name)
    return None if block is None else int(block.rpartition(".")[2])


def blocks_of(names: Iterable[str]) -> list[str]:
    """The blocks that hold these modules, each once, in their order."""
    blocks = (split_at_block(name)[0] for name in names)
    return list(dict.fromkeys(block for block in blocks if block is not None))
