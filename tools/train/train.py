#!/usr/bin/env python3
"""Trains a model of croquis' families on the text of prepare.py and the tasks of data.py; CPU or CUDA, bf16.

Warm-up, a constant rate in each phase, then a linear cooldown (WSD) that starts --cooldown tokens before --tokens or as
soon as the file OUT/finish exists. The recipe file names the model's sizes and the phases. Rows are a function of seed
and step, so a run that is cut off goes on from OUT/checkpoint.pt exactly as if it had not been (same machine, same
number of threads). OUT/log.jsonl holds the curves.

example: python tools/train/train.py tools/train/croquis-7m.json --train /data/train --valid /data/valid \\
             --tokenizer models/croquis-4m/tokenizer.model --out /data/run
"""
import argparse
import fcntl
import json
import os
import pathlib
import signal
import sys
import time

# PyTorch's CPU allocations come from malloc; by default each large one is a fresh mapping whose pages must be faulted
# in, which costs several times the arithmetic. These settings keep freed memory. glibc reads them at the start only.
TUNABLES = ('glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1:'
            'glibc.malloc.top_pad=1073741824')


def keep_memory() -> None:
    """Starts this program again with the settings above, once."""
    if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
        os.environ['GLIBC_TUNABLES'] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == '__main__':
    keep_memory()

import numpy as np
import torch

from data import Books, Recipe, prefetch
from measure import BATCH_TOKENS, evaluate
from model import ModelConfig, Transformer
from optim import Optimiser


class Run:
    """Model, optimiser and position of a training run; everything that a checkpoint holds."""

    def __init__(self, plan: dict, device: torch.device, compiled: bool) -> None:
        torch.manual_seed(plan['seed'])
        self.plan, self.device = plan, device
        self.model = Transformer(ModelConfig(**plan['model']), compiled).to(device)
        self.optimiser = Optimiser(self.model, **plan.get('optimiser', {}))
        self.step, self.tokens, self.cooldown_from = 0, 0, -1

    def phase(self, tokens: int) -> dict:
        """The phase at a number of tokens seen; the last one once the cooldown has begun."""
        if self.cooldown_from >= 0:
            return self.plan['phases'][-1]
        return next((p for p in self.plan['phases'] if tokens < p['until']), self.plan['phases'][-1])

    def factor(self, cooldown: int) -> float:
        """Share of the full learning rate at the present step."""
        rise = min(1.0, (self.step + 1) / self.plan.get('warmup_steps', 60))
        rise *= self.phase(self.tokens).get('rate', 1.0)
        if self.cooldown_from < 0:
            return rise
        return rise * max(0.0, 1 - (self.tokens - self.cooldown_from) / cooldown)

    def update(self, ids: np.ndarray, weights: np.ndarray, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on a batch [rows, T + 1]; nats and hits, both [rows, T]."""
        length = ids.shape[1] - 1
        rows = max(1, BATCH_TOKENS // length)
        total = float(weights[:, 1:].sum())
        nats, hits = [], []
        for i in range(0, len(ids), rows):
            x = torch.from_numpy(ids[i:i + rows]).to(self.device, non_blocking=True)
            w = torch.from_numpy(weights[i:i + rows, 1:]).to(self.device, non_blocking=True)
            loss, n, h = self.model.loss(x[:, :-1], x[:, 1:], w / total)
            loss.backward()
            nats.append(n)
            hits.append(h)
        self.optimiser.step(factor)
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += ids.shape[0] * length
        return torch.cat(nats).cpu(), torch.cat(hits).cpu()

    def save(self, path: pathlib.Path) -> None:
        part = path.with_suffix('.part')
        torch.save(
            {
                'plan': self.plan,
                'model': self.model.state_dict(),
                'optimiser': self.optimiser.state(),
                'step': self.step,
                'tokens': self.tokens,
                'cooldown_from': self.cooldown_from
            }, part)
        part.replace(path)

    def load(self, path: pathlib.Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state['plan']['model'] != self.plan['model'] or state['plan']['seed'] != self.plan['seed']:
            raise ValueError(f'{path} belongs to {state["plan"]["model"]}, seed {state["plan"]["seed"]}; '
                             f'wanted {self.plan["model"]}, seed {self.plan["seed"]}: name another --out')
        self.model.load_state_dict(state['model'])
        self.optimiser.load(state['optimiser'])
        self.step, self.tokens, self.cooldown_from = state['step'], state['tokens'], state['cooldown_from']


def batches(run: Run, recipe: Recipe):
    """Batches from the present position on. Made ahead, so a change of phase by OUT/finish makes a new one
    necessary.
    """
    position = {'step': run.step, 'tokens': run.tokens}

    def make(step: int):
        phase = run.phase(position['tokens'])
        ids, weights, kinds = recipe.batch(step, phase['rows'], phase['length'], phase['tasks'], phase['dense'],
                                           phase.get('repeats', 0.0))
        position['tokens'] += phase['rows'] * phase['length']
        return ids, weights, kinds

    return prefetch(make, run.step)


def train(run: Run, args: argparse.Namespace) -> None:
    recipe = Recipe(Books(args.train, args.tokenizer), run.plan['seed'])
    valid = Books(args.valid, args.tokenizer)
    log = open(args.out / 'log.jsonl', 'a', buffering=1)
    stop = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.append(1))
    lengths = tuple(sorted({p['length'] for p in run.plan['phases']}))

    def log_evaluation() -> None:
        evaluation = evaluate(run.model, valid, run.device, lengths)
        log.write(json.dumps({'step': run.step, 'tokens': run.tokens, 'evaluation': evaluation}) + '\n')

    cooldown, source = args.cooldown, batches(run, recipe)
    seen = {'text': [], 'answer': []}
    since, begun, saved = run.tokens, time.monotonic(), time.process_time()
    while not stop:
        if run.cooldown_from < 0 and (run.tokens >= args.tokens - cooldown or (args.out / 'finish').exists()):
            run.cooldown_from, source = run.tokens, None
            source = batches(run, recipe)
        factor = run.factor(cooldown)
        if factor <= 0:
            break
        ids, weights, kinds = next(source)
        nats, hits = run.update(ids, weights, factor)
        w = torch.from_numpy(weights[:, 1:])
        text = torch.tensor([k == 'text' for k in kinds])
        if text.any():
            seen['text'].append(float(nats[text].mean()))
        if (w >= 4).any():
            seen['answer'].append(float(hits[w >= 4].float().mean()))
        if run.step % args.log_every == 0:
            now = time.monotonic()
            mean = {k: round(float(np.mean(v)), 4) if v else None for k, v in seen.items()}
            log.write(
                json.dumps({
                    'step': run.step,
                    'tokens': run.tokens,
                    'length': ids.shape[1] - 1,
                    'factor': round(factor, 4),
                    'text_nats_token': mean['text'],
                    'answer_tokens_right': mean['answer'],
                    'tokens_s': round((run.tokens - since) / (now - begun)),
                    'cpu_s': round(time.process_time())
                }) + '\n')
            seen, since, begun = {'text': [], 'answer': []}, run.tokens, now
        if run.step % args.evaluate_every == 0:
            log_evaluation()
            since, begun = run.tokens, time.monotonic()
        if time.process_time() - saved > args.checkpoint_minutes * 60 * torch.get_num_threads():
            run.save(args.out / 'checkpoint.pt')
            saved = time.process_time()
    run.save(args.out / 'checkpoint.pt')
    if not stop:
        log_evaluation()
        run.save(args.out / 'final.pt')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', type=pathlib.Path, help='recipe: JSON with seed, model, phases')
    parser.add_argument('--train', type=pathlib.Path, required=True,
                        help='training text of prepare.py, without its ending')
    parser.add_argument('--valid', type=pathlib.Path, required=True, help='text that is only measured on, likewise')
    parser.add_argument('--tokenizer', type=pathlib.Path, required=True,
                        help='the SentencePiece model both were made with')
    parser.add_argument('--out', type=pathlib.Path, required=True,
                        help='folder for checkpoints and log; a checkpoint in it is gone on from')
    parser.add_argument('--tokens', type=float, default=100e6, help='tokens in all, cooldown included (default: 100e6)')
    parser.add_argument('--cooldown', type=float, default=12e6, help='tokens of the cooldown (default: 12e6)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='cpu or cuda (default: cuda where there is one)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (default: all)')
    parser.add_argument('--no-compile', action='store_true',
                        help='do without torch.compile (needs no C++ compiler; two to three times slower)')
    parser.add_argument('--log-every', type=int, default=20, help='steps (default: 20)')
    parser.add_argument('--evaluate-every', type=int, default=250, help='steps (default: 250)')
    parser.add_argument('--checkpoint-minutes', type=float, default=5,
                        help='minutes of work of all threads between checkpoints (default: 5)')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    lock = open(args.out / 'lock', 'w')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two runs would overwrite each other's checkpoints
    except BlockingIOError:
        print(f'{args.out}: another run writes there; wait for it, or name another --out', file=sys.stderr)
        return 2
    try:
        run = Run(json.loads(args.plan.read_text()), torch.device(args.device), not args.no_compile)
        if (args.out / 'checkpoint.pt').exists():
            run.load(args.out / 'checkpoint.pt')
        train(run, args)
    except (OSError, ValueError, KeyError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
