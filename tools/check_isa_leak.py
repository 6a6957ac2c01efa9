#!/usr/bin/env python3
"""Fails if vector-extension instructions occur in object files that were not built for an instruction set.

A function compiled with -mavx2 that the linker picks for a baseline caller crashes older machines. Objects named after
an instruction set (_avx2, _avxvnni, _avx512, _amx) may use it; and they may define no weak symbol, because the
linker could pick that copy for everyone.
usage: check_isa_leak.py LIBRARY.a ...
"""
import re
import subprocess
import sys

ISA = re.compile(r'_(avx2|avxvnni|avx512|amx)[a-z0-9_]*\.cc\.o$')
VECTOR = re.compile(r'^\s+[0-9a-f]+:\s+(?:[0-9a-f]{2} )*\s*(?:v[a-z0-9]+\s.*%[xyz]mm|tdp|tileload|ldtilecfg)')


def run(*args):
    return subprocess.run(args, capture_output=True, text=True, check=True).stdout


def main():
    bad = []
    for library in sys.argv[1:]:
        member = ''
        for line in run('objdump', '-d', '--no-show-raw-insn', library).splitlines():
            header = re.match(r'^(\S+\.o):\s+file format', line)
            if header:
                member = header[1]
            elif not ISA.search(member) and VECTOR.match(line):
                bad.append(f'{library}({member}): {line.strip()}')
        for line in run('nm', '-A', '--defined-only', library).splitlines():
            where, kind, symbol = re.match(r'^(\S+?):?\s*[0-9a-f]*\s(\S)\s(.*)$', line).groups()
            if kind in 'WVu' and ISA.search(where.rstrip(':').split(':')[-1]):
                bad.append(f'{where} defines the weak symbol {symbol}')
    print('\n'.join(bad[:20]))
    print(f'{len(sys.argv) - 1} libraries, {len(bad)} leaks')
    return 1 if bad else 0


sys.exit(main())
