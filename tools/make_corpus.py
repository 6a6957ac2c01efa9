#!/usr/bin/env python3
"""Writes the small seed files of the fuzzers under tests/fuzz/corpus. Deterministic; needs only Python.

usage: make_corpus.py [ROOT]     The snapshot seeds come from `fuzz_snapshot_seed` (see tests/fuzz/README.md).
"""
import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'tests/fuzz/corpus')


def put(target, name, data):
    folder = ROOT / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def safetensors(tensors, header=None):
    offset, table, body = 0, {'__metadata__': {'format': 'pt'}}, b''
    for name, (dtype, shape, data) in tensors.items():
        table[name] = {'dtype': dtype, 'shape': shape, 'data_offsets': [offset, offset + len(data)]}
        offset += len(data)
        body += data
    text = (header or json.dumps(table)).encode()
    return struct.pack('<Q', len(text)) + text + body


def gguf_string(s):
    return struct.pack('<Q', len(s)) + s.encode()


def gguf():
    kv = [('general.architecture', 8, gguf_string('llama')), ('llama.block_count', 4, struct.pack('<I', 1)),
          ('tokenizer.ggml.tokens', 9, struct.pack('<IQ', 8, 2) + gguf_string('a') + gguf_string('b')),
          ('llama.rope.freq_base', 6, struct.pack('<f', 1e4)), ('general.alignment', 4, struct.pack('<I', 32))]
    out = b'GGUF' + struct.pack('<IQQ', 3, 2, len(kv))
    for key, kind, value in kv:
        out += gguf_string(key) + struct.pack('<I', kind) + value
    out += gguf_string('token_embd.weight') + struct.pack('<IQQIQ', 2, 32, 2, 0, 0)
    out += gguf_string('output_norm.weight') + struct.pack('<IQIQ', 1, 32, 8, 256)
    out += b'\0' * (-len(out) % 32)
    return out + bytes(256) + bytes(34)


def tokenizer_json():
    letters = [chr(c) for c in range(33, 127)] + ['\u0120', '\u010a']
    vocab = {c: i for i, c in enumerate(letters)}
    for piece in ('he', 'll', '\u0120w', 'hell'):
        vocab[piece] = len(vocab)
    model = {'type': 'BPE', 'vocab': vocab, 'merges': ['h e', 'l l', '\u0120 w', ['he', 'll']], 'byte_fallback': False}
    split = {'type': 'Split', 'pattern': {'Regex': r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"}, 'behavior': 'Isolated', 'invert': False}
    return {'version': '1.0', 'added_tokens': [{'id': len(vocab), 'content': '<|end|>', 'special': True, 'lstrip': False, 'rstrip': False,
                                                'normalized': False, 'single_word': False}],
            'normalizer': {'type': 'NFC'},
            'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [split, {'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': False}]},
            'post_processor': {'type': 'ByteLevel'}, 'decoder': {'type': 'ByteLevel'}, 'model': model}


def npy(dictionary, data, version=1):
    return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H' if version == 1 else '<I', len(dictionary)) + dictionary.encode() + data


def main():
    put('safetensors', 'two', safetensors({'a': ('F32', [2, 2], bytes(16)), 'b': ('BF16', [3], bytes(6))}))
    put('safetensors', 'overlap', safetensors({}, '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'))
    put('safetensors', 'absurd', safetensors({}, '{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,16]}}'))
    put('safetensors', 'huge_header', struct.pack('<Q', 2 ** 63) + b'{}')
    put('safetensors', 'index', json.dumps({'metadata': {}, 'weight_map': {'a': 'model-1.safetensors', 'b': '../model-2.safetensors'}}).encode())
    put('gguf', 'small', gguf())
    put('gguf', 'huge_counts', b'GGUF' + struct.pack('<IQQ', 3, 2 ** 60, 2 ** 60))
    put('gguf', 'huge_string', b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + struct.pack('<Q', 2 ** 63) + b'x')
    put('llama2c', 'small', struct.pack('<7i', 8, 16, 1, 2, 1, 4, 8) + bytes(4096))
    put('llama2c', 'absurd', struct.pack('<7i', 2 ** 30, 2 ** 30, 2 ** 30, 2 ** 30, 2 ** 30, -2 ** 31, 2 ** 30))
    put('llama2c', 'vocabulary', struct.pack('<i', 3) + b''.join(struct.pack('<fi', -i, 1) + bytes([97 + i % 26]) for i in range(512)))
    put('tokenizer_json', 'byte_level', json.dumps(tokenizer_json()).encode())
    metaspace = {'model': {'type': 'BPE', 'byte_fallback': True, 'unk_token': '<unk>', 'vocab': {'<unk>': 0, '\u2581': 1, 'a': 2, '\u2581a': 3},
                           'merges': ['\u2581 a']}, 'normalizer': {'type': 'Sequence', 'normalizers': [
                               {'type': 'Prepend', 'prepend': '\u2581'}, {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'}]},
                 'decoder': {'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}]}}
    put('tokenizer_json', 'metaspace', json.dumps(metaspace).encode())
    put('tokenizer_json', 'deep', b'[' * 5000)
    for i, text in enumerate(['eden:bits=4', 'k=eden:bits=4,center=none,v=eden:bits=3\n0-3/1=k=int8,v=f16', 'turboquant:mode=prod,bits=3',
                              'qjl', 'kivi:bits=2,group=32', 'polarquant', 'q4_0:hadamard=1\n0-1=f16', 'eden:bits=99999999999999999999', 'k=,v=']):
        put('method_strings', f'm{i}', text.encode())
    put('npy', 'f4', npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", bytes(24)))
    put('npy', 'f2', npy("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 1, 2, 3), }\n", bytes(24), 2))
    put('npy', 'other_writer', npy('{"shape":(4L,),"fortran_order":True,"descr":"|V2"}', bytes(8), 3))
    put('npy', 'scalar', npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", bytes(4)))
    put('npy', 'empty', npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 64)}", b''))
    put('npy', 'absurd', npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 4, 0)}", bytes(16)))
    put('npy', 'huge_header', b'\x93NUMPY\x02\x00' + struct.pack('<I', 2 ** 32 - 1) + b'{}')
    put('npy', 'record', npy("{'descr': [('a', '>f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(12)))


main()
