#!/usr/bin/env python3
"""Measures a finished model (a Hugging Face folder of export.py, or of the same families) on unseen books.

Prints one JSON object: validation loss in windows of 512 and of --length tokens, in nats a token and a character; loss
by position (mean of each sixteenth of the window); needles of `croquis needle`'s form over lengths and depths.

example: python tools/train/evaluate.py models/croquis-7m --valid /data/valid --out docs/models/croquis-7m.json
"""
import argparse
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import load_file

from data import Books
from measure import evaluate, token_losses, windows
from model import ModelConfig, Transformer


def load_folder(folder: pathlib.Path) -> Transformer:
    """The model of a Hugging Face folder (Llama or Qwen2, tied embeddings). ValueError: another kind."""
    about = json.loads((folder / 'config.json').read_text())
    if about['model_type'] not in ('llama', 'qwen2') or not about.get('tie_word_embeddings'):
        raise ValueError(f'{folder}: wanted llama or qwen2 with tied embeddings, got {about["model_type"]}')
    heads = about['num_attention_heads']
    c = ModelConfig(about['hidden_size'], about['num_hidden_layers'], heads, about['num_key_value_heads'],
                    about.get('head_dim', about['hidden_size'] // heads), about['intermediate_size'],
                    about['vocab_size'], about['rope_theta'], about['model_type'] == 'qwen2', about['rms_norm_eps'])
    t = {}
    for path in sorted(folder.glob('*.safetensors')):
        t.update({k: v.float() for k, v in load_file(path).items()})
    state = {'embed': t['model.embed_tokens.weight'], 'norm': t['model.norm.weight']}
    for i in range(c.layers):
        p, q = f'model.layers.{i}.', f'blocks.{i}.'
        state[q + 'norm1'] = t[p + 'input_layernorm.weight']
        state[q + 'norm2'] = t[p + 'post_attention_layernorm.weight']
        state[q + 'qkv'] = torch.cat([t[f'{p}self_attn.{n}_proj.weight'] for n in 'qkv'])
        if c.qkv_bias:
            state[q + 'qkv_bias'] = torch.cat([t[f'{p}self_attn.{n}_proj.bias'] for n in 'qkv'])
        state[q + 'out'] = t[p + 'self_attn.o_proj.weight']
        state[q + 'gate_up'] = torch.cat([t[f'{p}mlp.{n}_proj.weight'] for n in ('gate', 'up')])
        state[q + 'down'] = t[p + 'mlp.down_proj.weight']
    model = Transformer(c)
    model.load_state_dict(state)
    return model


def by_position(nats: torch.Tensor, parts: int = 16) -> dict:
    """nats [N, T] -> mean of each part of the positions with its standard error over windows, and last quarter minus
    first.
    """
    means = nats.view(len(nats), parts, -1).mean(-1)
    quarter = parts // 4
    gain = means[:, :quarter].mean(-1) - means[:, -quarter:].mean(-1)
    return {
        'nats_token': [round(float(m), 4) for m in means.mean(0)],
        'first_quarter_minus_last': round(float(gain.mean()), 4),
        'standard_error': round(float(gain.std() / np.sqrt(len(gain))), 4)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=pathlib.Path, help='folder with config.json, *.safetensors, tokenizer.model')
    parser.add_argument('--valid', type=pathlib.Path, required=True, help='text of prepare.py, without its ending')
    parser.add_argument('--length', type=int, default=2048, help='longest window (default: 2048)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cpu or cuda')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (default: all)')
    parser.add_argument('--out', type=pathlib.Path, help='file for the result, beside printing it')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
        model = load_folder(args.model).to(device)
        books = Books(args.valid, args.model / 'tokenizer.model')
        lengths = tuple(n for n in (256, 512, 1024, 2048, 4096, 8192) if n <= args.length)
        result = {'model': args.model.name, 'parameters': model.config.parameters}
        result.update(evaluate(model, books, device, lengths))
        result[f'positions_{args.length}'] = by_position(
            token_losses(model, windows(books, args.length,
                                        len(books.ids) // args.length), device))
    except (OSError, ValueError, KeyError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    text = json.dumps(result, indent=1) + '\n'
    print(text, end='')
    if args.out:
        args.out.write_text(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
