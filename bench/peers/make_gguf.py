#!/usr/bin/env python3
"""Writes a Hugging Face Llama folder with a SentencePiece tokenizer as a GGUF file that llama.cpp and Croquis both read.

usage: make_gguf.py FOLDER OUT.gguf [--type f16|f32|bf16|q8_0] [--context N]
Needs the packages numpy, gguf and sentencepiece.
"""
import argparse
import json
import pathlib
import struct

import gguf
import numpy as np
import sentencepiece


def read_safetensors(path):
    raw = path.read_bytes()
    size = struct.unpack('<Q', raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    for name, info in header.items():
        if name == '__metadata__':
            continue
        begin, end = info['data_offsets']
        data = raw[8 + size + begin:8 + size + end]
        if info['dtype'] == 'BF16':
            values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data, {'F32': np.float32, 'F16': np.float16}[info['dtype']]).astype(np.float32)
        yield name, values.reshape(info['shape'])


def interleave(w, heads):
    """GGUF's llama architecture rotates pairs (2i, 2i+1); the Hugging Face layout rotates (i, i + d/2)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', type=pathlib.Path)
    p.add_argument('out')
    p.add_argument('--type', default='f16', choices=['f32', 'f16', 'bf16', 'q8_0'])
    p.add_argument('--context', type=int, default=0)
    a = p.parse_args()
    c = json.loads((a.folder / 'config.json').read_text())
    heads, kv = c['num_attention_heads'], c['num_key_value_heads']
    w = gguf.GGUFWriter(a.out, 'llama')
    w.add_name(a.folder.name)
    w.add_context_length(a.context or c['max_position_embeddings'])
    w.add_embedding_length(c['hidden_size'])
    w.add_block_count(c['num_hidden_layers'])
    w.add_feed_forward_length(c['intermediate_size'])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(c.get('head_dim', c['hidden_size'] // heads))
    w.add_value_length(c.get('head_dim', c['hidden_size'] // heads))
    w.add_rope_dimension_count(c.get('head_dim', c['hidden_size'] // heads))
    w.add_rope_freq_base(c['rope_theta'])
    w.add_layer_norm_rms_eps(c['rms_norm_eps'])
    w.add_vocab_size(c['vocab_size'])
    kind = {'f32': gguf.GGMLQuantizationType.F32, 'f16': gguf.GGMLQuantizationType.F16,
            'bf16': gguf.GGMLQuantizationType.BF16, 'q8_0': gguf.GGMLQuantizationType.Q8_0}[a.type]
    sp = sentencepiece.SentencePieceProcessor(model_file=str(a.folder / 'tokenizer.model'))
    kinds = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(sp.vocab_size())]
    w.add_tokenizer_model('llama')
    w.add_token_list([sp.id_to_piece(i).encode() for i in range(sp.vocab_size())])
    w.add_token_scores([sp.get_score(i) for i in range(sp.vocab_size())])
    w.add_token_types(kinds)
    w.add_bos_token_id(c['bos_token_id'])
    w.add_eos_token_id(c['eos_token_id'])
    w.add_add_bos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c['num_hidden_layers'])
    for file in sorted(a.folder.glob('*.safetensors')):
        for name, x in read_safetensors(file):
            target = names.get_name(name, try_suffixes=('.weight', '.bias'))
            if name.endswith(('q_proj.weight', 'k_proj.weight')):
                x = interleave(x, heads if 'q_proj' in name else kv)
            if x.ndim == 1:
                w.add_tensor(target, x.astype(np.float32))
            else:
                w.add_tensor(target, gguf.quants.quantize(x, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()
