#!/usr/bin/env python3
"""Does the loss of quality grow while a model decodes with a compressed cache? Text the model itself wrote, read token
by token.

Each of --texts texts of --length tokens is generated with the f16 cache; `croquis eval --mode decode` then compares the
caches on its first quarter, half, three quarters and whole. The mean divergence of each quarter follows from the
differences. Reported: the quarters' means over texts and the slope of a straight line through quarters 2 to 4 (the
first still holds mostly exact tokens: sinks and ring), relative to their mean and for 1,000 tokens, with its standard
error over texts. No growth: slope at most two standard errors above 0.

example: python tools/train/slope.py build/release/apps/croquis models/croquis-7m --kv eden:bits=4 --out
docs/results/slope.json
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

PROMPTS = [
    'It was a dark night', 'The old man looked at her', 'In the morning they went', '"I do not know," said he',
    'There was once a king', 'The ship had left the harbour', 'Her letter came on a Monday', 'When I was a child'
]


def call(command: list[str]) -> str:
    """Standard output. RuntimeError: the program failed, with what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)}: {done.stderr.strip()[-500:]}')
    return done.stdout


def quarters(croquis: str, model: str, text: pathlib.Path, kvs: list[str], length: int,
             ring: int) -> dict[str, np.ndarray]:
    """Mean divergence of each quarter of the positions of a text, for each cache, [4] nats a token."""
    sums = {kv: [0.0] for kv in kvs}
    counts = [0]
    for part in range(1, 5):
        options = [
            '--ring',
            str(ring), '--ctx',
            str(length * part // 4), '--windows', '1', '--mode', 'decode', '--json'
        ]
        rows = json.loads(call([croquis, 'eval', model,
                                str(text), *options, *(o for kv in kvs for o in ('--kv', kv))]))['rows']
        counts.append(rows[0]['positions_decode'])
        for row in rows:
            if row['kv'] in sums:
                sums[row['kv']].append(row['kl_mean_decode'] * counts[-1])
    return {kv: np.diff(s) / np.diff(counts) for kv, s in sums.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('croquis', help='the program')
    parser.add_argument('model', help='folder of the model')
    parser.add_argument('--kv', action='append', required=True, help='a cache; may be given several times')
    parser.add_argument('--length', type=int, default=2000, help='tokens generated (default: 2000)')
    parser.add_argument(
        '--ring', type=int, default=16,
        help='most recent tokens kept exact (default: 16; with more, the share of exact tokens falls with length)')
    parser.add_argument('--texts', type=int, default=8, help=f'texts, at most {len(PROMPTS)} (default: 8)')
    parser.add_argument('--out', type=pathlib.Path, help='JSON file')
    args = parser.parse_args()
    found: dict[str, list[np.ndarray]] = {kv: [] for kv in args.kv}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for i, prompt in enumerate(PROMPTS[:args.texts]):
                path = pathlib.Path(folder) / f'{i}.txt'
                path.write_text(
                    call([
                        args.croquis, 'run', args.model, '-q', '-p', prompt, '-n',
                        str(args.length + 30), '--ignore-eos', '--kv', 'f16', '--temp', '0.8', '--seed',
                        str(i)
                    ]))
                for kv, means in quarters(args.croquis, args.model, path, args.kv, args.length - 48, args.ring).items():
                    found[kv].append(means)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    rows = []
    for kv, means in found.items():
        m = np.stack(means)
        x = (np.arange(1, 4) - 2) * (args.length - 48) / 4000  # thousands of tokens from the middle of quarters 2 to 4
        slopes = m[:, 1:] @ x / (x @ x) / m[:, 1:].mean()
        rows.append({
            'kv': kv,
            'texts': len(m),
            'kl_quarters': [float(f'{v:.4g}') for v in m.mean(0)],
            'relative_slope_per_1000_tokens': round(float(slopes.mean()), 4),
            'standard_error': round(float(slopes.std(ddof=1) / np.sqrt(len(m))), 4)
        })
    text = json.dumps({'length': args.length, 'ring': args.ring, 'rows': rows}, indent=1) + '\n'
    print(text, end='')
    if args.out:
        args.out.write_text(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
