"""Decoding of Llama-like models on a CPU in NumPy, over MLX's own weights: no copies, no graph, no
dispatch.

For a few rows a step's products are so small that most of MLX's time goes into building and
dispatching them, and OpenBLAS packs each weight before it multiplies. Here a weight is multiplied
in pieces that OpenBLAS's kernels for small matrices take as they are (1.3 to 2 times faster from 2
to 16 rows), and all rows of a group attend to one copy of their prompt's keys and values.
Activations lie as (features, rows).

Shapes: B rows, H hidden width, N heads, K heads of keys, R = N/K, D width of a head, P columns of a
prompt, S tokens written so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from chuk_lib.inference.decoder.llama import Block, Linear, LlamaParts, Norm, dense
from chuk_lib.runtime.cpu_math import view

_PIECES = (64, 32, 16, 8)
_SMALL = 1_000_000
"""Multiplications up to which OpenBLAS has kernels that need no packing."""
_FEW = 16
"""Rows up to which pieces are faster than the whole."""
_TINY = 1 << 16
"""Weights below which nothing is gained."""

Prefix = list[tuple[np.ndarray, np.ndarray]]
"""Keys and values (K, P, D) of a prompt, layer by layer."""


Under = list[tuple[int, Any]]
"""Adapters that rows of a batch are under, 0 for none of the added ones, each with the index of its
rows."""


class Remembered(NamedTuple):
    """What a row has behind it: its prompt's keys and values, shared, and those of what came
    after."""

    prefix: Prefix
    tail: Prefix | None = None


class NumpyLlama:
    """A batch of rows that decode together. A row has its prompt's `Prefix`, shared with the others
    of its group, and what it has written, in buffers (rows, K, columns, D) that grow as rows need
    it. `adapted`: the same arrays with other adapters, 1 the first of them; each row is under one
    of all."""

    def __init__(self, parts: LlamaParts, adapted: Sequence[LlamaParts] = ()) -> None:
        self._embedding = _flat(dense(parts.embedding))
        self._blocks = [
            _Block(block, others)
            for block, *others in zip(parts.blocks, *(one.blocks for one in adapted), strict=True)
        ]
        self._norm = _RMSNorm(parts.norm)
        self._head = _Product([parts.head], [[one.head] for one in adapted])
        self.vocabulary = parts.head.weight.shape[0]
        self._groups: list[Prefix] = []
        self._group = np.zeros(0, np.int64)  # (B,) which of `_groups` a row belongs to
        self._adapters = np.zeros(0, np.int64)  # (B,) which one a row is under
        self._written = np.zeros(0, np.int64)  # (B,)
        self._begins = np.zeros(0, np.int64)  # (B,) P of each row
        self._columns = 0

    def __len__(self) -> int:
        return len(self._group)

    def admit(
        self,
        memories: Sequence[Remembered],
        limits: Sequence[int],
        adapters: Sequence[int] | None = None,
    ) -> None:
        """Add rows at the end, each after what it remembers, to be continued by up to `limits`
        tokens under its adapter (default: 0)."""
        # A row's position is P + S: the columns of its prompt, held once for the group, and those
        # it wrote itself.
        begins = [memory.prefix[0][0].shape[1] for memory in memories]
        written = [0 if memory.tail is None else memory.tail[0][0].shape[1] for memory in memories]
        held = int(self._written.max(initial=0))
        self._columns = max(
            self._columns, *(done + limit for done, limit in zip(written, limits, strict=True))
        )
        first = len(self)
        for index, block in enumerate(self._blocks):
            block.reserve(first + len(memories), self._columns, held, max(begins) + self._columns)
            for row, memory in enumerate(memories, first):
                if memory.tail is not None:
                    block.place(row, *memory.tail[index])
        self._group = np.append(self._group, [self._group_of(memory.prefix) for memory in memories])
        own = np.zeros(len(memories), np.int64) if adapters is None else np.array(adapters)
        self._adapters = np.append(self._adapters, own)
        self._written = np.append(self._written, np.array(written, np.int64))
        self._begins = np.append(self._begins, np.array(begins, np.int64))

    def _group_of(self, prefix: Prefix) -> int:
        for group, known in enumerate(self._groups):
            # Identity, not equality: rows of a group are given the very same arrays, and comparing
            # keys would cost more than it saves.
            if known is prefix:
                return group
        self._groups.append(prefix)
        return len(self._groups) - 1

    def memory(self, row: int, length: int) -> Remembered:
        """The prefix of a row, and a copy of what it has written up to `length` tokens in all."""
        written = length - int(self._begins[row])
        return Remembered(
            self._groups[self._group[row]], [block.written(row, written) for block in self._blocks]
        )

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only, in this order; `rows` ascends."""
        # Columns beyond the longest row's are garbage of rows that left; they are not moved.
        longest = int(self._written[rows].max(initial=0))
        for block in self._blocks:
            block.keep(rows, longest)
        used, self._group = np.unique(self._group[rows], return_inverse=True)
        self._groups = [self._groups[group] for group in used]
        self._written, self._begins = self._written[rows], self._begins[rows]
        self._adapters = self._adapters[rows]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (B, V) after one more token (B,) for each row."""
        hidden = np.ascontiguousarray(self._embedding[tokens].T)
        under = _under(self._adapters)
        layout = _layout(self._group, self._written, self._begins, under)
        # 1/(1 + inf) in silu is right; unused keys are anything.
        with np.errstate(over="ignore", invalid="ignore"):
            for index, block in enumerate(self._blocks):
                block(hidden, layout, [group[index] for group in self._groups])
        # A row that ended is stepped on until it is dropped, and nobody reads what comes of it.
        # When its columns are full it writes over its own last one again and again: that is in no
        # other row's sight, and what is wanted of an ended row (`memory`) is taken when it ends.
        self._written = np.minimum(self._written + 1, self._columns - 1)
        return np.ascontiguousarray(self._head(self._norm(hidden), under).T)

    def run(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (T, V) after each of several tokens (T,) of the only row, which has room for
        them."""
        written, count = int(self._written[0]), len(tokens)
        hidden = np.ascontiguousarray(self._embedding[tokens].T)
        steps = np.arange(count)
        after = np.arange(written + count) > written + steps[:, None]
        layout = _Layout(
            [(0, count, int(self._group[0]))],
            slice(written, written + count),
            written + count,
            int(self._begins[0]) + written + steps,
            after[:, None, None],
            [(int(self._adapters[0]), slice(None))],
        )
        with np.errstate(over="ignore", invalid="ignore"):
            for index, block in enumerate(self._blocks):
                block(hidden, layout, [group[index] for group in self._groups])
        self._written += count
        return np.ascontiguousarray(self._head(self._norm(hidden), layout.under).T)

    def forget(self, count: int) -> None:
        """Take back the last tokens of the only row."""
        self._written -= count


class _Layout(NamedTuple):
    """Where the rows are in a step. `segments`: (first row, last row + 1, group) of neighbours that
    share a prompt. `column`: where all rows write, or each its own (B,). `hidden` (B, 1, 1, S):
    True where a row has no token, None when all have as many. A slice as `column`: all rows are one
    row's tokens, one after the other. `under`: adapters, each with its rows."""

    segments: list[tuple[int, int, int]]
    column: int | np.ndarray | slice
    columns: int
    positions: np.ndarray
    hidden: np.ndarray | None
    under: Under


def _under(adapters: np.ndarray) -> Under:
    used = np.unique(adapters).tolist()
    if len(used) == 1:
        return [(used[0], slice(None))]
    return [(one, np.flatnonzero(adapters == one)) for one in used]


def _layout(group: np.ndarray, written: np.ndarray, begins: np.ndarray, under: Under) -> _Layout:
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
    segments = [(a, b, int(group[a])) for a, b in pairwise(edges)]
    columns = int(written.max()) + 1
    # All rows as long as each other, the usual case within a group: one slice instead of an index a
    # row, and no mask.
    if int(written.min()) + 1 == columns:
        return _Layout(segments, columns - 1, columns, begins + written, None, under)
    # Column `written` of a row is the one this step fills, so it is in sight; what is above is not.
    hidden = np.arange(columns) > written[:, None]
    return _Layout(segments, written, columns, begins + written, hidden[:, None, None], under)


class _Block:
    """One layer: its weights, and the keys and values (B, K, columns, D) its rows have written."""

    def __init__(self, block: Block, adapted: Sequence[Block] = ()) -> None:
        self._block = block
        every = (block, *adapted)
        self._heads, self._kv_heads, self._width = block.heads, block.kv_heads, block.head_dim
        self._scale = np.float32(block.scale)
        self._cos = self._sin = np.zeros((0, block.head_dim // 2), np.float32)
        self._norms = _RMSNorm(block.before_attention), _RMSNorm(block.before_mlp)
        self._qkv = _products([one.q, one.k, one.v] for one in every)
        self._o = _products([one.o] for one in every)
        self._gate_up = _products([one.gate, one.up] for one in every)
        self._down = _products([one.down] for one in every)
        self._head_norms = [
            _flat_norm(norm) for norm in (block.q_norm, block.k_norm) if norm is not None
        ]
        self._keys = self._values = np.empty((0, self._kv_heads, 0, self._width), np.float32)

    def reserve(self, rows: int, columns: int, held: int, positions: int) -> None:
        """Have room for so many rows and columns, of which `held` are written, and rotations up to
        a position. Rows that come one by one get double of what there is: few copies, and memory
        that is not written costs nothing."""
        if positions > len(self._cos):
            self._cos, self._sin = _rotation(self._block, max(positions, 2 * len(self._cos)))
        before, _, wide, _ = self._keys.shape
        if rows <= before and columns <= wide:
            return
        shape = (
            max(rows, 2 * before) if rows > before else before,
            self._kv_heads,
            max(columns, wide),
            self._width,
        )
        # np.empty does not touch its pages: room for the longest row that may come costs memory
        # only when it is written.
        keys, values = self._keys[:, :, :held], self._values[:, :, :held]
        self._keys, self._values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._keys[:before, :, :held], self._values[:before, :, :held] = keys, values

    def place(self, row: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Keys and values (K, S, D) as the first columns of a row."""
        self._keys[row, :, : keys.shape[1]], self._values[row, :, : keys.shape[1]] = keys, values

    def written(self, row: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """A copy of a row's first columns, (K, columns, D) each."""
        return self._keys[row, :, :columns].copy(), self._values[row, :, :columns].copy()

    def keep(self, rows: np.ndarray, columns: int) -> None:
        """Move these rows to the front."""
        for store in (self._keys, self._values):
            store[: len(rows), :, :columns] = store[rows, :, :columns]

    def __call__(
        self, hidden: np.ndarray, layout: _Layout, prefixes: list[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Add this layer's two parts to `hidden` (H, B)."""
        q, k, v = self._queries_keys_values(self._norms[0](hidden), layout)
        rows = len(q)
        at: Any = (slice(rows), slice(None), layout.column)
        if isinstance(layout.column, slice):
            at, k, v = (0, slice(None), layout.column), k.swapaxes(0, 1), v.swapaxes(0, 1)
        elif layout.hidden is not None:
            at = (np.arange(rows), slice(None), layout.column)
        self._keys[at], self._values[at] = k, v
        attended = self._attend(q, layout, prefixes)
        hidden += self._o(np.ascontiguousarray(attended.reshape(rows, -1).T), layout.under)
        gate_up = self._gate_up(self._norms[1](hidden), layout.under)
        gate, up = gate_up[: len(gate_up) // 2], gate_up[len(gate_up) // 2 :]
        hidden += self._down(_silu_times(gate, up), layout.under)

    def _queries_keys_values(
        self, x: np.ndarray, layout: _Layout
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B, N, D) rotated and scaled, (B, K, D) rotated, (B, K, D)."""
        both = self._heads + self._kv_heads
        together = self._qkv(x, layout.under).T.reshape(
            x.shape[1], both + self._kv_heads, self._width
        )
        # Queries and keys are rotated together, values not.
        turned = np.ascontiguousarray(together[:, :both])
        if self._head_norms:
            self._normalize_heads(turned)
        half = self._width // 2
        # The halves convention of Hugging Face's Llama: dimension i turns with i + D/2.
        first, second = turned[..., :half], turned[..., half:]
        cos, sin = self._cos[layout.positions, None], self._sin[layout.positions, None]
        rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        q, k = rotated[:, : self._heads], rotated[:, self._heads :]
        # 1/√D once on the queries, instead of on every score.
        q *= self._scale
        return q, k, together[:, both:]

    def _normalize_heads(self, turned: np.ndarray) -> None:
        for part, (weight, eps) in zip(
            (turned[:, : self._heads], turned[:, self._heads :]), self._head_norms, strict=True
        ):
            square = np.einsum("bhd,bhd->bh", part, part) / np.float32(self._width)
            part /= np.sqrt(square + eps)[..., None]
            part *= weight

    def _attend(
        self, q: np.ndarray, layout: _Layout, prefixes: list[tuple[np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        """Attention (B, K, R, D) of one query a row to its prompt and to what it has written: two
        softmaxes joined by their maxima and sums."""
        rows = len(q)
        q = q.reshape(rows, self._kv_heads, -1, self._width)
        # R query heads share a head of keys: as a matrix of R rows each product reads the keys
        # once.
        one = isinstance(layout.column, slice)
        stored = 1 if one else rows
        keys, values = (store[:stored, :, : layout.columns] for store in (self._keys, self._values))
        scores = np.matmul(q, keys.swapaxes(-1, -2))
        if layout.hidden is not None:
            np.copyto(scores, np.float32(-np.inf), where=layout.hidden)
        highest = scores.max(axis=-1, keepdims=True)
        scores -= highest
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        if layout.hidden is not None and not one:
            # A hidden column's weight is exp(−inf) = 0, but what stands there is unwritten memory,
            # and 0 times NaN or inf is NaN: it is set to 0 first.
            values = np.where(layout.hidden[:, :, 0, :, None], np.float32(0), values)
        output: np.ndarray = np.matmul(scores, values)
        for first, last, group in layout.segments:
            if prefixes[group][0].shape[1]:
                part = slice(first, last)
                _join_prefix(q[part], *prefixes[group], highest[part], total[part], output[part])
        output /= total
        return output


def _join_prefix(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    highest: np.ndarray,
    total: np.ndarray,
    output: np.ndarray,
) -> None:
    """Add a group's attention to its prompt to `output` (G, K, R, D), whose weights are exp(score −
    highest) and add up to `total`; those two are brought up to date."""
    group, kv_heads, repeats, width = q.shape
    # All G rows of the group as one matrix of G·R queries: the prompt's keys are read from memory
    # once a step, not once a row.
    queries = q.transpose(1, 0, 2, 3).reshape(kv_heads, group * repeats, width)
    scores = np.matmul(queries, keys.swapaxes(-1, -2))
    best = scores.max(axis=-1, keepdims=True)
    before = highest.transpose(1, 0, 2, 3).reshape(best.shape)
    # Two softmaxes with maxima m₁, m₂ and sums s₁, s₂ are one with m = max(m₁, m₂) and s =
    # s₁·exp(m₁ − m) + s₂·exp(m₂ − m); the weighted values add up alike. The caller divides by s
    # once, at the end.
    new = np.maximum(best, before)
    scores -= new
    np.exp(scores, out=scores)
    sums, sight = scores.sum(axis=-1, keepdims=True), np.matmul(scores, values)
    shape = (kv_heads, group, repeats, -1)
    shrink = np.exp(before - new).reshape(shape).transpose(1, 0, 2, 3)
    total *= shrink
    total += sums.reshape(shape).transpose(1, 0, 2, 3)
    output *= shrink
    output += sight.reshape(shape).transpose(1, 0, 2, 3)


class _Product:
    """W·x + bias + scale·B·(A·x) of several linear layers at once, one below the other: (out, B) of
    x (in, B). `adapted`: the same layers with other adapters."""

    def __init__(self, layers: Sequence[Linear], adapted: Sequence[Sequence[Linear]] = ()) -> None:
        self._weights = [_flat(layer.dense) for layer in layers]
        self._biases = [
            None if layer.bias is None else _flat(layer.bias)[:, None] for layer in layers
        ]
        self._adapters = [[_transposed(layer) for layer in some] for some in (layers, *adapted)]
        self._ends = np.cumsum([len(weight) for weight in self._weights]).tolist()

    def __call__(self, x: np.ndarray, under: Under) -> np.ndarray:
        output = np.empty((self._ends[-1], x.shape[1]), np.float32)
        begin = 0
        for at, (weight, bias, end) in enumerate(
            zip(self._weights, self._biases, self._ends, strict=True)
        ):
            part = output[begin:end]
            _multiply(weight, x, part)
            if bias is not None:
                part += bias
            for number, rows in under:
                adapter = self._adapters[number][at]
                if adapter is not None:
                    part[:, rows] += adapter[1] @ (adapter[0] @ x[:, rows])
            begin = end
        return output


def _products(every: Iterable[Sequence[Linear]]) -> _Product:
    """Of layers, and of the same with other adapters."""
    layers, *adapted = every
    return _Product(layers, adapted)


def _multiply(weight: np.ndarray, x: np.ndarray, output: np.ndarray) -> None:
    """output (out, B) = weight (out, in) · x (in, B), by rows of both: OpenBLAS is up to 1.6 times
    faster at xᵀ·weightᵀ for these few columns, with what it costs to turn the result."""
    (width, rows), height = x.shape, len(weight)
    if rows == 1 or weight.size < _TINY:
        np.matmul(weight, x, out=output)
        return
    # 4 and 8 rows have kernels of their own: 3 or 5 cost more.
    padded = 4 if rows <= 4 else 8 if rows <= 8 else rows
    columns = np.zeros((padded, width), np.float32)
    columns[:rows] = x.T
    for piece in _PIECES if padded <= _FEW else ():
        if height % piece == 0 and piece * width * padded <= _SMALL:
            # The weight is seen as a stack of (piece, in) matrices, a view: each is below the size
            # where OpenBLAS would first copy its operands into packed panels.
            found = np.matmul(columns, weight.reshape(-1, piece, width).swapaxes(1, 2))
            output.reshape(-1, piece, rows)[:] = found[:, :rows].swapaxes(1, 2)
            return
    output[:] = (columns @ weight.T)[:rows].T


class _RMSNorm:
    """x·weight/√(mean(x²) + ε) of x (H, B)."""

    def __init__(self, norm: Norm) -> None:
        weight, self._eps = _flat_norm(norm)
        self._weight = weight[:, None]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        square = np.einsum("hb,hb->b", x, x)
        square /= len(x)
        square += self._eps
        result: np.ndarray = x / np.sqrt(square, out=square)
        result *= self._weight
        return result


def _silu_times(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate/(1 + exp(−gate))·up."""
    below: np.ndarray = np.negative(gate)
    # For a gate of −100 this is inf, and gate/inf = −0, which is what silu says: the caller
    # silences the warning.
    np.exp(below, out=below)
    below += 1
    np.divide(gate, below, out=below)
    below *= up
    return below


def _rotation(block: Block, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (positions, D/2), asked of the module that rotates: whatever its kind, it
    turns (1, 0) into (cos, sin)."""
    half = block.head_dim // 2
    # (1, 0) turned by an angle a is (cos a, sin a): asking the module itself covers every kind of
    # RoPE (llama3, YaRN, linear) without a second copy of their formulas.
    probe = mx.concatenate(
        [mx.ones((1, 1, positions, half)), mx.zeros((1, 1, positions, half))], axis=-1
    )
    turned = np.array(block.rope(probe, offset=0))[0, 0]
    return np.ascontiguousarray(turned[:, :half]), np.ascontiguousarray(turned[:, half:])


def _flat(array: mx.array) -> np.ndarray:
    return view(mx.contiguous(array))


def _flat_norm(norm: Norm) -> tuple[np.ndarray, np.float32]:
    return _flat(norm.weight), np.float32(norm.eps)


def _transposed(layer: Linear) -> tuple[np.ndarray, np.ndarray] | None:
    """Aᵀ (rank, in) and scale·Bᵀ (out, rank)."""
    if layer.adapter is None:
        return None
    a, b, scale = layer.adapter
    return _flat(a.T), _flat(b.T * scale)
