#!/usr/bin/env python3
"""Fails if a method of a registry has no page under docs/methods, or a relative link of a Markdown file leads nowhere.

usage: check_docs.py SOURCE_ROOT CROQUIS_BINARY
"""
import json
import pathlib
import re
import subprocess
import sys


def main():
    root, binary = pathlib.Path(sys.argv[1]), sys.argv[2]
    bad = []
    def listed(command, key):
        out = subprocess.run([binary, command, '--list', '--json'], capture_output=True, check=True, text=True).stdout
        return {row[key].split(':')[0] for row in json.loads(out)['rows']}
    names = listed('codecs', 'codec') | listed('attn', 'method')
    bad += [f'docs/methods/{n}.md is missing' for n in sorted(names) if not (root / 'docs' / 'methods' / f'{n}.md').exists()]
    pages = [p for p in root.rglob('*.md') if not any(part.startswith(('build', '.')) for part in p.relative_to(root).parts)]
    for page in pages:
        for target in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
            if '://' not in target and not target.startswith('mailto:') and not (page.parent / target).exists():
                bad.append(f'{page.relative_to(root)}: no such file: {target}')
    print('\n'.join(bad))
    print(f'{len(names)} methods, {len(pages)} pages, {len(bad)} problems')
    return 1 if bad or not names else 0


sys.exit(main())
