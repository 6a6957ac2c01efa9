"""Rows of training tokens, each a function of (seed, step, row) alone: book text and tasks that need the context.

A row is one document: the begin token, then `length` predicted tokens; attention never has to cross into another
document. Every token has a weight in the loss: prose WEIGHT_TEXT, answers more, values that nothing could predict (a
fact's first mention) little.
"""
import collections
import dataclasses
import json
import pathlib
import queue
import threading
from collections.abc import Iterator

import numpy as np
import sentencepiece

BOS = 1
WEIGHT_TEXT, WEIGHT_RANDOM = 1.0, 0.1
GOLDEN = 0.6180339887498949


class Books:
    """The tokens that prepare.py wrote. Pieces are addressed by a low-discrepancy sequence, so that little is read
    twice.
    """

    def __init__(self, path: pathlib.Path, tokenizer: pathlib.Path) -> None:
        self.ids = np.memmap(path.with_suffix('.bin'), dtype='<u2', mode='r')
        self.about = json.loads(path.with_suffix('.json').read_text())
        self.starts = np.array([b['first'] for b in self.about['books']] + [len(self.ids)])
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        if self.tokenizer.vocab_size() != self.about['vocabulary']:
            raise ValueError(f'{tokenizer} has {self.tokenizer.vocab_size()} pieces, '
                             f'{path} was written with {self.about["vocabulary"]}')
        pieces = [self.tokenizer.id_to_piece(i) for i in range(self.tokenizer.vocab_size())]
        self.starts_word = np.array([p.startswith('\u2581') for p in pieces])
        self.ends_sentence = np.array([p in '.?!' for p in pieces])
        self.newline = self.tokenizer.piece_to_id('<0x0A>')
        self.words = self._common_words()
        self._encoded: dict[str, list[int]] = {}

    def _common_words(self, count: int = 4000) -> list[str]:
        """The most frequent words of 4 to 10 lower-case letters in every fortieth stretch of the books, in order of
        frequency.
        """
        step = max(1, len(self.ids) // 100)
        text = ' '.join(
            self.tokenizer.decode(self.ids[i:i + step // 20].tolist())
            for i in range(0,
                           len(self.ids) - step // 20, step))
        words = collections.Counter(w for w in text.split()
                                    if 4 <= len(w) <= 10 and w.isascii() and w.isalpha() and w.islower())
        return [w for w, _ in sorted(words.items(), key=lambda x: (-x[1], x[0]))[40:40 + count]]

    def encode(self, text: str) -> list[int]:
        """Tokens of ' ' + text as they stand in the middle of a text."""
        return self.tokenizer.encode(text)

    def piece(self, index: float, length: int) -> np.ndarray:
        """`length` tokens, mostly of one book; index may be any non-negative number, neighbouring ones give distant
        places.
        """
        at = int((index * GOLDEN) % 1.0 * (len(self.ids) - length - 1))
        end = self.starts[np.searchsorted(self.starts, at, 'right')]
        if end - at < length:
            at = max(0, int(end) - length)
        return np.asarray(self.ids[at:at + length], dtype=np.int64)

    def breaks(self, ids: np.ndarray) -> np.ndarray:
        """Positions i > 0 at which a new sentence starts with a space: a fact can stand before ids[i]."""
        return np.flatnonzero(self.ends_sentence[ids[:-1]] & self.starts_word[ids[1:]]) + 1


@dataclasses.dataclass
class Fact:
    """What is said once, then asked; every part is a list of (tokens, role) with roles 'text', 'random' and
    'answer'.
    """
    said: list[tuple[list[int], str]]
    asked: list[tuple[list[int], str]]


NUMBER_WORDS = 'zero one two three four five six seven eight nine'.split()
KINDS = ['number', 'code', 'word', 'name', 'sign', 'price', 'age', 'key']
SORTS = ['secret', 'hidden', 'true', 'second', 'lucky', 'private', 'first', 'old']
PEOPLE = (
    'Anna Thomas Mary John Ellen Walter Sarah George Alice Henry Clara Robert Emma Edward Lucy Arthur Jane Philip '
    'Rose Martin Grace Oliver '
    'Helen Frank Martha Peter Julia Simon Agnes Hugh').split()


class Recipe:
    """Makes rows. Templates are few and plain; names, values, places and filler are drawn anew for every row."""

    def __init__(self, books: Books, seed: int) -> None:
        self.books, self.seed = books, seed
        self.repeats = 0.0
        self.tasks = {
            'facts': self.facts,
            'repeat': self.repeat,
            'list': self.listing,
            'variables': self.variables,
            'two': self.two_facts
        }

    # -- pieces of text ------------------------------------------------------------------------------------------------
    def word(self, r: np.random.Generator) -> str:
        words = self.books.words
        return words[int(len(words) * r.random()**1.5)]

    def distinct(self, r: np.random.Generator, count: int, make) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < count:
            found[make(r)] = None
        return list(found)

    def digits(self, r: np.random.Generator, low: int = 1, high: int = 7) -> str:
        n = 5 if r.random() < 0.6 and low <= 5 <= high else int(r.integers(low, high + 1))
        if self.repeats and r.random(
        ) < self.repeats:  # 59797: what follows the second 97 needs more than one token of context
            return ''.join(str(d) for d in r.choice(r.permutation(10)[:2 + int(r.integers(2))], n))
        return ''.join(str(d) for d in r.integers(0, 10, n))

    def value(self, r: np.random.Generator) -> str:
        kind = r.random()
        if kind < 0.65:
            return self.digits(r)
        if kind < 0.85:
            return self.word(r)
        return ' '.join(NUMBER_WORDS[d] for d in r.integers(0, 10, int(r.integers(2, 5))))

    def part(self, text: str, role: str = 'text') -> tuple[list[int], str]:
        return self.books.encode(text), role

    # -- facts ---------------------------------------------------------------------------------------------------------
    def make_facts(self, r: np.random.Generator, count: int) -> list[Fact]:
        """`count` facts of one template about different things, with values of their own."""
        names = self.distinct(r, count, self.word)
        style = r.random()
        facts = []
        if style < 0.75:
            kind, sort = ('number', 'secret') if style < 0.4 else (KINDS[r.integers(len(KINDS))],
                                                                   SORTS[r.integers(len(SORTS))])
            for name in names:
                value = self.digits(r) if style < 0.4 else self.value(r)
                stem = f'The {sort} {kind} of {name} is'
                facts.append(
                    Fact([self.part(stem), self.part(f'{value}.', 'random')],
                         [self.part(f'What is the {sort} {kind} of {name}? {stem}'),
                          self.part(f'{value}.', 'answer')]))
        else:
            people = self.distinct(r, min(count, len(PEOPLE)), lambda g: PEOPLE[g.integers(len(PEOPLE))])
            place = ['keeps the key in the', 'lives near the', 'is looking for the', 'has lost the'][r.integers(4)]
            for person, name in zip(people, names):
                facts.append(
                    Fact([self.part(f'{person} {place}'),
                          self.part(f'{name}.', 'random')],
                         [self.part(f'Who {place} {name}? It is'),
                          self.part(f'{person}.', 'answer')]
                         if r.random() < 0.3 else [self.part(f'{person} {place}'),
                                                   self.part(f'{name}.', 'answer')]))
        return facts

    def facts(self, r: np.random.Generator, length: int, dense: bool) -> tuple[list[int], list[float]]:
        """Facts hidden in book text, questions at the end or, in dense rows, wherever the row still has room."""
        count = int(r.integers(2, 9)) if dense else int(r.integers(1, 7))
        if not dense and r.random() < 0.5:
            count = 1
        return self.hide(r, length, self.make_facts(r, count), dense)

    def two_facts(self, r: np.random.Generator, length: int, dense: bool) -> tuple[list[int], list[float]]:
        """Who lives where and what number a place has; the answer needs both."""
        count = int(r.integers(2, 5)) if dense else int(r.integers(1, 4))
        people = self.distinct(r, count, lambda g: PEOPLE[g.integers(len(PEOPLE))])
        said, asked = [], []
        for person, place in zip(people, self.distinct(r, count, self.word)):
            digits = self.digits(r, 2, 5)
            lives = f'{person} lives near the'
            said.append(Fact([self.part(lives), self.part(f'{place}.', 'random')], []))
            said.append(Fact([self.part(f'The number of the {place} is'), self.part(f'{digits}.', 'random')], []))
            question = f'What is the number of the place near which {person} lives?'
            if r.random() < 0.6:
                asked.append([
                    self.part(f'{question} {lives}'),
                    self.part(f'{place}.', 'answer'),
                    self.part(f'The number of the {place} is'),
                    self.part(f'{digits}.', 'answer')
                ])
            else:
                asked.append([self.part(f'{question} It is'), self.part(f'{digits}.', 'answer')])
        said = [said[i] for i in r.permutation(len(said))]
        for fact, question in zip(said, asked):
            fact.asked = question
        return self.hide(r, length, said, dense)

    def hide(self, r: np.random.Generator, length: int, facts: list[Fact],
             dense: bool) -> tuple[list[int], list[float]]:
        """A row with every fact said in book text and asked after all of them, in an order of its own."""
        ids, weights = [BOS], [0.0]
        answer = 4.0 if dense else 4.0 + length / 256

        def add(parts) -> None:
            for tokens, role in parts:
                ids.extend(tokens)
                weights.extend([{
                    'text': WEIGHT_TEXT if dense else 0.2,
                    'random': WEIGHT_RANDOM,
                    'answer': answer
                }[role]] * len(tokens))

        questions = [f.asked for f in facts if f.asked]
        fact_tokens = sum(len(t) for f in facts for t, _ in f.said)
        question_tokens = sum(len(t) for q in questions for t, _ in q)
        while len(questions) > 1 and fact_tokens + question_tokens > 0.7 * length:
            question_tokens -= sum(len(t) for t, _ in questions.pop())
        questions = [questions[i] for i in r.permutation(len(questions))]
        if not dense:
            questions = questions[:int(r.integers(1, 5))]
        question_tokens = sum(len(t) for q in questions for t, _ in q)
        filler = max(2, length - fact_tokens - question_tokens)
        if dense:
            filler = min(filler, int(r.integers(2, 60)))
        text = self.books.piece(float(r.random() * 2**20), filler)
        at = self.books.breaks(text)
        at = at if len(at) else np.array([len(text)])
        if not dense and len(facts) == 1 and r.random() < 0.15:
            at = at[:1] if r.random() < 0.5 else at[-1:]
        places = np.sort(r.choice(at, len(facts), replace=len(at) < len(facts)))
        last = 0
        for place, fact in zip(places, facts):
            ids.extend(text[last:place].tolist())
            weights.extend([WEIGHT_TEXT] * (place - last))
            add(fact.said)
            last = place
        ids.extend(text[last:].tolist())
        weights.extend([WEIGHT_TEXT] * (len(text) - last))
        for question in questions:
            add(question)
        if dense and questions:
            while len(ids) <= length:  # the same questions again, and again, until the row is full
                add(questions[r.integers(len(questions))])
        return ids, weights

    # -- repetition ----------------------------------------------------------------------------------------------------
    def repeat(self, r: np.random.Generator, length: int, dense: bool) -> tuple[list[int], list[float]]:
        """A passage (of a book, of random words or of random tokens), book text, and the passage again."""
        n = int(r.integers(8, max(9, length // (3 if dense else 6))))
        kind = r.random()
        if kind < 0.4:
            passage, first = self.books.piece(float(r.random() * 2**20), n).tolist(), WEIGHT_TEXT
        elif kind < 0.7:
            passage, first = self.books.encode(' '.join(self.word(r) for _ in range(n)))[:n], WEIGHT_RANDOM
        else:
            passage, first = r.integers(259, self.books.about['vocabulary'], n).tolist(), WEIGHT_RANDOM
        ids, weights = [BOS], [0.0]
        gap = int(r.integers(0, 16)) if dense else max(0, length - 2 * n - int(r.integers(0, length // 4)))
        before = 0 if dense else int(r.integers(0, length // 4))
        start = self.books.piece(float(r.random() * 2**20), before + gap).tolist()
        ids += start[:before] + passage
        weights += [WEIGHT_TEXT] * before + [first] * n
        gap_text = start[before:]
        while len(ids) <= length:
            ids += gap_text + passage
            weights += [WEIGHT_TEXT] * len(gap_text) + [first] + [1.5] * (n - 1)
            gap_text = [] if dense else self.books.piece(float(r.random() * 2**20), length).tolist()
        return ids, weights

    def listing(self, r: np.random.Generator, length: int, dense: bool) -> tuple[list[int], list[float]]:
        """A list of words that returns after some text and is to be continued from its first items; or a count
        upwards.
        """
        ids, weights = [BOS], [0.0]
        if r.random() < 0.15:
            at, step = int(r.integers(0, 500)), int(r.choice([1, 1, 2, 5, 10]))
            tokens = self.books.encode(', '.join(str(at + i * step) for i in range(length // 2)))
            return ids + tokens, weights + [1.0] * len(tokens)
        items = self.distinct(r, int(r.integers(4, 13 if dense else 25)), self.word)
        while len(ids) <= length:
            title = self.word(r)
            first, again = self.part(f'The list of {title}: {items[0]}')[0], None
            body = self.books.encode(', '.join(items) + '.')
            ids += first[:-len(self.books.encode(items[0]))] + body
            weights += [WEIGHT_TEXT] * (len(first) - len(self.books.encode(items[0]))) + [WEIGHT_RANDOM] * len(body)
            gap = int(r.integers(0, 16)) if dense else int(r.integers(0, max(1, length // 2)))
            again = self.books.encode(f'The list of {title}: {items[0]}, {items[1]}')
            rest = self.books.encode(', '.join(items) + '.')
            head = len(self.books.encode(f'{items[0]}, {items[1]}'))
            ids += self.books.piece(float(r.random() * 2**20), gap).tolist() + again + rest[head:]
            weights += [WEIGHT_TEXT] * gap + [0.2] * len(again) + [2.0] * (len(rest) - head)
            items = self.distinct(r, len(items), self.word)
        return ids, weights

    def variables(self, r: np.random.Generator, length: int, dense: bool) -> tuple[list[int], list[float]]:
        """Assignments of numbers and of earlier variables, with book text between them in long rows; then prints, to be
        answered.
        """
        ids, weights = [BOS], [0.0]
        answer = 4.0 if dense else 4.0 + length / 256
        names = self.distinct(r, int(r.integers(3, 10)), self.word if r.random() < 0.5 else
                              (lambda g: chr(97 + g.integers(26))))
        values: dict[str, str] = {}
        gaps = 0 if dense else int(length * 0.8 / len(names))

        def add(tokens: list[int], weight: float) -> None:
            ids.extend(tokens)
            weights.extend([weight] * len(tokens))

        for name in names:
            copied = values and r.random() < 0.25
            source = list(values)[r.integers(len(values))] if copied else ''
            values[name] = values[source] if copied else self.digits(r, 2, 4)
            add(self.books.encode(f'let {name} = {source or values[name]};'), WEIGHT_RANDOM)
            if gaps:
                add(self.books.piece(float(r.random() * 2**20), int(r.integers(0, gaps))).tolist(), WEIGHT_TEXT)
        asked = 0
        while len(ids) <= length and (dense or asked < 6):
            name = names[r.integers(len(names))]
            add(self.books.encode(f'print {name} ='), 0.2)
            add(self.books.encode(f'{values[name]};'), answer)
            asked += 1
        return ids, weights

    # -- rows ----------------------------------------------------------------------------------------------------------
    def row(self, step: int, row: int, length: int, tasks: dict[str, float], dense: float,
            repeats: float = 0.0) -> tuple[np.ndarray, np.ndarray, str]:
        """length + 1 tokens and weights (f32) and what the row is: 'text' or a task's name.

        tasks: share of each task among all rows, the rest is book text; dense: share of task rows with little filler
        and many questions; repeats: share of the numbers made of two or three different digits.
        """
        self.repeats = repeats
        r = np.random.Generator(np.random.Philox(key=[self.seed, (step << 20) | row]))
        pick, kind = r.random(), 'text'
        for name, share in tasks.items():
            if pick < share:
                kind = name
                break
            pick -= share
        if kind == 'text':
            ids = np.concatenate([[BOS], self.books.piece((step * 1024 + row) % 2**40, length)])
            return ids, np.full(length + 1, WEIGHT_TEXT, np.float32), kind
        ids, weights = self.tasks[kind](r, length, bool(r.random() < dense))
        missing = length + 1 - len(ids)
        if missing > 0:
            if kind in ('facts', 'two') and missing < 64 and len(
                    ids) > 1:  # too few tokens only by rounding: text in front keeps the question last
                front = self.books.piece(float(r.random() * 2**20), missing).tolist()
                ids, weights = ids[:1] + front + ids[1:], weights[:1] + [WEIGHT_TEXT] * missing + weights[1:]
            else:
                ids = ids + self.books.piece(float(r.random() * 2**20), missing).tolist()
                weights = weights + [WEIGHT_TEXT] * missing
        return np.asarray(ids[:length + 1], np.int64), np.asarray(weights[:length + 1], np.float32), kind

    def batch(self, step: int, rows: int, length: int, tasks: dict[str, float], dense: float,
              repeats: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """ids [rows, length + 1] int64, weights [rows, length + 1] f32 and each row's kind."""
        made = [self.row(step, i, length, tasks, dense, repeats) for i in range(rows)]
        return np.stack([m[0] for m in made]), np.stack([m[1] for m in made]), [m[2] for m in made]


def prefetch(make, first: int, depth: int = 3) -> Iterator:
    """make(first), make(first + 1), ... computed ahead by a thread; its errors are raised where the values are
    taken.
    """
    ahead: queue.Queue = queue.Queue(depth)

    def work() -> None:
        step = first
        try:
            while True:
                ahead.put(make(step))
                step += 1
        except BaseException as error:  # passed on to the reader, whatever it is
            ahead.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        value = ahead.get()
        if isinstance(value, BaseException):
            raise value
        yield value
