"""Packing: rows that begin with the same tokens share them in one forward pass, exactly.

    segment:  prefix | tail of row 1 | tail of row 2 | ...          packed row: segment | segment | ...

Shapes: G tokens of the packed row, P of a prefix, L of a tail.

A tail attends to its segment's prefix and causally to itself, and its positions go on from the prefix, so every token
sees what it would see alone. A row with which another begins has no tail of its own. There is no G x G mask
(`segments.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nrt_cli.backends.local.segments import attend_segments, supported


@dataclass(frozen=True)
class Segment:
    """Where a segment lies in the packed row: `prefix` and `tails`, as (start, end)."""

    prefix: tuple[int, int]
    tails: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Segments:
    """The attention pattern of a packed row (`attention.Pattern`)."""

    segments: tuple[Segment, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Prefixes causally, each tail to its prefix and itself; the batch is the one packed row."""
        if supported(query):
            return attend_segments(query, key, value, self.segments, scaling)
        return self.attend_anywhere(query, key, value, scaling)

    def attend_anywhere(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The same by documented means alone: for each tail its prefix's keys copied before its own, and a mask."""
        out: list[Tensor] = []
        for segment in self.segments:
            own = slice(*segment.prefix)
            out.append(_attend(query[:, :, own], key[:, :, own], value[:, :, own], None, scaling))
            for tail in segment.tails:
                own_tail = slice(*tail)
                keys = torch.cat([key[:, :, own], key[:, :, own_tail]], 2)
                values = torch.cat([value[:, :, own], value[:, :, own_tail]], 2)
                mask = _tail_mask(tail[1] - tail[0], segment.prefix[1] - segment.prefix[0], query.dtype, query.device)
                out.append(_attend(query[:, :, own_tail], keys, values, mask, scaling))
        return torch.cat(out, 2)


@dataclass(frozen=True)
class Packed:
    """Rows laid side by side. `at[i]` maps positions of row i to places in the packed row."""

    ids: list[int]
    positions: list[int]
    pattern: Segments
    at: list[list[int]]


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def hosts(rows: Sequence[Sequence[int]]) -> list[int]:
    """For each row the one that holds its tokens: itself, or a row that begins with it."""
    found = list(range(len(rows)))
    order = sorted(found, key=lambda i: tuple(rows[i]))
    # Sorted, what begins with a row comes directly after it.
    for before, after in zip(order[-2::-1], order[:0:-1], strict=True):
        if rows[after][: len(rows[before])] == rows[before]:
            found[before] = found[after]
    return found


def pack(groups: Sequence[Sequence[Sequence[int]]]) -> Packed:
    """One segment for each group of rows; rows stay in order."""
    ids: list[int] = []
    positions: list[int] = []
    segments, at = [], []
    for rows in groups:
        shared = common_prefix(rows)
        start = len(ids)
        ids += rows[0][:shared]
        positions += range(shared)
        tails = []
        places: dict[int, list[int]] = {}
        found = hosts(rows)
        for host in dict.fromkeys(found):
            begin = len(ids)
            ids += rows[host][shared:]
            positions += range(shared, len(rows[host]))
            places[host] = [*range(start, start + shared), *range(begin, len(ids))]
            if begin < len(ids):
                tails.append((begin, len(ids)))
        at += [places[host][: len(row)] for host, row in zip(found, rows, strict=True)]
        segments.append(Segment((start, start + shared), tuple(tails)))
    return Packed(ids, positions, Segments(tuple(segments)), at)


def packed_pairs(rows: Sequence[Sequence[int]]) -> int:
    """Pairs of a token and one that it sees, itself included, of a group once packed."""
    shared, tails = _lengths(rows)
    return shared * (shared + 1) // 2 + sum(tail * shared + tail * (tail + 1) // 2 for tail in tails)


def packed_size(rows: Sequence[Sequence[int]]) -> int:
    """Tokens of a group once packed."""
    shared, tails = _lengths(rows)
    return shared + sum(tails)


def _lengths(rows: Sequence[Sequence[int]]) -> tuple[int, list[int]]:
    """Tokens of a group's prefix, and of each of its tails."""
    shared = common_prefix(rows)
    return shared, [len(rows[host]) - shared for host in set(hosts(rows))]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    if not query.shape[2]:
        return query
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


# A few, since all layers of one pass ask for the same: a mask of 2048 x 2348 takes 19 MB.
@lru_cache(maxsize=16)
def _tail_mask(length: int, prefix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Added to the scores of a tail, [L, P + L]: the whole prefix, and the tail up to oneself."""
    mask = torch.zeros(length, prefix + length, dtype=dtype, device=device)
    mask[:, prefix:] = torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
    return mask
