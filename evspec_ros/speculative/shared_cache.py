"""Several texts in one KV cache: whose rows are whose, and what the rows of a pass attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evspec_ros.engines.decoder import Rows
from evspec_ros.networks.devices import uploaded
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.device_tree import DeviceTree, Draft


@dataclass(frozen=True, eq=False)
class Block:
    """What is read of one text in a pass: the last token emitted, the root, and a tree behind it."""

    text: int
    root: int
    tree: Draft

    def ids(self) -> Tensor:
        """The token of each of its rows, where the tree is."""
        tokens = self.tree.tokens
        if isinstance(tokens, Tensor):
            return torch.cat((tokens.new_full((1,), self.root), tokens))
        return torch.tensor((self.root, *tokens.tolist()))

    def rows(self) -> Rows:
        """Each behind the row before the root by its depth, attending to its ancestors alone."""
        tree = self.tree
        if isinstance(tree, DeviceTree):
            return Rows(self.ids(), tree.row_depths(), tree.ancestors)
        return Rows(self.ids(), torch.from_numpy(tree.row_depths()), torch.from_numpy(tree.ancestors()))


@dataclass
class _CachedText:
    """How long a text is, prompt included, and which rows of the cache are its own, bool [capacity]."""

    length: int
    visible: Tensor


class SharedCache:
    """The texts that one cache holds, numbered from 0; what their prompts have in common is kept once."""

    def __init__(self, cache: KVCache, prompt_rows: int) -> None:
        """The cache holds the first text's prompt."""
        self._capacity = cache.capacity
        self._texts = [_CachedText(prompt_rows, self._first(prompt_rows))]
        self._blocks: list[tuple[int, int]] = []  # of the last pass: each block's text and rows

    def add_prompt(self, common: int, rows: int, cached: int) -> Tensor:
        """One more text, whose prompt has its first `common` rows in common with the others; `rows` of its
        own follow the `cached` ones. What each of these attends to, bool [rows, cached + rows].
        """
        visible = self._first(common)
        mask = torch.cat((visible[:cached].expand(rows, -1), visible.new_ones(rows, rows).tril()), 1)
        visible[cached : cached + rows] = True
        self._texts.append(_CachedText(common + rows, visible))
        return mask

    def rows(self, blocks: Sequence[Block], prefix: int) -> Rows:
        """The rows of a pass behind `prefix` cached ones: each at the position of its text's length + depth,
        attending to its text and its ancestors. Where one of the trees is on a device all of them are.
        """
        self._blocks = [(block.text, len(block.tree) + 1) for block in blocks]
        parts = [block.rows() for block in blocks]
        drafted = [block.tree.tokens for block in blocks if isinstance(block.tree, DeviceTree)]
        device = drafted[0].device if drafted else torch.device("cpu")
        depths, masks = list[Tensor](), list[Tensor]()
        for block, part in zip(blocks, parts, strict=True):
            assert part.depths is not None
            assert part.visible is not None
            depths.append(uploaded(part.depths, device) + (self._texts[block.text].length - prefix))
            masks.append(uploaded(part.visible, device))
        ids = torch.cat([uploaded(part.ids, device) for part in parts])
        ancestors: Tensor = torch.block_diag(*masks)  # type: ignore[no-untyped-call]
        texts = [self._texts[text].visible[:prefix].expand(rows, -1) for text, rows in self._blocks]
        seen = uploaded(torch.cat(texts), device)
        return Rows(ids, torch.cat(depths), torch.cat((seen, ancestors), 1))

    def keep(self, rows: Sequence[Sequence[int]], prefix: int) -> list[int]:
        """Give each text its accepted rows, which will follow each other behind the prefix; their places
        in the last pass.
        """
        first = 0
        kept: list[int] = []
        for (text, count), accepted in zip(self._blocks, rows, strict=True):
            start = prefix + len(kept)
            self._texts[text].visible[start : start + len(accepted)] = True
            self._texts[text].length += len(accepted)
            kept += [first + row for row in accepted]
            first += count
        return kept

    def _first(self, rows: int) -> Tensor:
        """Bool [capacity], the first rows alone."""
        return torch.arange(self._capacity) < rows
