"""What a model is measured by, while it trains and afterwards: loss on unseen books, loss by position, facts found
again.
"""
import numpy as np
import torch

from data import BOS, Books
from model import Transformer

BATCH_TOKENS = 8192  # tokens of one pass, as in training, so that nothing is compiled anew

# Names of the facts: as in `croquis needle`, and never chosen by frequency as the recipe's.
NAMES = ('garden river castle mirror winter bridge forest harbour candle letter mountain silver village window journey '
         'orchard').split()


def windows(books: Books, length: int, count: int) -> torch.Tensor:
    """`count` windows spread evenly over the books, [count, length + 1], each starting with the begin token."""
    places = np.linspace(0, len(books.ids) - length - 1, count).astype(np.int64)
    return torch.from_numpy(
        np.stack([np.concatenate([[BOS], books.ids[p:p + length].astype(np.int64)]) for p in places]))


@torch.no_grad()
def token_losses(model: Transformer, ids: torch.Tensor, device: torch.device) -> torch.Tensor:
    """ids [N, T + 1] -> nats [N, T] of tokens 1 to T. N * T is a multiple of the pass, or less than one."""
    rows = max(1, BATCH_TOKENS // (ids.shape[1] - 1))
    out = []
    for i in range(0, len(ids), rows):
        part = ids[i:i + rows].to(device)
        out.append(model.loss(part[:, :-1], part[:, 1:], torch.ones(part[:, 1:].shape, device=device))[1].cpu())
    return torch.cat(out)


def needles(books: Books, length: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """The question of `croquis needle` at evenly spread depths: ids [count, length + 1], mask of the answer's tokens,
    depths [count].
    """
    r = np.random.Generator(np.random.Philox(key=[seed, length]))
    ids, mask, depths = [], [], np.linspace(0, 1, count)
    for depth in depths:
        name, digits = NAMES[r.integers(len(NAMES))], ''.join(str(d) for d in r.integers(0, 10, 5))
        stem = f'The secret number of {name} is'
        fact = books.encode(f'{stem} {digits}.')
        question, answer = books.encode(f'What is the secret number of {name}? {stem}'), books.encode(f'{digits}.')
        hay = books.piece(float(r.random() * 2**20), length - len(fact) - len(question) - len(answer))
        places = np.concatenate([[0], books.breaks(hay), [len(hay)]])
        at = int(places[np.argmin(np.abs(places - depth * len(hay)))])
        row = np.concatenate([[BOS], hay[:at], fact, hay[at:], question, answer])
        ids.append(row)
        mask.append(np.arange(length + 1) > length - len(answer))
    return torch.from_numpy(np.stack(ids).astype(np.int64)), torch.from_numpy(np.stack(mask)), depths


@torch.no_grad()
def needle_accuracy(model: Transformer, books: Books, length: int, count: int, device: torch.device,
                    seed: int = 0) -> tuple[float, float]:
    """Share of questions whose whole answer is the most likely one, and share of the answers' tokens."""
    ids, mask, _ = needles(books, length, count, seed)
    rows = max(1, BATCH_TOKENS // length)
    whole, tokens = [], []
    for i in range(0, count, rows):
        part = ids[i:i + rows].to(device)
        hit = model.loss(part[:, :-1], part[:, 1:], torch.ones(part[:, 1:].shape, device=device))[2].cpu()
        for h, m in zip(hit, mask[i:i + rows, 1:]):
            whole.append(bool(h[m].all()))
            tokens.append(float(h[m].float().mean()))
    return float(np.mean(whole)), float(np.mean(tokens))


def evaluate(model: Transformer, books: Books, device: torch.device, lengths: tuple[int, ...]) -> dict:
    """Validation loss in nats a token and a character (windows of 512 and the longest length), and needles at each
    length.
    """
    per_token = books.about['tokens'] / books.about['characters']
    out = {}
    for length in sorted({512, max(lengths)}):
        count = 8 * BATCH_TOKENS // length
        nats = float(token_losses(model, windows(books, length, count), device).mean())
        out[f'valid_{length}'] = {'nats_token': round(nats, 4), 'nats_character': round(nats * per_token, 4)}
    for length in lengths:
        whole, tokens = needle_accuracy(model, books, length, max(8, min(32, BATCH_TOKENS // length * 4)), device)
        out[f'needle_{length}'] = {'whole': round(whole, 4), 'tokens': round(tokens, 4)}
    return out
