#!/usr/bin/env python3
"""Writes a text with other facts in it, for a harder `croquis needle --haystack`: the same sentence about other names,
after every --every characters. The question then has to be told apart from several that differ in one word.

example: python tools/train/haystack.py models/texts/frankenstein.txt facts.txt && croquis needle models/croquis-7m
--haystack facts.txt
"""
import argparse
import pathlib
import random
import re
import sys

# None of them is a name that `croquis needle` asks for.
NAMES = ('table doctor summer brother church pocket hundred evening story island soldier kitchen shoulder dinner '
         'captain corner valley palace chamber servant paper carriage moment ocean prison stone teacher uncle wagon '
         'yellow market cousin blanket engine feather hammer jacket ladder needle pillow').split()


def with_facts(text: str, every: int, seed: int) -> str:
    """text with a fact between two sentences after every `every` characters."""
    rng, out, last, count = random.Random(seed), [], 0, 0
    for end in re.finditer(r'\. (?=[A-Z])', text):
        if end.end() - last >= every:
            digits = ''.join(rng.choice('0123456789') for _ in range(5))
            out.append(f'{text[last:end.end() - 1]} The secret number of {NAMES[count % len(NAMES)]} is {digits}. ')
            last, count = end.end(), count + 1
    return ''.join(out) + text[last:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('text', type=pathlib.Path, help='plain text in English')
    parser.add_argument('out', type=pathlib.Path, help='file to write')
    parser.add_argument('--every', type=int, default=1000, help='characters between facts (default: 1000)')
    parser.add_argument('--first', type=int, default=3000, help='characters left out at the start (default: 3000)')
    parser.add_argument('--length', type=int, default=117000, help='characters taken (default: 117000)')
    parser.add_argument('--seed', type=int, default=4, help='seed of the digits (default: 4)')
    args = parser.parse_args()
    try:
        text = args.text.read_text(encoding='utf-8')[args.first:args.first + args.length]
        args.out.write_text(with_facts(text, args.every, args.seed), encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
