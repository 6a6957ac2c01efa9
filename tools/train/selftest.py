#!/usr/bin/env python3
"""Quick checks of the training program (some 20 seconds, CPU): resuming, gradients, the exporter, the data recipe.

Makes its own little text and tokenizer. Checks: a run that is cut off and goes on equals one that is not, bit for bit;
loss and gradients of the fused loss equal plain ones; both attention paths agree; exported folders (Llama and Qwen2,
sharded) give in `transformers` the logits the trainer has; the recipe's answers stand where the loss says and their
facts stand before them.

example: python tools/train/selftest.py
"""
import argparse
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F

import export
from data import Books, Recipe
from evaluate import load_folder
from measure import needles
from model import ModelConfig, Transformer, attend_fused, attend_short
from train import Run, batches

HERE = pathlib.Path(__file__).resolve().parent
TASKS = {'facts': 0.2, 'repeat': 0.2, 'list': 0.2, 'variables': 0.2, 'two': 0.1}
PLAN = {
    'seed':
    3,
    'model': {
        'width': 64,
        'layers': 2,
        'heads': 2,
        'kv_heads': 1,
        'head_dim': 32,
        'ff': 96,
        'vocab': 800
    },
    'phases': [{
        'until': 1000,
        'rows': 4,
        'length': 128,
        'dense': 0.5,
        'tasks': TASKS
    }, {
        'until': 1e9,
        'rows': 2,
        'length': 256,
        'dense': 0.1,
        'tasks': TASKS
    }],
    'warmup_steps':
    2
}


def check(good: bool, what: str) -> None:
    if not good:
        raise AssertionError(what)


def make_text(folder: pathlib.Path) -> Books:
    """Books of random sentences over invented words, a tokenizer of 800 pieces, and what prepare.py makes of them."""
    rng = random.Random(1)
    syllables = [a + b for a in 'bcdfglmnprst' for b in 'aeiou']
    words = [''.join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(1500)]
    words += 'What The the is of secret number place near which lives keeps key print let'.split() * 20
    (folder / 'books').mkdir()
    for i in range(3):
        sentences = [
            ' '.join(rng.choices(words, k=rng.randint(4, 12))).capitalize() + rng.choice('..?!') for _ in range(700)
        ]
        paragraphs = [' '.join(sentences[j:j + 7]) for j in range(0, len(sentences), 7)]
        (folder / 'books' / f'{i}.txt').write_text('\n\n'.join(paragraphs))
    sentencepiece.SentencePieceTrainer.train(input=','.join(map(str, sorted(
        (folder / 'books').glob('*.txt')))), model_prefix=str(folder / 'tokenizer'), vocab_size=800, model_type='bpe',
                                             byte_fallback=True, split_digits=True, minloglevel=2,
                                             user_defined_symbols=list('0123456789'))
    subprocess.run([
        sys.executable,
        str(HERE / 'prepare.py'), '--tokenizer',
        str(folder / 'tokenizer.model'), '--books',
        str(folder / 'books'), '--out',
        str(folder / 'text'), '--jobs', '2'
    ], check=True, stdout=subprocess.DEVNULL)
    return Books(folder / 'text', folder / 'tokenizer.model')


def check_resume(books: Books, folder: pathlib.Path) -> Run:
    """Six steps at once, and three, a checkpoint, three more: the same parameters. Crosses a change of phase."""

    def go(run: Run, steps: int) -> Run:
        for ids, weights, _ in batches(run, Recipe(books, PLAN['seed'])):
            run.update(ids, weights, run.factor(10000))
            if run.step == steps:
                return run

    whole = go(Run(PLAN, torch.device('cpu'), False), 6)
    go(Run(PLAN, torch.device('cpu'), False), 3).save(folder / 'checkpoint.pt')
    second = Run(PLAN, torch.device('cpu'), False)
    second.load(folder / 'checkpoint.pt')
    go(second, 6)
    check(whole.tokens == second.tokens == 2 * 512 + 4 * 512, f'{second.tokens} tokens after six steps')
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters()):
        check(torch.equal(a, b), f'resume: {name} differs by {(a - b).abs().max().item()}')
    return whole


def check_loss() -> None:
    """The loss in pieces against cross_entropy on all logits: value, hits, gradient (bf16 rounding allowed for)."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**PLAN['model'], qkv_bias=True))
    torch.nn.init.normal_(model.embed, std=0.3)
    ids = torch.randint(0, 800, (2, 97))
    weights = torch.rand(2, 96) / 96
    loss, nats, hits = model.loss(ids[:, :-1], ids[:, 1:], weights, rows=50)
    loss.backward()
    mine = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    logits = model.logits(ids[:, :-1])
    plain = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction='none').view(2, 96)
    check(torch.allclose(nats, plain, atol=2e-3), 'nats differ')
    check(torch.equal(hits, logits.argmax(-1) == ids[:, 1:]), 'hits differ')
    (plain * weights).sum().backward()
    for name, p in model.named_parameters():
        error = ((p.grad - mine[name]).norm() / p.grad.norm()).item()
        check(error < 0.03, f'gradient of {name}: relative error {error:.4f}')
    q, k, v = torch.randn(2, 70, 6, 32).bfloat16(), torch.randn(2, 70, 2, 32).bfloat16(), torch.randn(2, 70, 2,
                                                                                                      32).bfloat16()
    error = (attend_short(q, k, v).float() - attend_fused(q, k, v).float()).abs().max()
    check(error.item() < 0.03, f'attention paths differ by {error.item()}')


def check_export(run: Run, folder: pathlib.Path) -> None:
    """transformers on an exported f32 folder against the trainer's logits; the bf16 folder read back; sizes of
    shards.
    """
    from transformers import AutoModelForCausalLM
    ids = torch.randint(3, 800, (2, 60))
    for bias in (False, True):
        plan = {**PLAN, 'model': {**PLAN['model'], 'qkv_bias': bias}}
        model = run.model
        if bias:
            model = Transformer(ModelConfig(**plan['model']))
            for name, p in model.named_parameters():
                torch.nn.init.normal_(p, mean=1.0 if 'norm' in name else 0.0, std=0.2)
        checkpoint = {'plan': plan, 'model': model.state_dict(), 'step': 0, 'tokens': 0}
        out = folder / f'export-{bias}'
        files = export.export(checkpoint, folder / 'tokenizer.model', out, 230_000, torch.float32)
        check(files > 1 and all(f.stat().st_size <= 230_000 for f in out.glob('*.safetensors')), 'shards too large')
        theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation='eager')(ids).logits
        mine = model.logits(ids)
        error = ((theirs - mine).norm() / theirs.norm()).item()
        check(error < 0.05, f'exported logits: relative error {error:.4f}; bf16 gives 0.02, a swapped tensor some 1')
        export.export(checkpoint, folder / 'tokenizer.model', out, 16 << 20)
        check(len(list(out.glob('*.safetensors'))) == 1 and not list(out.glob('*.index.json')), 'old shards left')
        back = load_folder(out)
        for (name, a), b in zip(model.state_dict().items(), back.state_dict().values()):
            check(torch.equal(a.bfloat16().float(), b), f'{name} changed on the way')


def check_recipe(books: Books) -> None:
    """Rows are reproducible, whole and weighted where the answer stands; what is asked was said."""
    recipe, again = Recipe(books, 5), Recipe(books, 5)
    for kind in recipe.tasks:
        for length in (256, 1024):
            for dense in (0.0, 1.0):
                answers = 0
                for row in range(20):
                    ids, weights, made = recipe.row(9, row, length, {kind: 1.0}, dense)
                    other = again.row(9, row, length, {kind: 1.0}, dense)
                    check(
                        np.array_equal(ids, other[0]) and np.array_equal(weights, other[1]),
                        f'{kind}: not reproducible')
                    check(ids.shape == weights.shape == (length + 1, ) and ids[0] == 1 and weights[0] == 0,
                          f'{kind}: shape')
                    check(made == kind and 0 <= ids.min() and ids.max() < 800, f'{kind}: ids')
                    answers += check_answers(books, ids, weights, kind)
                check(answers > 0 or kind in ('repeat', 'list'), f'{kind} {length}: no row asks anything')
    ids, mask, depths = needles(books, 256, 9, 0)
    check(ids.shape == mask.shape == (9, 257), 'needles: shape')
    for row, m in zip(ids.tolist(), mask.tolist()):
        text = books.tokenizer.decode(row[1:])
        answer = books.tokenizer.decode([t for t, a in zip(row, m) if a])
        check(
            re.fullmatch(r'\d{5}\.', answer) is not None and text.count(f'is {answer}') == 2,
            f'needle: {answer!r} in {text!r}')


def check_answers(books: Books, ids: np.ndarray, weights: np.ndarray, kind: str) -> int:
    """Number of whole answers in a row. Every one of them must have been said before, in the words of its question."""
    if kind in ('repeat', 'list'):
        return 0
    marks = np.flatnonzero(np.diff(np.concatenate([[0], (weights >= 4).astype(int), [0]])))
    count = 0
    for begin, end in zip(marks[::2], marks[1::2]):
        if end == len(ids):
            continue  # cut off by the row's end
        answer = books.tokenizer.decode(ids[begin:end].tolist()).strip()
        before = books.tokenizer.decode(ids[1:begin].tolist())
        check(answer[:-1] in before, f'{kind}: {answer!r} was never said in {before!r}')
        stem = re.search(r'\? (The \w+ \w+ of \w+ is)$', before)
        if stem:
            check(f'{stem.group(1)} {answer}' in before,
                  f'{kind}: {stem.group(1)} {answer!r} was never said in {before!r}')
        count += 1
    return count


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        books = make_text(folder)
        run = check_resume(books, folder)
        print('resume: equal')
        check_loss()
        print('loss, gradients, attention: equal')
        check_export(run, folder)
        print('export: equal to transformers')
        check_recipe(books)
        print('recipe: answers stand where they are weighted')
    return 0


if __name__ == '__main__':
    sys.exit(main())
