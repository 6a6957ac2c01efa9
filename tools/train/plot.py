#!/usr/bin/env python3
"""Draws a training run and the measurements of its model: CURVES.svg and, with --evaluation, POSITIONS.svg.

Curves: loss of book text in training and on unseen books, learning rate, share of answers found, over tokens seen.
Positions: loss by position in the window, one line a model, from the files of evaluate.py.

example: python tools/train/plot.py docs/models/croquis-7m-log.jsonl --curves docs/models/croquis-7m-training.svg \\
             --evaluation docs/models/croquis-4m.json docs/models/croquis-7m.json --positions docs/models/positions.svg
"""
import argparse
import json
import pathlib
import sys

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

plt.rcParams.update({'svg.hashsalt': 'croquis', 'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3})


def read_log(path: pathlib.Path) -> tuple[list[dict], list[dict]]:
    """Training lines and evaluation lines; of steps that were done again after a resume the last ones count."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    curves = {e['step']: e for e in lines if 'text_nats_token' in e}
    evaluations = {e['step']: e for e in lines if 'evaluation' in e}
    if not curves:
        raise ValueError(f'{path}: no line with text_nats_token; wanted the log.jsonl of train.py')
    return [curves[k] for k in sorted(curves)], [evaluations[k] for k in sorted(evaluations)]


def draw_curves(curves: list[dict], evaluations: list[dict], out: pathlib.Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    millions = [e['tokens'] / 1e6 for e in curves]
    left.plot(millions, [e['text_nats_token'] for e in curves], lw=0.6, color='0.6', label='training, book text')
    seen = [e['tokens'] / 1e6 for e in evaluations]
    names = sorted({k
                    for e in evaluations
                    for k in e['evaluation']}, key=lambda k: (k.split('_')[0], int(k.split('_')[1])))
    for name in (n for n in names if n.startswith('valid')):
        left.plot(seen, [e['evaluation'][name]['nats_token'] for e in evaluations], marker='.', ms=3, lw=1,
                  label=f'unseen books, windows of {name[6:]}')
        left.set_ylim(min(e['evaluation'][name]['nats_token'] for e in evaluations) - 0.3, 5.6)
    left.set(xlabel='tokens seen (millions)', ylabel='loss (nats a token)')
    rate = left.twinx()
    rate.plot(millions, [e['factor'] for e in curves], color='tab:red', lw=0.6)
    rate.set(ylabel='share of the full learning rate', ylim=(0, 3))
    rate.grid(False)
    left.legend(loc='upper right', fontsize=7)
    for name in (n for n in names if n.startswith('needle')):
        right.plot(seen, [100 * e['evaluation'][name]['whole'] for e in evaluations], marker='.', ms=3, lw=1,
                   label=f'needle in {name[7:]} tokens')
    right.set(xlabel='tokens seen (millions)', ylabel='whole answers right (%)', ylim=(-3, 103))
    right.legend(loc='lower right', fontsize=7)
    figure.tight_layout()
    figure.savefig(out, metadata={'Date': None})


def draw_positions(models: list[dict], out: pathlib.Path) -> None:
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for model in models:
        key = next(k for k in model if k.startswith('positions_'))
        nats, length = model[key]['nats_token'], int(key[10:])
        width = length / len(nats)
        axes.plot([(i + 0.5) * width for i in range(len(nats))], nats, marker='.', label=model['model'])
    axes.set(xlabel='position in the window (tokens)', ylabel='loss on unseen books (nats a token)')
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, metadata={'Date': None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('log', type=pathlib.Path, help='log.jsonl of train.py')
    parser.add_argument('--curves', type=pathlib.Path, required=True, help='SVG file for the curves')
    parser.add_argument('--evaluation', type=pathlib.Path, nargs='+', default=[], help='JSON files of evaluate.py')
    parser.add_argument('--positions', type=pathlib.Path, help='SVG file for the loss by position')
    args = parser.parse_args()
    try:
        draw_curves(*read_log(args.log), args.curves)
        if args.positions:
            draw_positions([json.loads(p.read_text()) for p in args.evaluation], args.positions)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
