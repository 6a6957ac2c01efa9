#!/usr/bin/env python3
"""Fails if a quoted include points from a module to one on the same level or above it.

usage: check_layers.py SOURCE_ROOT level1 level2 ...   lowest first; "a,b" is one level with two siblings.
Also fails for includes of <immintrin.h> outside the simd module and of oneDNN or Eigen outside linalg.
"""
import collections
import pathlib
import re
import sys

ONLY_IN = {'immintrin.h': 'simd', 'x86intrin.h': 'simd', 'oneapi/dnnl/': 'linalg', 'dnnl': 'linalg', 'cblas.h': 'linalg',
           'Eigen/': 'linalg', 'eigen3/': 'linalg'}


def main():
    root, levels = pathlib.Path(sys.argv[1]), sys.argv[2:]
    rank = {name: i for i, level in enumerate(levels) for name in level.split(',')}
    edges, bad = collections.defaultdict(list), []
    files = [f for top in ('croquis', 'apps') for f in (root / top).rglob('*') if f.suffix in {'.h', '.cc'}]
    for f in files:
        parts = f.relative_to(root).parts
        module = parts[1] if parts[0] == 'croquis' else 'apps'
        for n, line in enumerate(f.read_text(errors='replace').splitlines(), 1):
            include = re.match(r'\s*#\s*include\s+(?:"croquis/([a-z_]+)/|<([^>]+)>)', line)
            if not include:
                continue
            if include[1] and include[1] != module:
                edges[module, include[1]].append(f'{f.relative_to(root)}:{n}')
            for prefix, home in ONLY_IN.items():
                if include[2] and include[2].startswith(prefix) and module != home:
                    bad.append(f'{f.relative_to(root)}:{n}: <{include[2]}> may be included in {home} only')
    for (a, b), where in sorted(edges.items()):
        if a not in rank or b not in rank or rank[b] >= rank[a]:
            bad.append(f'{where[0]}: {a} may not include {b} ({len(where)} places)')
    print('\n'.join(bad))
    print(f'{len(files)} files, {len(edges)} edges between modules, {len(bad)} forbidden')
    return 1 if bad or not files else 0


sys.exit(main())
