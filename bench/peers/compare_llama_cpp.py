#!/usr/bin/env python3
"""Decode speed and cache bytes at a long context: llama.cpp (llama-cpp-python, flash attention) beside Croquis.

usage: compare_llama_cpp.py MODEL.gguf --croquis build/release/apps/croquis [--context 32768] [--new 32] [--threads 2] [--rounds 3]
Both read the same GGUF file and the same tokens' worth of text; rounds are interleaved. Prints one JSON object.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import llama_cpp

BITS = {'f16': 16, 'q8_0': 8.5, 'q4_0': 4.5}
TYPES = {'f16': llama_cpp.GGML_TYPE_F16, 'q8_0': llama_cpp.GGML_TYPE_Q8_0, 'q4_0': llama_cpp.GGML_TYPE_Q4_0}


def run_llama(a, kind, tokens):
    llm = llama_cpp.Llama(a.model, n_ctx=a.context + a.new + 8, n_batch=512, n_threads=a.threads, n_threads_batch=a.threads,
                          flash_attn=True, type_k=TYPES[kind], type_v=TYPES[kind], verbose=False)
    begin = time.perf_counter()
    llm.eval(tokens)
    prompt = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(a.new):
        llm.eval([llm.sample(temp=0)])
    decode = time.perf_counter() - begin
    m = llm.metadata
    kv = int(m['llama.attention.head_count_kv']) * int(m['llama.attention.key_length'])
    numbers = 2 * int(m['llama.block_count']) * kv * (a.context + a.new)
    llm.close()
    return {'prompt_tokens_per_s': len(tokens) / prompt, 'decode_tokens_per_s': a.new / decode, 'cache_bytes': numbers * BITS[kind] / 8}


def run_croquis(a, kv, text):
    out = subprocess.run([a.croquis, 'run', a.model, '-f', text, '-n', str(a.new), '--kv', kv, '--ctx', str(a.context + a.context // 50 + a.new + 64),
                          '--threads', str(a.threads), '--temp', '0', '--ignore-eos', '--json'], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    row = json.loads(out.stdout)['rows'][0]
    return {k: row[k] for k in ('prompt_tokens_per_s', 'decode_tokens_per_s', 'cache_bytes')}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model')
    p.add_argument('--croquis', required=True)
    p.add_argument('--text', required=True, type=pathlib.Path, help='a plain text, repeated until it fills the context')
    p.add_argument('--context', type=int, default=32768)
    p.add_argument('--new', type=int, default=32)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--kv', nargs='*', default=['f16', 'int8', 'q8_0', 'q4_0', 'eden:bits=4', 'eden:bits=3', 'eden:bits=2'])
    a = p.parse_args()

    tokenizer = llama_cpp.Llama(a.model, vocab_only=True, verbose=False)
    text = a.text.read_text()
    tokens = tokenizer.tokenize(text.encode())
    tokens = (tokens * (a.context // len(tokens) + 1))[:a.context]
    text = tokenizer.detokenize(tokens).decode(errors='ignore')
    rows = {}
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as f:
        f.write(text)
        f.flush()
        for _ in range(a.rounds):
            for kind in BITS:
                rows.setdefault(('llama.cpp', kind), []).append(run_llama(a, kind, tokens))
            for kv in a.kv:
                rows.setdefault(('croquis', kv), []).append(run_croquis(a, kv, f.name))
    table = [{'engine': e, 'kv': kv, **{k: statistics.median(r[k] for r in runs) for k in runs[0]}} for (e, kv), runs in rows.items()]
    json.dump({'model': pathlib.Path(a.model).name, 'context': len(tokens), 'threads': a.threads, 'llama_cpp_python': llama_cpp.__version__,
               'rows': table}, sys.stdout, indent=1)
    print()


main()
