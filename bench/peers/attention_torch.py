#!/usr/bin/env python3
"""Attention methods beside PyTorch's CPU scaled_dot_product_attention, interleaved in one process.

example: ninja -C build/release croquis_attention_c &&
         attention_torch.py --library build/release/bench/libcroquis_attention_c.so --json exact.json
Each case is timed in rounds, PyTorch and each method in turn, on the same numbers; medians and the ratio of medians are
printed. Answers are compared with PyTorch's in f32 (largest |ours - theirs| over the largest |theirs|).
"""
from __future__ import annotations

import argparse
import ctypes
import json
import math
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Call(ctypes.Structure):
    """CroquisAttention of bench/attention_c.cc."""
    _fields_ = ([(n, ctypes.c_char_p) for n in ('method', 'simd')] +
                [(n, ctypes.c_int64) for n in ('heads', 'kv_heads', 'nq', 'nk', 'dim', 'value_dim', 'window')] +
                [(n, ctypes.c_int32) for n in ('type', 'causal', 'threads', 'checked')] + [('scale', ctypes.c_float)] +
                [(n, ctypes.c_void_p) for n in ('q', 'k', 'v', 'out', 'lse')] +
                [('kernel', ctypes.c_char * 64), ('error', ctypes.c_char * 256)])


class Ours:
    def __init__(self, library: str) -> None:
        self.run = ctypes.CDLL(library).croquis_attention

    def __call__(self, method: str, simd: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, out: torch.Tensor,
                 threads: int, checked: bool = False) -> str:
        call = Call(method=method.encode(), simd=simd.encode(), heads=q.shape[1], kv_heads=k.shape[1], nq=q.shape[2], nk=k.shape[2],
                    dim=q.shape[3], value_dim=v.shape[3], window=0, type=TYPES[q.dtype], causal=causal, threads=threads,
                    checked=checked, scale=1 / math.sqrt(q.shape[3]), q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(),
                    out=out.data_ptr(), lse=None)
        if self.run(ctypes.byref(call)):
            sys.exit(f'{method}: {call.error.decode()}')
        return call.kernel.decode()


CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
clock = CLOCKS['wall']


def timed(fn) -> float:
    begin = clock()
    fn()
    return 1e3 * (clock() - begin)


def case(ours: Ours, a: argparse.Namespace, dtype: torch.dtype, dim: int, nq: int, nk: int, causal: bool) -> dict:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, h, n, dim, generator=generator).to(dtype)
               for h, n in ((a.heads, nq), (a.kv_heads, nk), (a.kv_heads, nk)))
    out = torch.empty(1, a.heads, nq, dim)
    theirs = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal and nq > 1, enable_gqa=a.heads != a.kv_heads)
    methods = {f'{m} {s}'.strip(): (m, s) for m in a.method for s in a.simd}
    times: dict[str, list[float]] = {'torch': [], **{name: [] for name in methods}}
    kernels, errors = {}, {}
    want = theirs().float()
    repeat = max(1, int(a.budget_ms / max(1e-3, timed(theirs))))
    for _ in range(a.rounds):
        times['torch'].append(timed(lambda: [theirs() for _ in range(repeat)]) / repeat)
        for name, (method, simd) in methods.items():
            run = lambda: ours(method, simd, q, k, v, causal, out, a.threads, a.checked)
            kernels[name] = run()
            errors[name] = ((out - want).abs().max() / want.abs().max()).item()
            times[name].append(timed(lambda: [run() for _ in range(repeat)]) / repeat)
    median = {name: statistics.median(t) for name, t in times.items()}
    row = {'type': str(dtype).removeprefix('torch.'), 'dim': dim, 'heads': a.heads, 'kv_heads': a.kv_heads, 'queries': nq, 'keys': nk,
           'causal': causal, 'torch_ms': round(median['torch'], 3),
           'ours': [{'method': n, 'kernel': kernels[n], 'ms': round(median[n], 3), 'times_torch': round(median['torch'] / median[n], 2),
                     'difference': float(f'{errors[n]:.2g}')} for n in methods]}
    text = ', '.join(f"{o['method']} ({o['kernel']}) {o['ms']:.2f} ms = {o['times_torch']:.2f}x" for o in row['ours'])
    print(f"{row['type']} dim {dim} {nq} x {nk}{' causal' if causal else ''}: torch {row['torch_ms']:.2f} ms; {text}", file=sys.stderr)
    return row


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--library', required=True, help='libcroquis_attention_c.so of a build')
    p.add_argument('--method', action='append', help='a method with parameters; again for more (default: exact)')
    p.add_argument('--simd', action='append', help='instruction set to force; again for more (default: the best)')
    p.add_argument('--dims', type=int, nargs='+', default=[64, 128])
    p.add_argument('--types', nargs='+', default=['bfloat16', 'float32'], choices=['bfloat16', 'float32', 'float16'])
    p.add_argument('--n', type=int, default=8192, help='tokens of the square cases; 0: none')
    p.add_argument('--decode', type=int, default=32768, help='keys of the case of one query row; 0: none')
    p.add_argument('--heads', type=int, default=8)
    p.add_argument('--kv-heads', type=int, default=8)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--budget-ms', type=float, default=40, help='calls are repeated within a round for as long as this')
    p.add_argument('--checked', action='store_true', help="with the library's check of all numbers before each run")
    p.add_argument('--clock', choices=list(CLOCKS), default='wall', help='cpu: processor time, for a busy machine; one thread')
    p.add_argument('--json', help='file for the results')
    a = p.parse_args()
    a.method, a.simd = a.method or ['exact'], a.simd or ['']
    if not pathlib.Path(a.library).exists():
        sys.exit(f'{a.library}: no such library; build it with: ninja -C BUILD croquis_attention_c')
    if a.clock == 'cpu' and a.threads != 1:
        p.error('--clock cpu counts all threads, waiting ones too: use it with --threads 1')
    global clock
    clock = CLOCKS[a.clock]
    torch.set_num_threads(a.threads)
    ours = Ours(a.library)
    rows = []
    for dtype in (getattr(torch, t) for t in a.types):
        for dim in a.dims:
            shapes = [(a.n, a.n, False), (a.n, a.n, True)] if a.n else []
            shapes += [(1, a.decode, True)] if a.decode else []
            rows += [case(ours, a, dtype, dim, *shape) for shape in shapes]
    result = {'torch': torch.__version__, 'threads': a.threads, 'clock': a.clock, 'rounds': a.rounds, 'rows': rows}
    if a.json:
        pathlib.Path(a.json).write_text(json.dumps(result, indent=1) + '\n')


main()
