#!/usr/bin/env python3
"""Compares Croquis's ggml blocks with the gguf package: rows to blocks byte for byte, blocks to rows bit for bit.
IQ4_NL, which the package only reads, is compared with ggml's own encoder, where llama-cpp-python is installed.

usage: gguf_blocks.py CROQUIS_BLOCKS [--blocks N] | gguf_blocks.py --write-golden
  CROQUIS_BLOCKS   the program built from tests/tools/croquis_blocks.cc
  --blocks         blocks of each kind of row and format (default 3000)
  --write-golden   writes croquis/codecs/ggml/golden_blocks.h instead of comparing
Needs: pip install gguf numpy; for IQ4_NL and --write-golden also llama-cpp-python
"""
import argparse
import ctypes
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BOTH_WAYS = [T.Q8_0, T.Q5_1, T.Q5_0, T.Q4_1, T.Q4_0, T.BF16, T.F16]
READ_ONLY = [T.IQ4_NL, T.Q4_K, T.Q6_K]
BLOCK = 32


def rows_of(kind, n, rng):
    """[n, 32] float32 rows of one kind."""
    x = rng.standard_normal((n, BLOCK))
    if kind == 'heavy':
        x = rng.standard_t(2, (n, BLOCK))
    elif kind == 'zeros':
        x[:, :] = 0
        x[n // 2:, 3] = rng.standard_normal(n - n // 2)
    elif kind == 'constant':
        x[:, :] = x[:, :1]
    elif kind == 'integers':  # ties of the rounding and of the largest magnitude
        x = rng.integers(-16, 17, (n, BLOCK))
    elif kind == 'negative zero':
        x[:, ::2] = -0.0
    elif kind == 'huge':
        x *= 10.0 ** rng.uniform(4, 37, (n, 1))
    elif kind == 'tiny':
        x *= 10.0 ** rng.uniform(-12, -4, (n, 1))
    elif kind == 'subnormal':
        x *= 10.0 ** rng.uniform(-46, -36, (n, 1))
    return x.astype(np.float32)


KINDS = ['gaussian', 'heavy', 'zeros', 'constant', 'integers', 'negative zero', 'huge', 'tiny', 'subnormal']


def random_blocks(kind, n, rng):
    """[n, bytes] random blocks whose f16 numbers are finite."""
    blocks = rng.integers(0, 256, (n, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    halves = {T.Q4_K: [0, 2], T.Q6_K: [208], T.Q4_1: [0, 2], T.Q5_1: [0, 2], T.BF16: [], T.F16: [0]}.get(kind, [0])
    for at in halves:
        values = (rng.standard_normal(n) * 10.0 ** rng.uniform(-5, 3, n)).astype(np.float16)
        blocks[:, at:at + 2] = values.view(np.uint8).reshape(n, 2)
    return blocks


def load_ggml():
    """ggml's base library as llama-cpp-python brings it, or None where that is not installed."""
    package = importlib.util.find_spec('llama_cpp')
    if package is None:
        return None
    found = sorted(pathlib.Path(package.origin).parent.glob('lib/libggml-base.so*'))
    return ctypes.CDLL(str(found[0])) if found else None


def ggml_iq4_nl(ggml, rows):
    """[n, 18] uint8: the IQ4_NL blocks that ggml writes into a cache for rows [n, 32] float32."""
    rows = np.ascontiguousarray(rows)
    blocks = np.zeros((len(rows), 18), np.uint8)
    source, target = (a.ctypes.data_as(ctypes.c_void_p) for a in (rows, blocks))
    ggml.quantize_row_iq4_nl_ref(source, target, ctypes.c_int64(rows.size))
    return blocks


def theirs(rows, kind):
    with np.errstate(all='ignore'):
        return np.ascontiguousarray(quantize(rows, kind)).view(np.uint8)


def canonical(blocks, kind):
    """Blocks with what is left open made zero: the sign of a zero minimum (numpy), codes without a scale (ggml)."""
    blocks = blocks.copy()
    if kind == T.IQ4_NL:  # ggml leaves the codes of a block without a scale as its last block had them
        blocks[(blocks[:, 0] == 0) & (blocks[:, 1] & 127 == 0), 2:] = 0
    if kind in (T.Q4_1, T.Q5_1):
        minimum = blocks[:, 2:4].copy().view(np.uint16)
        minimum[minimum == 0x8000] = 0
        blocks[:, 2:4] = minimum.view(np.uint8)
    return blocks


def compare(program, n):
    rng = np.random.default_rng(2026)
    failures = 0

    def run(what, kind, data):
        return subprocess.run([program, what, str(int(kind))], input=data.tobytes(), capture_output=True, check=True).stdout

    ggml = load_ggml()
    if ggml is None:
        print('IQ4_NL bytes are not compared: llama-cpp-python is not installed')
    written = BOTH_WAYS + ([T.IQ4_NL] if ggml else [])
    for kind in written:
        for rows_kind in KINDS:
            rows = rows_of(rows_kind, n, rng)
            if kind == T.IQ4_NL:
                rows[np.abs(rows) > 1e16] = 1  # ggml's sums overflow from 2e16 on
                want = canonical(ggml_iq4_nl(ggml, rows), kind)
            else:
                want = canonical(theirs(rows, kind).reshape(n, -1), kind)
            got = canonical(np.frombuffer(run('quantise', kind, rows), np.uint8).reshape(want.shape), kind)
            bad = np.flatnonzero((want != got).any(axis=1))
            if len(bad):
                failures += 1
                print(f'{kind.name} {rows_kind}: {len(bad)} of {n} blocks differ, first {bad[0]}: {rows[bad[0]]}')
    for kind in BOTH_WAYS + READ_ONLY:
        blocks = random_blocks(kind, n, rng)
        want = dequantize(blocks, kind).astype(np.float32)
        got = np.frombuffer(run('dequantise', kind, blocks), np.float32).reshape(want.shape)
        same = (want.view(np.uint32) == got.view(np.uint32)) | (np.isnan(want) & np.isnan(got))
        if not same.all():
            failures += 1
            print(f'{kind.name} to rows: {(~same).sum()} of {same.size} numbers differ')
    for rows_kind in ('gaussian', 'heavy'):  # the reader's view of what was written
        rows = rows_of(rows_kind, n, rng)
        blocks = np.frombuffer(run('quantise', T.IQ4_NL, rows), np.uint8).reshape(n, -1)
        error = ((dequantize(blocks, T.IQ4_NL) - rows) ** 2).sum() / (rows ** 2).sum()
        plain = ((dequantize(theirs(rows, T.Q4_0), T.Q4_0) - rows) ** 2).sum() / (rows ** 2).sum()
        print(f'IQ4_NL {rows_kind}: relative squared error {error:.5f}, Q4_0 {plain:.5f}')
        failures += not error < plain
    print(f'{len(written) * len(KINDS)} kinds of rows and formats, {len(BOTH_WAYS + READ_ONLY)} formats read, '
          f'{failures} failures')
    return 1 if failures else 0


def words(values, per_line, digits):
    text = [f'0x{int(v):0{digits}x}' for v in values]
    return ',\n    '.join(', '.join(text[i:i + per_line]) for i in range(0, len(text), per_line))


def write_golden():
    ggml = load_ggml()
    if ggml is None:
        print('--write-golden needs llama-cpp-python, for the bytes of IQ4_NL', file=sys.stderr)
        return 1
    rng = np.random.default_rng(7)
    kinds = ['gaussian', 'integers', 'constant', 'huge', 'subnormal', 'zeros']
    rows = np.concatenate([rows_of(k, 2, rng)[1:] for k in kinds])
    out = ['// Rows and blocks as the gguf package makes them. Written by tests/peer/gguf_blocks.py --write-golden.',
           '// clang-format off', '#pragma once', '',
           '#include <cstdint>', '', 'namespace croquis::codecs::golden {', '',
           f'inline constexpr int kRows = {len(rows)};  // of 32 numbers: ' + ', '.join(kinds),
           f'inline constexpr uint32_t kInput[] = {{  // float32 bits\n    {words(rows.view(np.uint32).ravel(), 8, 8)}}};']
    for kind in BOTH_WAYS[:5]:
        out.append(f'inline constexpr uint8_t k{kind.name}[] = {{\n    {words(theirs(rows, kind).ravel(), 16, 2)}}};')
    written = ggml_iq4_nl(ggml, np.where(np.abs(rows) > 1e16, 1, rows).astype(np.float32))
    out.append(f'inline constexpr uint8_t kIQ4_NLWritten[] = {{  // numbers above 1e16 replaced by 1\n    '
               f'{words(written.ravel(), 16, 2)}}};')
    for kind in READ_ONLY:
        blocks = random_blocks(kind, 1, rng)
        out.append(f'inline constexpr uint8_t k{kind.name}[] = {{\n    {words(blocks.ravel(), 16, 2)}}};')
        numbers = dequantize(blocks, kind).astype(np.float32).view(np.uint32).ravel()
        out.append(f'inline constexpr uint32_t k{kind.name}Numbers[] = {{  // float32 bits\n    {words(numbers, 8, 8)}}};')
    out += ['', '}  // namespace croquis::codecs::golden', '']
    path = ROOT / 'croquis' / 'codecs' / 'ggml' / 'golden_blocks.h'
    path.write_text('\n'.join(out))
    print(f'{path.relative_to(ROOT)}: {path.stat().st_size} bytes')
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program', nargs='?')
    parser.add_argument('--blocks', type=int, default=3000)
    parser.add_argument('--write-golden', action='store_true')
    args = parser.parse_args()
    if args.write_golden:
        return write_golden()
    if not args.program:
        parser.error('needs the program croquis_blocks')
    return compare(args.program, args.blocks)


sys.exit(main())
