#!/usr/bin/env python3
"""Tables and a plot of `croquis needle --json` and `croquis eval --json` for a model: quality against bits, retrieval
over depth and length.

Prints Markdown. With both files the plot shows, over the bits stored a number, the share of facts found and the
divergence.

example: python tools/train/results.py --needle docs/results/needle-croquis-7m.json --eval
docs/results/eval-croquis-7m.json \\ --plot docs/results/bits-croquis-7m.svg
"""
import argparse
import json
import math
import pathlib
import sys

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

plt.rcParams.update({'svg.hashsalt': 'croquis', 'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3})


def pooled(rows: list[dict]) -> tuple[float, float, int]:
    """Share of facts found over several cells, its standard error (Wilson's, so that 100 % has one too), and the number
    of facts.
    """
    n = sum(r['trials'] for r in rows)
    p = sum(r['accuracy'] * r['trials'] for r in rows) / n
    return p, math.sqrt(p * (1 - p) / n + 1 / (4 * n * n)) / (1 + 1 / n), n


def needle_tables(rows: list[dict], bits: dict[str, float]) -> str:
    """One line a cache: bits, share found at each length, over all; then each depth over all lengths."""
    caches = list(dict.fromkeys(r['kv'] for r in rows))
    lengths, depths = sorted({r['length'] for r in rows}), sorted({r['depth'] for r in rows})
    head = [
        'cache', 'bits', *(f'{n} tokens' for n in lengths), 'all', *(f'depth {100 * d:.0f} %' for d in depths),
        'ln p(answer)'
    ]
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for kv in caches:
        mine = [r for r in rows if r['kv'] == kv]
        total, error, _ = pooled(mine)
        cells = [f'`{kv}`', f'{bits[kv]:.2f}' if kv in bits else '']
        cells += [f'{100 * pooled([r for r in mine if r["length"] == n])[0]:.1f} %' for n in lengths]
        cells += [f'{100 * total:.1f} ± {100 * error:.1f} %']
        cells += [f'{100 * pooled([r for r in mine if r["depth"] == d])[0]:.1f} %' for d in depths]
        cells += [f'{sum(r["log_prob"] for r in mine) / len(mine):.3f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(
        lines) + f'\n\n{pooled([r for r in rows if r["kv"] == caches[0]])[2]} facts a cache; ± one standard error.'


def eval_table(rows: list[dict]) -> str:
    head = ['cache', 'bits', 'perplexity', 'KL mean', '99 %', '99.9 %', 'same top', 'KL mean, decode']
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for r in rows:
        decode = f'{r["kl_mean_decode"]:.2e}' if 'kl_mean_decode' in r else ''
        lines.append(
            f'| `{r["kv"]}` | {r["bits_per_number"]:.2f} | {r["ppl"]:.3f} | {r["kl_mean"]:.2e} | {r["kl_p99"]:.2e} | '
            f'{r["kl_p999"]:.2e} | {100 * r["same_top"]:.2f} % | {decode} |')
    return '\n'.join(lines)


def draw(needle: list[dict], evals: list[dict], out: pathlib.Path) -> None:
    """Both measures over bits, a mark a cache, a line a method."""
    bits = {r['kv']: r['bits_per_number'] for r in evals}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharex=True)
    methods = list(dict.fromkeys(kv.split(':')[0].split('=')[-1] for kv in bits))
    for method in methods:
        kvs = sorted((kv for kv in bits if kv.split(':')[0].split('=')[-1] == method), key=lambda kv: bits[kv])
        found = [kv for kv in kvs if any(r['kv'] == kv for r in needle)]
        share = [100 * pooled([r for r in needle if r['kv'] == kv])[0] for kv in found]
        line = axes[0].plot([bits[kv] for kv in found], share, marker='.', lw=0.8, label=method)
        known = [r for kv in kvs for r in evals if r['kv'] == kv and r['kl_mean'] > 0]
        axes[1].plot([r['bits_per_number'] for r in known], [r['kl_mean'] for r in known], marker='.', lw=0.8,
                     color=line[0].get_color(), label=method)
    axes[0].set(xlabel='bits a number, scales included', ylabel='facts found (%)', ylim=(-3, 103))
    axes[1].set(xlabel='bits a number, scales included', ylabel='KL against f16 (nats a token)', yscale='log',
                xlim=(0.8, 9))
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, metadata={'Date': None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--needle', type=pathlib.Path, required=True, help='output of croquis needle --json')
    parser.add_argument('--eval', type=pathlib.Path, required=True, help='output of croquis eval --json')
    parser.add_argument('--plot', type=pathlib.Path, help='SVG file')
    args = parser.parse_args()
    try:
        needle, evals = (json.loads(p.read_text())['rows'] for p in (args.needle, args.eval))
        print(needle_tables(needle, {r['kv']: r['bits_per_number'] for r in evals}) + '\n\n' + eval_table(evals))
        if args.plot:
            draw(needle, evals, args.plot)
    except (OSError, ValueError, KeyError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
