"""Compiled inner loops of the aggregation rules: what they do to an array of n' rows, one cache-sized block at a time.

Importing it imports numba (0.7 s), so only ``weighted_rows`` does it, when the first array large enough arrives.
Every kernel works on the columns lo .. hi of ``rows``, which must be contiguous, and on nothing else; it releases the
interpreter lock, so that threads share an array by its columns. What it computes does not depend on who calls it.

A kernel sees the rows ``through`` scales, mix and pick: seen_i = sum_j mix_pj scales_j rows_j with p = pick_i.
Each may be empty, which leaves it out; scales without a mix come with a pick. The shape of ``mix`` is padded with zeros
to multiples of four.

Sorting is a network of compare-exchanges (Batcher's odd-even merge sort) that runs over whole vectors: all columns of a
block at once. Its first steps, up to sorted groups of eight, are done in registers while a block is loaded. Which lines
are exchanged is data (``networks``), so nothing is compiled per n'. Sums run in an order that the compiler
picks for the processor's vector length: the same on every machine of a kind, however many threads there are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.aggregators.networks import MEDIAN, TRIMMED_MEAN
from strategies.compilation import compiled, inlined

Array = NDArray[Any]
Through = tuple[Array, Array, Array]
"""Scales, mix and pick."""

BLOCK = 1024
"""Columns worked on at a time: 20 rows of float32 are 80 KB."""

_SORT = {"nnan", "nsz"}  # finite input: minimum and maximum are one instruction each
_SUM = {"reassoc", "contract", "nsz"}  # lets a sum use all lanes of a vector


@inlined(fastmath=_SORT, inline="always")
def _pair(x: Any, y: Any) -> Any:
    return (x if x < y else y), (x if x > y else y)


@inlined(fastmath=_SORT, inline="always")
def _four(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return four numbers in ascending order."""
    a, b = _pair(a, b)
    c, d = _pair(c, d)
    a, c = _pair(a, c)
    b, d = _pair(b, d)
    b, c = _pair(b, c)
    return a, b, c, d


@inlined(fastmath=_SORT)
def _exchange(a: Array, b: Array, keep: int) -> None:
    """Put the minimum into a and the maximum into b; only the first for keep = 1, only the second for keep = 2."""
    if keep == 1:
        for k in range(a.shape[0]):
            x, y = a[k], b[k]
            a[k] = x if x < y else y
    elif keep == 2:
        for k in range(a.shape[0]):
            x, y = a[k], b[k]
            b[k] = x if x > y else y
    else:
        for k in range(a.shape[0]):
            x, y = a[k], b[k]
            a[k] = x if x < y else y
            b[k] = x if x > y else y


@inlined(fastmath=_SORT)
def _sort4(rows: Array, g: int, c: int, w: int, out: Array) -> None:
    """Write rows g .. g+3, columns c .. c+w, to the same rows of ``out``, every column sorted."""
    r0, r1, r2, r3 = rows[g, c : c + w], rows[g + 1, c : c + w], rows[g + 2, c : c + w], rows[g + 3, c : c + w]
    a0, a1, a2, a3 = out[g], out[g + 1], out[g + 2], out[g + 3]
    for k in range(w):
        a0[k], a1[k], a2[k], a3[k] = _four(r0[k], r1[k], r2[k], r3[k])


@inlined(fastmath=_SORT)
def _sort8(rows: Array, g: int, c: int, w: int, out: Array) -> None:
    """Write rows g .. g+7, columns c .. c+w, to the same rows of ``out``, every column sorted."""
    r0, r1, r2, r3 = rows[g, c : c + w], rows[g + 1, c : c + w], rows[g + 2, c : c + w], rows[g + 3, c : c + w]
    r4, r5, r6, r7 = rows[g + 4, c : c + w], rows[g + 5, c : c + w], rows[g + 6, c : c + w], rows[g + 7, c : c + w]
    a0, a1, a2, a3 = out[g], out[g + 1], out[g + 2], out[g + 3]
    a4, a5, a6, a7 = out[g + 4], out[g + 5], out[g + 6], out[g + 7]
    for k in range(w):
        x0, x1, x2, x3 = _four(r0[k], r1[k], r2[k], r3[k])
        x4, x5, x6, x7 = _four(r4[k], r5[k], r6[k], r7[k])
        x0, x4 = _pair(x0, x4)
        x1, x5 = _pair(x1, x5)
        x2, x6 = _pair(x2, x6)
        x3, x7 = _pair(x3, x7)
        x2, x4 = _pair(x2, x4)
        x3, x5 = _pair(x3, x5)
        x1, x2 = _pair(x1, x2)
        x3, x4 = _pair(x3, x4)
        x5, x6 = _pair(x5, x6)
        a0[k], a1[k], a2[k], a3[k], a4[k], a5[k], a6[k], a7[k] = x0, x1, x2, x3, x4, x5, x6, x7


@inlined(fastmath=_SORT)
def _sort(rows: Array, n: int, c: int, w: int, network: Array, out: Array) -> None:
    """Write rows 0 .. n, columns c .. c+w, to ``out`` so that the lines which the network is for hold their ranks."""
    g = 0
    while g + 8 <= n:
        _sort8(rows, g, c, w, out)
        g += 8
    if g + 4 <= n:
        _sort4(rows, g, c, w, out)
        g += 4
    while g < n:
        line, row = out[g], rows[g, c : c + w]
        for k in range(w):
            line[k] = row[k]
        g += 1
    for p in range(network.shape[0]):
        _exchange(out[network[p, 0]], out[network[p, 1]], network[p, 2])


@inlined(fastmath=_SUM)
def _mix4(mix: Array, o: int, i: int, s: Array, acc: Array) -> None:
    """Add to acc_q, q = o .. o+3, what rows i .. i+3 of s contribute to it; for i = 0 set it to that."""
    m00, m01, m02, m03 = mix[o, i], mix[o, i + 1], mix[o, i + 2], mix[o, i + 3]
    m10, m11, m12, m13 = mix[o + 1, i], mix[o + 1, i + 1], mix[o + 1, i + 2], mix[o + 1, i + 3]
    m20, m21, m22, m23 = mix[o + 2, i], mix[o + 2, i + 1], mix[o + 2, i + 2], mix[o + 2, i + 3]
    m30, m31, m32, m33 = mix[o + 3, i], mix[o + 3, i + 1], mix[o + 3, i + 2], mix[o + 3, i + 3]
    s0, s1, s2, s3 = s[i], s[i + 1], s[i + 2], s[i + 3]
    a0, a1, a2, a3 = acc[o], acc[o + 1], acc[o + 2], acc[o + 3]
    if i == 0:
        for k in range(s0.shape[0]):
            x0, x1, x2, x3 = s0[k], s1[k], s2[k], s3[k]
            a0[k] = m00 * x0 + m01 * x1 + m02 * x2 + m03 * x3
            a1[k] = m10 * x0 + m11 * x1 + m12 * x2 + m13 * x3
            a2[k] = m20 * x0 + m21 * x1 + m22 * x2 + m23 * x3
            a3[k] = m30 * x0 + m31 * x1 + m32 * x2 + m33 * x3
        return
    for k in range(s0.shape[0]):
        x0, x1, x2, x3 = s0[k], s1[k], s2[k], s3[k]
        a0[k] += m00 * x0 + m01 * x1 + m02 * x2 + m03 * x3
        a1[k] += m10 * x0 + m11 * x1 + m12 * x2 + m13 * x3
        a2[k] += m20 * x0 + m21 * x1 + m22 * x2 + m23 * x3
        a3[k] += m30 * x0 + m31 * x1 + m32 * x2 + m33 * x3


@inlined()
def _load(row: Array, scales: Array, i: int, line: Array) -> None:
    """Write one block of row i, scaled, to the start of a line."""
    if scales.shape[0]:
        scale = scales[i]
        for k in range(row.shape[0]):
            line[k] = scale * row[k]
    else:
        for k in range(row.shape[0]):
            line[k] = row[k]


@inlined()
def _see(rows: Array, through: Through, c: int, w: int, s: Array, t: Array, seen: Array) -> None:
    """Write columns c .. c+w of the seen rows to ``seen``, through the scratch of ``_scratch``.

    ``seen`` has at least the rows of ``mix``; those beyond the seen ones become 0.
    """
    scales, mix, pick = through
    if mix.shape[0]:
        if w < BLOCK:
            s[:] = 0
        for i in range(rows.shape[0]):
            _load(rows[i, c : c + w], scales, i, s[i])
        mixed_rows = t if pick.shape[0] else seen
        for o in range(0, mix.shape[0], 4):
            for i in range(0, mix.shape[1], 4):
                _mix4(mix, o, i, s, mixed_rows)
        for i in range(pick.shape[0]):
            line, mixed = seen[i], t[pick[i]]
            for k in range(w):
                line[k] = mixed[k]
    else:
        for i in range(pick.shape[0] if pick.shape[0] else rows.shape[0]):
            j = pick[i] if pick.shape[0] else i
            _load(rows[j, c : c + w], scales, j, seen[i])


@inlined()
def _scratch(mix: Array, m: int, like: Array) -> Any:
    """Return what ``_see`` writes to: loaded rows, mixed rows, and m seen rows."""
    u, n = mix.shape
    return _lines(n, like), _lines(u, like), _lines(max(m, u), like)


@inlined()
def _lines(count: int, like: Array) -> Array:
    return np.zeros((count, BLOCK), like.dtype)


@compiled
def order(
    rows: Array, through: Through, m: int, network: Array, mode: int, f: int, lo: int, hi: int, out: Array
) -> None:
    """Write what ``mode`` says of every column's m sorted values to ``out``: shape (d,), dtype of ``rows``."""
    direct = through[1].shape[0] + through[2].shape[0] == 0
    s, t, seen = _scratch(through[1], 0 if direct else m, rows)
    lines = np.zeros((m, BLOCK), rows.dtype)
    wide, near = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    for c in range(lo, hi, BLOCK):
        w = min(BLOCK, hi - c)
        if not direct:
            _see(rows, through, c, w, s, t, seen)
        source, start = (rows, c) if direct else (seen, 0)
        _sort(source, m, start, w, network, lines)
        part = out[c : c + w]
        if mode == MEDIAN:
            _middle(lines, m, part)
        elif mode == TRIMMED_MEAN:
            _mean(lines, f, m - f, wide, part)
        else:
            _mean_around(lines, m, f, wide, near, part)


# --- sorting with weights: every number takes along the weight of its row, a whole number as wide ---


@inlined(fastmath=_SORT, inline="always")
def _weighted_pair(x: Any, y: Any, p: Any, q: Any) -> Any:
    """Return two numbers in ascending order, and their weights in the same order."""
    swap = y < x
    return (y if swap else x), (x if swap else y), (q if swap else p), (p if swap else q)


@inlined(fastmath=_SORT)
def _weighted_exchange(a: Array, b: Array, p: Array, q: Array) -> None:
    for k in range(a.shape[0]):
        a[k], b[k], p[k], q[k] = _weighted_pair(a[k], b[k], p[k], q[k])


@inlined(fastmath=_SORT)
def _weighted_sort4(rows: Array, mass: Array, g: int, c: int, w: int, out: Array, along: Array) -> None:
    """Write rows g .. g+3, columns c .. c+w, to the same rows of ``out``, sorted, and their weights to ``along``."""
    r0, r1, r2, r3 = rows[g, c : c + w], rows[g + 1, c : c + w], rows[g + 2, c : c + w], rows[g + 3, c : c + w]
    a0, a1, a2, a3 = out[g], out[g + 1], out[g + 2], out[g + 3]
    b0, b1, b2, b3 = along[g], along[g + 1], along[g + 2], along[g + 3]
    m0, m1, m2, m3 = mass[g], mass[g + 1], mass[g + 2], mass[g + 3]
    for k in range(w):
        x0, x1, p0, p1 = _weighted_pair(r0[k], r1[k], m0, m1)
        x2, x3, p2, p3 = _weighted_pair(r2[k], r3[k], m2, m3)
        x0, x2, p0, p2 = _weighted_pair(x0, x2, p0, p2)
        x1, x3, p1, p3 = _weighted_pair(x1, x3, p1, p3)
        x1, x2, p1, p2 = _weighted_pair(x1, x2, p1, p2)
        a0[k], a1[k], a2[k], a3[k] = x0, x1, x2, x3
        b0[k], b1[k], b2[k], b3[k] = p0, p1, p2, p3


@inlined(fastmath=_SORT)
def _weighted_sort(rows: Array, mass: Array, n: int, c: int, w: int, network: Array, out: Array, along: Array) -> None:
    """Write rows 0 .. n, columns c .. c+w, to ``out``, and their weights to ``along``, as ``_sort`` does."""
    g = 0
    while g + 4 <= n:
        _weighted_sort4(rows, mass, g, c, w, out, along)
        g += 4
    while g < n:
        line, weights, row = out[g], along[g], rows[g, c : c + w]
        for k in range(w):
            line[k] = row[k]
            weights[k] = mass[g]
        g += 1
    for e in range(network.shape[0]):
        i, j = network[e, 0], network[e, 1]
        _weighted_exchange(out[i], out[j], along[i], along[j])


@compiled
def order_weighted(
    rows: Array,
    through: Through,
    mass: Array,
    network: Array,
    mode: int,
    cut: int,
    first: int,
    last: int,
    lo: int,
    hi: int,
    out: Array,
) -> None:
    """Write the weighted median or trimmed mean of every column's values to ``out``: shape (d,), dtype of ``rows``.

    Args:
        rows: shape (n, d).
        through: see the head of this file.
        mass: weights of the seen rows, shape (m,), whole numbers as wide as those of ``rows``; their sum is in range.
        network: sorts m lines, of which it puts first .. last - 1 in their ranks, as it was made for groups of four.
        mode: MEDIAN or TRIMMED_MEAN.
        cut: for the mean: the weight that is cut off at either end.
        first: the first rank that the result can depend on; those below it only count by their weight.
        last: one beyond the last such rank.
        lo: first column.
        hi: one beyond the last.
        out: the result.
    """
    m = mass.shape[0]
    direct = through[1].shape[0] + through[2].shape[0] == 0
    s, t, seen = _scratch(through[1], 0 if direct else m, rows)
    lines, along = np.zeros((m, BLOCK), rows.dtype), np.zeros((m, BLOCK), mass.dtype)
    before, wide, high = np.empty(BLOCK, mass.dtype), np.empty(BLOCK, np.float64), np.empty(BLOCK, rows.dtype)
    total = mass.dtype.type(mass.sum())
    for c in range(lo, hi, BLOCK):
        w = min(BLOCK, hi - c)
        if not direct:
            _see(rows, through, c, w, s, t, seen)
        source, start = (rows, c) if direct else (seen, 0)
        _weighted_sort(source, mass, m, start, w, network, lines, along)
        part = out[c : c + w]
        if mode == MEDIAN:
            _weighted_middle(lines, along, first, last, total, before, high, part)
            continue
        _weighted_sums(lines, along, first, last, total, cut, 1.0, before, wide, w)
        if not _divide(wide, total - 2 * cut, part):
            _weighted_sums(lines, along, first, last, total, cut, 1.0 / (total - 2 * cut), before, wide, w)
            least, most = lines[first], lines[last - 1]
            for k in range(w):
                part[k] = min(max(wide[k], least[k]), most[k])


@inlined()
def _weights_below(along: Array, first: int, before: Array) -> None:
    """Write the sums of the weights of lines 0 .. first - 1."""
    before[:] = 0
    for i in range(first):
        weights = along[i]
        for k in range(before.shape[0]):
            before[k] += weights[k]


@inlined()
def _weighted_middle(
    lines: Array, along: Array, first: int, last: int, total: int, before: Array, high: Array, out: Array
) -> None:
    """Write the middle of the least value with at least half of the weight and the least with more than half."""
    _weights_below(along, first, before)
    half, more = total - total // 2, total // 2 + 1
    top = lines[last - 1]
    for k in range(out.shape[0]):
        out[k] = high[k] = top[k]
    for i in range(first, last):
        line, weights = lines[i], along[i]
        for k in range(out.shape[0]):
            x, start = line[k], before[k]
            end = start + weights[k]
            out[k] = x if (start < half) & (end >= half) else out[k]
            high[k] = x if (start < more) & (end >= more) else high[k]
            before[k] = end
    for k in range(out.shape[0]):
        x, y = np.float64(out[k]), np.float64(high[k])
        mean = (x + y) * 0.5
        out[k] = mean if abs(mean) < np.inf else x * 0.5 + y * 0.5


@inlined()
def _weighted_sums(
    lines: Array,
    along: Array,
    first: int,
    last: int,
    total: int,
    cut: int,
    unit: float,
    before: Array,
    wide: Array,
    w: int,
) -> None:
    """Write the sums of the values in the middle of the weight, times unit; of one at a cut the part inside counts."""
    _weights_below(along, first, before)
    low, high = before.dtype.type(cut), before.dtype.type(total - cut)
    wide[:] = 0.0
    for i in range(first, last):
        line, weights = lines[i], along[i]
        for k in range(w):
            start = before[k]
            end = start + weights[k]
            before[k] = end
            kept = min(end, high) - max(start, low)
            wide[k] += (np.float64(max(kept, 0)) * unit) * np.float64(line[k])


@inlined()
def _middle(lines: Array, m: int, out: Array) -> None:
    """Write the medians of m sorted lines."""
    a, b = lines[(m - 1) // 2], lines[m // 2]
    for k in range(out.shape[0]):
        x, y = np.float64(a[k]), np.float64(b[k])
        mean = (x + y) * 0.5
        out[k] = mean if abs(mean) < np.inf else x * 0.5 + y * 0.5


@inlined()
def _mean_around(lines: Array, m: int, f: int, wide: Array, middle: Array, out: Array) -> None:
    """Write the means of the m - f values nearest to the median of m sorted lines.

    They are neighbours among the sorted ones, so of lines s and s + m - f, s < f, exactly one is among them, the nearer
    one; of equally near ones the smaller. With f > m - f these pairs form chains, which are gone through from the end.
    """
    keep = m - f
    a, b = lines[(m - 1) // 2], lines[m // 2]
    for k in range(middle.shape[0]):
        middle[k] = 0.5 * np.float64(a[k]) + 0.5 * np.float64(b[k])
    if f <= keep:
        wide[:] = 0.0
        for s in range(f):
            low, high = lines[s], lines[s + keep]
            for k in range(middle.shape[0]):
                x, y = np.float64(low[k]), np.float64(high[k])
                wide[k] += y if 0.5 * x + 0.5 * y < middle[k] else x
        _add_lines(lines, f, keep, wide)
        if _divide(wide, keep, out):
            return
    for s in range(f - 1, -1, -1):
        low, high = lines[s], lines[s + keep]
        for k in range(middle.shape[0]):
            x, y = low[k], high[k]
            low[k] = y if 0.5 * np.float64(x) + 0.5 * np.float64(y) < middle[k] else x
    _mean(lines, 0, keep, wide, out)


@inlined()
def _mean(lines: Array, first: int, last: int, wide: Array, out: Array) -> None:
    """Write the means of lines first .. last - 1, summed in float64; where that overflows, divided first."""
    wide[:] = 0.0
    _add_lines(lines, first, last, wide)
    if not _divide(wide, last - first, out):
        unit = 1.0 / (last - first)
        for k in range(out.shape[0]):
            total = 0.0
            for i in range(first, last):
                total += lines[i, k] * unit
            out[k] = total


@inlined()
def _add_lines(lines: Array, first: int, last: int, wide: Array) -> None:
    i = first
    while i + 3 < last:
        a, b, c, d = lines[i], lines[i + 1], lines[i + 2], lines[i + 3]
        for k in range(wide.shape[0]):
            wide[k] += (np.float64(a[k]) + np.float64(b[k])) + (np.float64(c[k]) + np.float64(d[k]))
        i += 4
    while i < last:
        a = lines[i]
        for k in range(wide.shape[0]):
            wide[k] += np.float64(a[k])
        i += 1


@inlined()
def _divide(wide: Array, count: int, out: Array) -> bool:
    """Write wide / count and return whether it is finite everywhere."""
    finite = True
    for k in range(out.shape[0]):
        finite &= abs(wide[k]) < np.inf
        out[k] = wide[k] / count
    return finite


@inlined(fastmath=_SUM, inline="always")
def _squared_difference(x: Any, y: Any) -> Any:
    return (x - y) * (x - y)


@inlined(fastmath=_SUM, inline="always")
def _product(x: Any, y: Any) -> Any:
    return x * y


def _pair_sums(term: Any) -> Any:
    """Return a kernel that adds to sums[i + p, j + q], p and q = 0 .. 3, what lines i + p and j + q of a block give.

    That is the sum of ``term`` over the columns.
    """

    @inlined(fastmath=_SUM)
    def add(s: Array, i: int, j: int, sums: Array) -> None:
        a0, a1, a2, a3 = s[i], s[i + 1], s[i + 2], s[i + 3]
        b0, b1, b2, b3 = s[j], s[j + 1], s[j + 2], s[j + 3]
        s00 = s01 = s02 = s03 = s.dtype.type(0)
        s10 = s11 = s12 = s13 = s.dtype.type(0)
        s20 = s21 = s22 = s23 = s.dtype.type(0)
        s30 = s31 = s32 = s33 = s.dtype.type(0)
        for k in range(a0.shape[0]):
            x0, x1, x2, x3 = a0[k], a1[k], a2[k], a3[k]
            y0, y1, y2, y3 = b0[k], b1[k], b2[k], b3[k]
            s00 += term(x0, y0)
            s01 += term(x0, y1)
            s02 += term(x0, y2)
            s03 += term(x0, y3)
            s10 += term(x1, y0)
            s11 += term(x1, y1)
            s12 += term(x1, y2)
            s13 += term(x1, y3)
            s20 += term(x2, y0)
            s21 += term(x2, y1)
            s22 += term(x2, y2)
            s23 += term(x2, y3)
            s30 += term(x3, y0)
            s31 += term(x3, y1)
            s32 += term(x3, y2)
            s33 += term(x3, y3)
        rows = (s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33)
        for p in range(4):
            for q in range(4):
                sums[i + p, j + q] += rows[p][q]

    return add


_add_differences, _add_products = _pair_sums(_squared_difference), _pair_sums(_product)


@compiled
def squares(rows: Array, through: Through, work: Array, lo: int, hi: int, sums: Array) -> None:
    """Add the squared distances of all pairs of seen rows to the upper blocks of ``sums``.

    Args:
        rows: shape (n, d).
        through: scales of shape (n,) or (0,); mix of shape (u, n') or (0, 0), u and n' multiples of four; pick of shape
            (m,) or (0,).
        work: shape (0,): its dtype is what differences are formed and squared in. Sums of a block leave it for float64.
        lo: first column.
        hi: one beyond the last.
        sums: shape (m', m'), float64, m' a multiple of four.
    """
    m = sums.shape[0]
    s, t, seen = _scratch(through[1], m, work)
    block = np.empty((m, m), work.dtype)
    for c in range(lo, hi, BLOCK):
        w = min(BLOCK, hi - c)
        if w < BLOCK:
            seen[:] = 0
        _see(rows, through, c, w, s, t, seen)
        block[:] = 0
        for i in range(0, m, 4):
            for j in range(i, m, 4):
                _add_differences(seen, i, j, block)
        for i in range(m):
            for j in range(i, m):
                sums[i, j] += block[i, j]


@compiled
def products(
    rows: Array, through: Through, m: int, network: Array, work: Array, lo: int, hi: int, center: Array, sums: Array
) -> None:
    """Add the inner products of the m seen rows, relative to a centre, to the upper blocks of ``sums``.

    Args:
        rows: shape (n, d).
        through: scales of shape (n,) or (0,); mix of shape (u, n') or (0, 0), u and n' multiples of four; pick of shape
            (m,) or (0,).
        m: how many rows are seen.
        network: where it is not empty, the median of every column is written to ``center`` first.
        work: shape (0,): its dtype is what products are formed in. Sums of a block leave it for float64.
        lo: first column.
        hi: one beyond the last.
        center: shape (d,), dtype of ``rows``.
        sums: shape (m', m'), float64, m' a multiple of four.
    """
    direct = through[1].shape[0] + through[2].shape[0] == 0
    s, t, seen = _scratch(through[1], 0 if direct else m, rows)
    lines = np.zeros((m, BLOCK), rows.dtype)
    apart = np.zeros((sums.shape[0], BLOCK), work.dtype)
    block = np.empty(sums.shape, work.dtype)
    for c in range(lo, hi, BLOCK):
        w = min(BLOCK, hi - c)
        if w < BLOCK:
            apart[:] = 0
        if not direct:
            _see(rows, through, c, w, s, t, seen)
        source, start = (rows, c) if direct else (seen, 0)
        middle = center[c : c + w]
        if network.shape[0]:
            _sort(source, m, start, w, network, lines)
            _middle(lines, m, middle)
        for i in range(m):
            line, row = apart[i], source[i, start : start + w]
            for k in range(w):
                line[k] = work.dtype.type(row[k]) - work.dtype.type(middle[k])
        block[:] = 0
        for i in range(0, sums.shape[0], 4):
            for j in range(i, sums.shape[0], 4):
                _add_products(apart, i, j, block)
        for i in range(m):
            for j in range(i, m):
                sums[i, j] += block[i, j]


@compiled
def combine(rows: Array, weights: Array, share: float, largest: float, lo: int, hi: int, out: Array) -> None:
    """Write to ``out`` sum_i weights_i rows_i + share * out, summed in float64 and held in [-largest, largest]."""
    wide = np.empty(4 * BLOCK, np.float64)
    n = rows.shape[0]
    for c in range(lo, hi, 4 * BLOCK):
        acc = wide[: min(4 * BLOCK, hi - c)]
        end = c + acc.shape[0]
        acc[:] = 0.0
        if share != 0.0:
            center = out[c:end]
            for k in range(acc.shape[0]):
                acc[k] = share * center[k]
        i = 0
        while i + 4 <= n:
            _add4(acc, weights, i, rows[i, c:end], rows[i + 1, c:end], rows[i + 2, c:end], rows[i + 3, c:end])
            i += 4
        while i < n:
            row, weight = rows[i, c:end], weights[i]
            for k in range(acc.shape[0]):
                acc[k] += weight * row[k]
            i += 1
        _hold(acc, largest, out[c:end])


@inlined(fastmath=_SORT)
def _hold(acc: Array, largest: float, out: Array) -> None:
    for k in range(acc.shape[0]):
        x = acc[k] if acc[k] < largest else largest
        out[k] = x if x > -largest else -largest


@inlined(fastmath=_SUM)
def _add4(acc: Array, weights: Array, i: int, r0: Array, r1: Array, r2: Array, r3: Array) -> None:
    w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
    for k in range(acc.shape[0]):
        acc[k] += w0 * r0[k] + w1 * r1[k] + w2 * r2[k] + w3 * r3[k]


@compiled
def lengths(rows: Array, through: Through, lo: int, hi: int, sums: Array) -> None:
    """Add the squared norms of the seen rows, in float64, to ``sums``: shape (m,)."""
    s, t, seen = _scratch(through[1], sums.shape[0], rows)
    plain = not (through[0].shape[0] or through[1].shape[0] or through[2].shape[0])
    for c in range(lo, hi, BLOCK):
        w = min(BLOCK, hi - c)
        if plain:
            for i in range(sums.shape[0]):
                sums[i] += _square(rows[i, c : c + w])
        else:
            _see(rows, through, c, w, s, t, seen)
            for i in range(sums.shape[0]):
                sums[i] += _square(seen[i, :w])


@compiled
def towards(rows: Array, through: Through, v: Array, lo: int, hi: int, sums: Array) -> None:
    """Add squared norms of the seen rows, and inner products with v, in float64, to ``sums``: shape (2, m)."""
    s, t, seen = _scratch(through[1], sums.shape[1], rows)
    plain = not (through[0].shape[0] or through[1].shape[0] or through[2].shape[0])
    for c in range(lo, hi, BLOCK):
        w = min(BLOCK, hi - c)
        if plain:
            for i in range(sums.shape[1]):
                sums[0, i] += _square(rows[i, c : c + w])
                sums[1, i] += _inner(rows[i, c : c + w], v[c : c + w])
        else:
            _see(rows, through, c, w, s, t, seen)
            for i in range(sums.shape[1]):
                sums[0, i] += _square(seen[i, :w])
                sums[1, i] += _inner(seen[i, :w], v[c : c + w])


@inlined(fastmath=_SUM)
def _inner(v: Array, u: Array) -> float:
    total = 0.0
    for k in range(v.shape[0]):
        total += np.float64(v[k]) * np.float64(u[k])
    return total


@inlined(fastmath=_SUM)
def _square(v: Array) -> float:
    total = 0.0
    for k in range(v.shape[0]):
        x = np.float64(v[k])
        total += x * x
    return total
