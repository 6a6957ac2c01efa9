#!/usr/bin/env python3
"""Compares Croquis's logits of GGUF files, written here with the `gguf` package, with those of the same numbers as
safetensors, in every weight type that is read.

usage: gguf_models.py CROQUIS_LOGITS
  CROQUIS_LOGITS  the program built from tests/tools/croquis_logits.cc
For each type the file's tensors are dequantised by the package and stored as F32 safetensors beside it: the two folders
hold the same numbers, so their logits must agree to rounding (1e-5 relative; the rows of q and k are permuted in the GGUF
file of a llama, as llama.cpp's converter does). The package cannot write Q4_K and Q6_K; their blocks are made of random
bytes with sane scales.
Needs: pip install gguf numpy safetensors
"""
import json
import os
import subprocess
import sys
import tempfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
HIDDEN, LAYERS, HEADS, KV, HEAD, WIDE, VOCAB = 256, 2, 4, 2, 64, 512, 128


def hf_name(name):
    base, kind = name.rsplit(".", 1)
    if base in GLOBAL:
        return f"{GLOBAL[base]}.{kind}"
    _, layer, part = base.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def tensors(arch, tied, rng):
    """GGUF names and f32 values, rows of q and k in Hugging Face's order."""
    def matrix(out, inputs):
        return (rng.standard_normal((out, inputs)) * 1.2 / inputs ** 0.5).astype(np.float32)

    def norm(n):
        return (1 + 0.3 * rng.standard_normal(n)).astype(np.float32)
    yield "token_embd.weight", matrix(VOCAB, HIDDEN)
    yield "output_norm.weight", norm(HIDDEN)
    if not tied:
        yield "output.weight", matrix(VOCAB, HIDDEN)
    for i in range(LAYERS):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", norm(HIDDEN)
        yield b + "ffn_norm.weight", norm(HIDDEN)
        for part, out in (("q", HEADS * HEAD), ("k", KV * HEAD), ("v", KV * HEAD)):
            yield f"{b}attn_{part}.weight", matrix(out, HIDDEN)
            if arch == "qwen2":
                yield f"{b}attn_{part}.bias", (0.5 * rng.standard_normal(out)).astype(np.float32)
        if arch == "qwen3":
            yield b + "attn_q_norm.weight", norm(HEAD)
            yield b + "attn_k_norm.weight", norm(HEAD)
        yield b + "attn_output.weight", matrix(HIDDEN, HEADS * HEAD)
        yield b + "ffn_gate.weight", matrix(WIDE, HIDDEN)
        yield b + "ffn_up.weight", matrix(WIDE, HIDDEN)
        yield b + "ffn_down.weight", matrix(HIDDEN, WIDE)


def permute(x, undo=False):
    """llama.cpp's converter on the rows of q and k: halves of each head become neighbours."""
    shape = (-1, HEAD // 2, 2, *x.shape[1:]) if undo else (-1, 2, HEAD // 2, *x.shape[1:])
    return np.ascontiguousarray(x.reshape(shape).swapaxes(1, 2).reshape(x.shape))


def random_blocks(kind, x, rng):
    """Bytes of Q4_K or Q6_K for a matrix of x's shape, with scales that give numbers of x's size."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    n = x.size // block
    raw = rng.integers(0, 256, (n, size), dtype=np.uint8)
    d = np.full((n, 1), x.std() / (32 * 8 if kind == T.Q4_K else 64 * 18), np.float16)
    if kind == T.Q4_K:  # f16 d, f16 dmin, scales, codes
        raw[:, 0:2] = d.view(np.uint8)
        raw[:, 2:4] = (d * np.float16(8)).view(np.uint8)
    else:  # codes, scales, f16 d at the end
        raw[:, -2:] = d.view(np.uint8)
    return raw.reshape(*x.shape[:-1], -1)


def write(folder, arch, kind, tied, rng, factors=None):
    writer = gguf.GGUFWriter(os.path.join(folder, "m.gguf"), arch)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    plain = {}
    for name, x in tensors(arch, tied, rng):
        swap = arch == "llama" and (".attn_q." in name or ".attn_k." in name)
        if x.ndim == 1:
            writer.add_tensor(name, permute(x) if swap else x)
            plain[hf_name(name)] = x
            continue
        stored = permute(x) if swap else x
        if kind in (T.Q4_K, T.Q6_K):
            raw = random_blocks(kind, stored, rng)
        else:
            raw = gguf.quants.quantize(stored, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        back = gguf.quants.dequantize(raw, kind).reshape(x.shape).astype(np.float32)
        plain[hf_name(name)] = permute(back, undo=True) if swap else back
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(plain, os.path.join(folder, "model.safetensors"))
    config = {"model_type": arch, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "num_key_value_heads": KV, "head_dim": HEAD, "intermediate_size": WIDE, "vocab_size": VOCAB,
              "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": tied}
    if factors is not None:
        config["rope_scaling"] = {"rope_type": "llama3", **LLAMA3}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def llama3_factors():
    """rope_freqs.weight as convert_hf_to_gguf.py computes it for Llama 3.1."""
    freq = 1.0 / 10000.0 ** (np.arange(0, HEAD, 2) / HEAD)
    old, low, high, factor = 32, 1.0, 4.0, 8.0
    out = []
    for f in freq:
        wave = 2 * np.pi / f
        if wave < old / high:
            out.append(1)
        elif wave > old / low:
            out.append(factor)
        else:
            smooth = (old / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def ours(tool, path, ids, *options):
    with tempfile.NamedTemporaryFile() as out:
        r = subprocess.run([tool, path, "--out", out.name, *options, *map(str, ids)], capture_output=True, text=True)
        if r.returncode:
            sys.exit(f"{path}: {r.stderr}")
        return np.fromfile(out.name, np.float32).reshape(len(ids), -1)


def main():
    tool, failures = sys.argv[1], []
    rng = np.random.default_rng(5)
    ids = rng.integers(0, VOCAB, 50).tolist()
    cases = [(arch, kind, arch != "llama", None) for arch in ("llama", "qwen2", "qwen3")
             for kind in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_K, T.Q6_K)]
    cases.append(("llama", T.F32, False, llama3_factors()))
    for arch, kind, tied, factors in cases:
        with tempfile.TemporaryDirectory() as folder:
            write(folder, arch, kind, tied, rng, factors)
            path = os.path.join(folder, "m.gguf")
            got, want = ours(tool, path, ids, "--dtype", "f32"), ours(tool, folder, ids, "--dtype", "f32")
            rounded = ours(tool, path, ids)
        error, rough = (float(np.abs(x - want).max() / np.abs(want).max()) for x in (got, rounded))
        good = error <= 1e-5 and rough <= 4e-2 and np.isfinite(want).all() and want.std() > 0.1
        label = f"{arch} {kind.name}{' llama3 scaling' if factors is not None else ''}"
        print(f"{'ok  ' if good else 'FAIL'} {label:28} f32 {error:.2e} (at most 1e-5), auto {rough:.2e} (at most 4e-2)")
        if not good:
            failures.append(label)
    if failures:
        sys.exit(f"failed: {failures}")
    print("all equal")


if __name__ == "__main__":
    main()
