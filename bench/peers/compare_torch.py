#!/usr/bin/env python3
"""PyTorch's CPU scaled_dot_product_attention beside `croquis bench attention`, one query row over n keys.

usage: compare_torch.py --croquis build/release/apps/croquis [--n 32768 --heads 32 --kv-heads 8 --head-dim 128 --threads 2]
Rounds are interleaved; several layers are visited in turn so that the data exceed the caches. Prints one JSON object.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F


def time_torch(a, dtype, layers, rounds):
    times = []
    for r in range(rounds):
        k, v = layers[r % len(layers)]
        q = torch.randn(1, a.heads, 1, a.head_dim).to(dtype)
        begin = time.perf_counter()
        F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        times.append(time.perf_counter() - begin)
    return times[1:]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--croquis', required=True)
    p.add_argument('--n', type=int, default=32768)
    p.add_argument('--heads', type=int, default=32)
    p.add_argument('--kv-heads', type=int, default=8)
    p.add_argument('--head-dim', type=int, default=128)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--rounds', type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    times, ours = {}, {}
    for _ in range(a.rounds):
        for dtype in (torch.float32, torch.bfloat16):
            shape = (1, a.kv_heads, a.n, a.head_dim)
            layers = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(3)]
            times.setdefault(str(dtype), []).extend(time_torch(a, dtype, layers, 12))
            del layers
        out = subprocess.run([a.croquis, 'bench', 'attention', '--n', str(a.n), '--heads', str(a.heads), '--kv-heads', str(a.kv_heads),
                              '--head-dim', str(a.head_dim), '--threads', str(a.threads), '--kv', 'f16', '--kv', 'bf16', '--kv', 'eden:bits=4', '--json'],
                             capture_output=True, text=True)
        if out.returncode:
            sys.exit(out.stderr)
        for row in json.loads(out.stdout)['rows']:
            ours.setdefault(row['kv'], []).append(row['ms'])
    rows = [{'engine': 'torch ' + torch.__version__, 'kv': k, 'ms': 1e3 * statistics.median(t)} for k, t in times.items()]
    rows += [{'engine': 'croquis', 'kv': k, 'ms': statistics.median(t)} for k, t in ours.items()]
    json.dump({'n': a.n, 'heads': a.heads, 'kv_heads': a.kv_heads, 'head_dim': a.head_dim, 'threads': a.threads, 'rows': rows}, sys.stdout, indent=1)
    print()


main()
