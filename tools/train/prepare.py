#!/usr/bin/env python3
"""Tokenises a folder of plain-text books once: NAME.bin (uint16 token ids, one book after the other) and NAME.json.

Each book is encoded whole, as `croquis` encodes a text, without begin or end tokens; line ends are kept. Books shorter
than --min-characters are left out. The order of the books is that of their sorted names, so the result depends on the
folder alone.

example: python tools/train/prepare.py --tokenizer models/croquis-4m/tokenizer.model --books books/train --out
/data/train
"""
import argparse
import json
import multiprocessing
import pathlib
import sys

import numpy as np
import sentencepiece

_processor: sentencepiece.SentencePieceProcessor | None = None


def _start(model: str) -> None:
    global _processor
    _processor = sentencepiece.SentencePieceProcessor(model_file=model)


def _encode(path: pathlib.Path) -> tuple[str, int, bytes]:
    """Name, number of characters and token ids (uint16, little endian) of one book."""
    text = path.read_text(encoding='utf-8')
    ids = np.asarray(_processor.encode(text), dtype='<u2')
    return path.name, len(text), ids.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tokenizer', type=pathlib.Path, required=True,
                        help='SentencePiece model of at most 65,536 pieces')
    parser.add_argument('--books', type=pathlib.Path, required=True, help='folder with the books, *.txt in UTF-8')
    parser.add_argument('--out', type=pathlib.Path, required=True, help='path of the result without its ending')
    parser.add_argument('--jobs', type=int, default=multiprocessing.cpu_count(), help='processes (default: one a core)')
    parser.add_argument('--min-characters', type=int, default=10000, help='shortest book that is kept (default: 10000)')
    args = parser.parse_args()
    paths = sorted(p for p in args.books.glob('*.txt') if p.stat().st_size >= args.min_characters)
    if not paths:
        print(f'{args.books}: no *.txt of at least {args.min_characters} bytes', file=sys.stderr)
        return 2
    _start(str(args.tokenizer))
    if _processor.vocab_size() > 65536:
        print(f'{args.tokenizer}: {_processor.vocab_size()} pieces; wanted at most 65536', file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    books, first = [], 0
    part = args.out.with_suffix('.part')
    with multiprocessing.Pool(args.jobs, _start, (str(args.tokenizer), )) as pool, open(part, 'wb') as out:
        for name, characters, ids in pool.imap(_encode, paths, chunksize=4):
            out.write(ids)
            books.append({'name': name, 'characters': characters, 'first': first, 'tokens': len(ids) // 2})
            first += len(ids) // 2
    part.rename(args.out.with_suffix('.bin'))
    total = sum(b['characters'] for b in books)
    about = {
        'tokenizer': args.tokenizer.name,
        'vocabulary': _processor.vocab_size(),
        'tokens': first,
        'characters': total,
        'books': books
    }
    args.out.with_suffix('.json').write_text(json.dumps(about, indent=1) + '\n')
    print(f'{len(books)} books, {total} characters, {first} tokens, {total / first:.3f} characters a token')
    return 0


if __name__ == '__main__':
    sys.exit(main())
