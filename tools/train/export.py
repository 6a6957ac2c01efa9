#!/usr/bin/env python3
"""Writes a checkpoint as a Hugging Face folder: safetensors in shards, config.json, the tokenizer.

Tensors are bf16. Joined matrices (q, k, v; gate, up) are taken apart. Architecture: Llama, or Qwen2 where q, k and v
have biases.

example: python tools/train/export.py /data/run/final.pt --tokenizer models/croquis-4m/tokenizer.model --out
models/croquis-7m
"""
import argparse
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file

from model import ModelConfig


def named_tensors(state: dict[str, torch.Tensor], c: ModelConfig) -> dict[str, torch.Tensor]:
    """The weights under their Hugging Face names, f32."""
    out = {'model.embed_tokens.weight': state['embed'], 'model.norm.weight': state['norm']}
    rows = [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
    for i in range(c.layers):
        mine, theirs = f'blocks.{i}.', f'model.layers.{i}.'
        out[theirs + 'input_layernorm.weight'] = state[mine + 'norm1']
        out[theirs + 'post_attention_layernorm.weight'] = state[mine + 'norm2']
        for name, part in zip('qkv', state[mine + 'qkv'].split(rows)):
            out[theirs + f'self_attn.{name}_proj.weight'] = part
        if c.qkv_bias:
            for name, part in zip('qkv', state[mine + 'qkv_bias'].split(rows)):
                out[theirs + f'self_attn.{name}_proj.bias'] = part
        out[theirs + 'self_attn.o_proj.weight'] = state[mine + 'out']
        for name, part in zip(('gate', 'up'), state[mine + 'gate_up'].split([c.ff, c.ff])):
            out[theirs + f'mlp.{name}_proj.weight'] = part
        out[theirs + 'mlp.down_proj.weight'] = state[mine + 'down']
    return out


def hf_config(c: ModelConfig, positions: int) -> dict:
    kind = ('Qwen2', 'qwen2') if c.qkv_bias else ('Llama', 'llama')
    return {
        'architectures': [kind[0] + 'ForCausalLM'],
        'model_type': kind[1],
        'hidden_size': c.width,
        'num_hidden_layers': c.layers,
        'num_attention_heads': c.heads,
        'num_key_value_heads': c.kv_heads,
        'head_dim': c.head_dim,
        'intermediate_size': c.ff,
        'vocab_size': c.vocab,
        'rms_norm_eps': c.eps,
        'rope_theta': c.theta,
        'max_position_embeddings': positions,
        'tie_word_embeddings': True,
        'hidden_act': 'silu',
        'bos_token_id': 1,
        'eos_token_id': 2,
        'torch_dtype': 'bfloat16'
    }


def shards(tensors: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """Tensors in order, in groups of at most `limit` bytes. ValueError: a single tensor is larger."""
    groups: list[dict[str, torch.Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > limit:
            raise ValueError(f'{name} takes {size} bytes; a shard may take {limit}: raise --shard-mib')
        if size > room:
            groups.append({})
            room = limit
        groups[-1][name] = tensor
        room -= size
    return groups


def write(tensors: dict[str, torch.Tensor], out: pathlib.Path, limit: int) -> int:
    """model.safetensors, or numbered shards with their index. Returns the number of files."""
    reserve = 128 * (len(tensors) + 2)  # the file's own table of tensors
    groups = shards(tensors, limit - reserve)
    for old in [*out.glob('model*.safetensors'), *out.glob('model.safetensors.index.json')]:
        old.unlink()
    names = ['model.safetensors'] if len(groups) == 1 else [
        f'model-{i + 1:05}-of-{len(groups):05}.safetensors' for i in range(len(groups))
    ]
    for name, group in zip(names, groups):
        save_file({k: v.contiguous() for k, v in group.items()}, out / name, {'format': 'pt'})
        (out / name).chmod(0o644)  # safetensors makes it readable by its owner alone
    if len(groups) > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {'metadata': {'total_size': total}, 'weight_map': {k: n for n, g in zip(names, groups) for k in g}}
        (out / 'model.safetensors.index.json').write_text(json.dumps(index, indent=1) + '\n')
    return len(groups)


def export(checkpoint: dict, tokenizer: pathlib.Path, out: pathlib.Path, limit: int,
           dtype: torch.dtype = torch.bfloat16) -> int:
    """Writes the folder; returns the number of safetensors files."""
    c = ModelConfig(**checkpoint['plan']['model'])
    out.mkdir(parents=True, exist_ok=True)
    files = write({k: v.to(dtype).cpu() for k, v in named_tensors(checkpoint['model'], c).items()}, out, limit)
    positions = max(p['length'] for p in checkpoint['plan']['phases'])
    (out / 'config.json').write_text(json.dumps(hf_config(c, positions), indent=1) + '\n')
    if tokenizer.resolve() != (out / 'tokenizer.model').resolve():
        shutil.copyfile(tokenizer, out / 'tokenizer.model')
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=pathlib.Path, help='checkpoint.pt or final.pt of train.py')
    parser.add_argument('--tokenizer', type=pathlib.Path, required=True,
                        help='SentencePiece model, copied into the folder')
    parser.add_argument('--out', type=pathlib.Path, required=True, help='the folder')
    parser.add_argument('--shard-mib', type=float, default=16,
                        help='largest size of a safetensors file in MiB (default: 16)')
    args = parser.parse_args()
    try:
        checkpoint = torch.load(args.checkpoint, map_location='cpu', weights_only=True)
        files = export(checkpoint, args.tokenizer, args.out, int(args.shard_mib * 2**20))
    except (OSError, ValueError, KeyError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    print(f'{args.out}: step {checkpoint["step"]}, {checkpoint["tokens"]} tokens seen, {files} safetensors file(s)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
