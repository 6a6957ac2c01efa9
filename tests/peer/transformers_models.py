#!/usr/bin/env python3
"""Compares Croquis's logits with those of transformers, on small models with random weights of every architecture.

usage: transformers_models.py CROQUIS_LOGITS [--write-golden FILE] [--only NAME]
  CROQUIS_LOGITS  the program built from tests/tools/croquis_logits.cc
  --write-golden  writes croquis/model/testdata/model_golden.json instead of comparing: configurations, tensor shapes and
                  logits. Its weights come from `generated` below, which golden_models_test.cc repeats, so none are stored.
Also checks the bundled model, and stories260K (when ../shared is there) against a model written here in numpy.
Needs: pip install torch transformers safetensors
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
SIZE = dict(vocab_size=90, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=72, rms_norm_eps=1e-5, max_position_embeddings=256, tie_word_embeddings=False)


def cases():
    """name -> (configuration, changes to config.json that must not matter)."""
    def old(theta, scaling):  # the spelling before transformers 5
        return lambda c: (c.pop("rope_parameters"), c.update(rope_theta=theta, rope_scaling=scaling))
    yield "llama", LlamaConfig(**SIZE, head_dim=16), None
    yield "llama-mha-theta", LlamaConfig(**{**SIZE, "num_key_value_heads": 4}, head_dim=12,
                                         rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), None
    yield "llama3", LlamaConfig(**SIZE, head_dim=80, rope_parameters={**LLAMA3, "rope_theta": 10000.0}), None
    yield "llama3-old-tied", (LlamaConfig(**{**SIZE, "tie_word_embeddings": True}, head_dim=16,
                                          rope_parameters={**LLAMA3, "rope_theta": 10000.0})), old(10000.0, LLAMA3)
    yield "llama-linear", LlamaConfig(**SIZE, head_dim=16, rope_parameters={"rope_type": "linear", "factor": 4.0,
                                                                            "rope_theta": 10000.0}), None
    yield "llama-biases", LlamaConfig(**SIZE, head_dim=16, attention_bias=True, mlp_bias=True), None
    yield "mistral-window", MistralConfig(**SIZE, head_dim=96, sliding_window=8), None
    yield "mistral-full", MistralConfig(**SIZE, head_dim=16, sliding_window=None), None
    yield "qwen2", Qwen2Config(**SIZE), None
    yield "qwen2.5-tied", Qwen2Config(**{**SIZE, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}), None
    yield "qwen2-window", Qwen2Config(**SIZE, use_sliding_window=True, sliding_window=8, max_window_layers=1), None
    yield "qwen3", Qwen3Config(**SIZE, head_dim=32), None
    yield "qwen3-tied", Qwen3Config(**{**SIZE, "tie_word_embeddings": True}, head_dim=80), None


def generated(name, shape):
    """The golden weights: splitmix64 of (FNV-1a of the name) + index, as a float in [-.5, .5), scaled."""
    h = np.uint64(1469598103934665603)
    with np.errstate(over="ignore"):
        for c in name.encode():
            h = (h ^ np.uint64(c)) * np.uint64(1099511628211)
        z = h + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0 ** -24) - np.float32(0.5)
    if "norm" in name:
        w = np.float32(1) + u * np.float32(0.5)
    elif name.endswith(".bias"):
        w = u
    else:  # a standard deviation near 1.2 / sqrt(inputs): activations neither grow nor vanish
        w = u * np.float32(4.0 / np.sqrt(float(shape[1])))
    return w.reshape(shape)


def rows(name, ids, config, weights=None, dtype=torch.float32):
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if weights:
                p.copy_(torch.from_numpy(generated(key, p.shape)))
            elif "norm" in key or key.endswith("bias"):  # from_config leaves ones and zeros, which would hide mistakes
                p.add_(torch.randn_like(p) * 0.3)
            else:
                p.copy_(torch.randn_like(p) * (1.2 / p.shape[1] ** 0.5))
    model = model.to(dtype)
    model.tie_weights()
    with torch.no_grad():
        return model, model(torch.tensor([ids])).logits[0].float().numpy()


def ours(tool, folder, ids, *options):
    with tempfile.NamedTemporaryFile() as out:
        r = subprocess.run([tool, folder, "--out", out.name, *options, *map(str, ids)], capture_output=True, text=True)
        if r.returncode:
            sys.exit(f"{folder}: {r.stderr}")
        return np.fromfile(out.name, np.float32).reshape(len(ids), -1), json.loads(r.stdout)


def compare(failures, label, got, want, tolerance):
    error = float(np.abs(got - want).max() / np.abs(want).max())
    good = got.shape == want.shape and error <= tolerance
    print(f"{'ok  ' if good else 'FAIL'} {label:48} relative error {error:.2e} (at most {tolerance:g})")
    if not good:
        failures.append(label)


def ids_of(name, vocab, n=41):
    rng = np.random.default_rng(sum(name.encode()))
    return rng.integers(0, vocab, n).tolist()


def check(tool, only):
    failures = []
    for name, config, change in cases():
        if only and only != name:
            continue
        ids = ids_of(name, config.vocab_size)
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 2e-2)):
            model, want = rows(name, ids, config, dtype=dtype)
            if dtype == torch.bfloat16:  # the oracle is what the rounded weights mean, not torch's roundings on the way
                with torch.no_grad():
                    want = model.float()(torch.tensor([ids])).logits[0].numpy()
                model = model.to(dtype)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder, max_shard_size="40KB" if dtype == torch.float32 else "1GB")
                if change:
                    path = os.path.join(folder, "config.json")
                    with open(path) as f:
                        c = json.load(f)
                    change(c)
                    with open(path, "w") as f:
                        json.dump(c, f)
                short = "f32" if dtype == torch.float32 else "bf16"
                for extra in (["--chunk", "256"], ["--chunk", "7", "--decode", "9", "--threads", "2"]):
                    got, what = ours(tool, folder, ids, "--dtype", short, *extra)
                    compare(failures, f"{name} {what['compute']} {' '.join(extra[:2])}", got, want, tolerance)
    return failures


def write_golden(path):
    entries = []
    for name, config, change in cases():
        ids = ids_of(name, config.vocab_size)
        model, want = rows(name, ids, config, weights=True)
        c = json.loads(config.to_json_string(use_diff=False))
        c["architectures"] = [type(model).__name__]
        if change:
            change(c)
        c = {k: v for k, v in c.items() if v is None or not isinstance(v, (list, dict)) or k in
             ("architectures", "rope_parameters", "rope_scaling", "layer_types")}
        shapes = {k: list(p.shape) for k, p in model.named_parameters()}
        entries.append({"name": name, "config": c, "tensors": shapes, "ids": ids, "rows": [0, 20, 40],
                        "logits": [[float(f"{x:.7g}") for x in want[r]] for r in (0, 20, 40)]})
    with open(path, "w") as f:
        f.write(f'{{"source": "transformers {transformers.__version__}, tests/peer/transformers_models.py", "models": [\n')
        f.write(",\n".join(json.dumps(e, separators=(",", ":")) for e in entries))
        f.write("\n]}\n")


def check_bundled(tool):
    failures = []
    folder = os.path.join(ROOT, "models", "croquis-4m")
    ids = [1] + ids_of("bundled", 4093, 399)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].numpy()
    for dtype, kv, tolerance in (("f32", "f32", 1e-3), ("bf16", "f32", 2e-2), ("bf16", "f16", 2e-2)):
        got, what = ours(tool, folder, ids, "--dtype", dtype, "--kv", kv, "--decode", "30")
        compare(failures, f"bundled model {what['compute']} kv {kv}", got, want, tolerance)
        loss = [float(torch.nn.functional.cross_entropy(torch.from_numpy(x[:-1]), torch.tensor(ids[1:]))) for x in (want, got)]
        print(f"     loss on random ids: transformers {loss[0]:.5f}, croquis {loss[1]:.5f}")
    return failures


def llama2c_greedy(path, steps):
    """llama2.c's run.c in numpy, one token at a time, from the format's own description."""
    with open(path, "rb") as f:
        dim, hidden, layers, heads, kv_heads, vocab, seq = np.fromfile(f, np.int32, 7).tolist()
        assert vocab > 0
        take = lambda *shape: np.fromfile(f, np.float32, int(np.prod(shape))).reshape(shape)  # noqa: E731
        size = dim // heads
        emb = take(vocab, dim)
        rms_att, wq = take(layers, dim), take(layers, dim, dim)
        wk, wv = take(layers, kv_heads * size, dim), take(layers, kv_heads * size, dim)
        wo, rms_ffn = take(layers, dim, dim), take(layers, dim)
        w1, w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
        rms_final = take(dim)
    norm = lambda x, w: x / np.sqrt((x * x).mean() + 1e-5) * w  # noqa: E731
    turn = 1.0 / 10000 ** (np.arange(0, size, 2) / size)
    k_cache, v_cache = np.zeros((layers, seq, kv_heads, size)), np.zeros((layers, seq, kv_heads, size))

    def rope(x, pos):
        z = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * pos * turn)
        return np.stack([z.real, z.imag], -1).reshape(x.shape)
    ids = [1]
    for pos in range(steps):
        x = emb[ids[-1]].astype(np.float64)
        for l in range(layers):
            h = norm(x, rms_att[l])
            q = rope((wq[l] @ h).reshape(heads, size), pos)
            k_cache[l, pos] = rope((wk[l] @ h).reshape(kv_heads, size), pos)
            v_cache[l, pos] = (wv[l] @ h).reshape(kv_heads, size)
            out = np.empty((heads, size))
            for i in range(heads):
                g = i * kv_heads // heads
                s = k_cache[l, :pos + 1, g] @ q[i] / np.sqrt(size)
                p = np.exp(s - s.max())
                out[i] = p / p.sum() @ v_cache[l, :pos + 1, g]
            x = x + wo[l] @ out.ravel()
            h = norm(x, rms_ffn[l])
            g = w1[l] @ h
            x = x + w2[l] @ (g / (1 + np.exp(-g)) * (w3[l] @ h))
        ids.append(int((emb @ norm(x, rms_final)).argmax()))
    return ids[1:]


def check_stories(tool):
    path = os.path.join(ROOT, "..", "shared", "models", "stories260K", "stories260K.bin")
    if not os.path.exists(path):
        print("skip stories260K: not there")
        return []
    want = llama2c_greedy(path, 200)
    _, what = ours(tool, path, [1], "--generate", "200", "--kv", "f16")
    good = what["generated"] == want
    print(f"{'ok  ' if good else 'FAIL'} stories260K: 200 greedy tokens equal numpy's")
    return [] if good else ["stories260K"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("--write-golden")
    parser.add_argument("--only")
    args = parser.parse_args()
    if args.write_golden:
        return write_golden(args.write_golden)
    failures = check(args.tool, args.only)
    if not args.only:
        failures += check_bundled(args.tool) + check_stories(args.tool)
    if failures:
        sys.exit(f"{len(failures)} failed: {failures}")
    print("all equal")


if __name__ == "__main__":
    main()
