#!/usr/bin/env python3
"""Compares Croquis's tokenizers with transformers, tokenizers and sentencepiece: ids, decoded text, streamed text.

usage: transformers_tokenizers.py CROQUIS_TOKENIZE [--data FOLDER] [--model FOLDER] [--write-golden FOLDER]
  CROQUIS_TOKENIZE  the program built from tests/tools/croquis_tokenize.cc
  --data            folder with tokenizers/gpt2 and tokenizers/qwen2.5 (vocab.json, merges.txt); skipped when absent
  --model           folder with a SentencePiece tokenizer.model (default: the bundled model)
  --write-golden    writes the golden files of croquis/model/testdata instead of comparing
Needs: pip install transformers tokenizers sentencepiece protobuf
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = [
    "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "Hello, world!", " Hello", "  two spaces", "trailing  ",
    "It's we'll they're I'VE don't CAN'T O'Brien 'S 'tis y'all'd've", "'s 's 'S 'LL 'll\u017f '\u017f K\u212a",
    "1 12 123 1234 12345 3.14159 1,000,000 \u00bd \u00b2 \u0663\u0664\u0665 \u4e00\u4e8c \u2167",
    "def f(x):\n    if x > 0:\n\t\treturn x**2  # comment\n\n\n    return {'a': [1, 2], \"b\": None}\n",
    "#include <vector>\r\nint main() {\r\n  std::vector<int> v{1,2,3};\r\n  return v[0]==1 && v.size()!=0;\r\n}\r\n",
    "caf\u00e9 cafe\u0301 na\u00efve \u1e9b\u0323 \u212b A\u030a \u00c5 \u01c6 \ufb01 \u1100\u1161\u11a8 \uac01",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002 \u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8\u3067\u3059\u3002 \ud55c\uad6d\uc5b4 \uc2dc\ud5d8",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f \u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a \u0e01\u0e33\u0e25\u0e31\u0e07\u0e17\u0e14\u0e2a\u0e2d\u0e1a", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439, \u043c\u0438\u0440! \u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a\u032f\u031e\u0320\u034da\u036b\u0357\u0334\u0362\u0335\u031c\u0330\u0354l\u0368\u0367\u0369\u0358\u0320g\u0351o\u0357",
    "a" + " " * 50 + "b" + "\n" * 20 + "c" + "\t" * 7 + "d" + " \n" * 9 + "e" + "\r\n" * 5 + " f",
    "\u00a0nbsp\u00a0\u2003em\u2003\u3000ideographic\u3000\u200bzero\u200b\u180emongolian\u180e\u0085nel\u2028ls\u2029ps\ufeffbom",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 5, "!?" * 40 + "...", "_under_score__ __init__ snake_case camelCase HTTPServer",
    "x\u2581y \u2581z", "<0x41> <0xE4> <unk>", "<s>hi</s> <|endoftext|> there<|endoftext|>\n<|im_start|>user\nHi<|im_end|>",
    "<tool_call>{}</tool_call> keep <x> <xy>z <word> aword <word>", "\u0000\u0001\u007f control \u001b[0m", "\ufffd\ufffe \U0010ffff \ue000",
    "https://example.com/a?b=c&d=%20#frag user@mail.org /usr/lib/x86_64-linux-gnu C:\\Windows\\System32",
    "$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$ \u2200x\u2208\u211d: x\u00b2\u22650 \u221e \u2260 \u2264",
    "The quick brown fox jumps over the lazy dog. " * 8, "\u2019s \u2018t don\u2019t \u201cquoted\u201d \u2014 dash\u2013dash \u2026",
]
CORPUS = [t for t in TEXTS if "<" not in t] * 2 + [
    "the of and to in a is that it was for on are as with his they at be this from I have or by one had not but what all",
    "Once upon a time there was a little girl who lived in a house near the forest with her mother and her father.",
    "for i in range(10):\n    print(i)\nwhile True:\n    break\n\nclass A:\n    def __init__(self):\n        self.x = 1\n",
    "\u6211\u4eec\u5728\u8fd9\u91cc\u5b66\u4e60\u4e2d\u6587\uff0c\u4f60\u4eec\u597d\u5417\uff1f\u6211\u4eec\u5f88\u597d\u3002\u8c22\u8c22\u4f60\u4eec\u3002", "1234567890 2024-01-01 12:34:56 99.9% 1e-5 0xFF",
] * 3


def random_texts(count, seed):
    """Strings of characters that tokenizers treat in different ways."""
    rng = random.Random(seed)
    parts = [" ", "  ", "   ", "\n", "\r\n", "\t", "'", "'s", "'LL", "a", "the", "The", "Z", "\u00e9", "e\u0301", "\u4f60", "\u597d",
             "\U0001f642", "\u200d", "\ufe0f", "1", "22", "333", "\u0664", "\u00bd", ".", ",", "!", "_", "-", "/", "\\", "\u3002",
             "\u2581", "\u00a0", "\u3000", "\u0e01", "\u0e33", "\u0301", "\u0645", "<s>", "</s>", "<|endoftext|>", "<word>", "<x>",
             "\u017f", "\u01c5", "\u02b0", "\u2163", "\u203f", "$", "+", "\u0000", "\u180e", "\u0085", "<tool_call>", "\u212b"]
    return ["".join(rng.choice(parts) for _ in range(rng.randrange(1, 30))) for _ in range(count)]


def golden_texts():
    return TEXTS + random_texts(20, 7)


class Croquis:
    def __init__(self, program, tokenizer):
        self.program, self.tokenizer = program, tokenizer

    def run(self, texts, *options):
        data = b"".join(t.encode("utf-8", "surrogatepass") + b"\0" for t in texts)
        done = subprocess.run([self.program, self.tokenizer, "--nul", *options], input=data, capture_output=True)
        if done.returncode != 0:
            raise SystemExit(f"{self.tokenizer}: {done.stderr.decode()}")
        return [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]


class Score:
    failures = 0
    checks = 0

    def equal(self, what, text, got, wanted):
        self.checks += 1
        if got != wanted:
            self.failures += 1
            if self.failures <= 20:
                print(f"DIFFERS {what}\n  input  {text!r}\n  got    {got!r}\n  wanted {wanted!r}", file=sys.stderr)


def compare(score, name, program, folder, encode, decode, vocab_size, texts, prefix=(), weight=None):
    """encode(text, parse_special) -> ids without BOS; decode(ids) -> text, special tokens skipped.
    weight(id): given, cuts of the same text and the same total weight are equal (unigram models have ties)."""
    croquis = Croquis(program, folder)
    texts = [t for t in texts if "\0" not in t]  # NUL separates texts here; the unit tests cover it
    id_lists = []
    for parse in (False, True):
        got = croquis.run(texts, "--no-special", *(["--parse-special"] if parse else []))
        for text, ids in zip(texts, got, strict=True):
            wanted = encode(text, parse)
            if weight and ids != wanted and abs(sum(map(weight, ids)) - sum(map(weight, wanted))) < 1e-3:
                ids, wanted = decode(ids), decode(wanted)
            score.equal(f"{name} ids parse_special={parse}", text, ids, wanted)
        id_lists += got
    with_bos = croquis.run(texts[:5])
    for text, ids in zip(texts, with_bos):
        score.equal(f"{name} with special", text, ids, list(prefix) + encode(text, False))
    rng = random.Random(3)
    for _ in range(200):  # sequences that no text gives: broken characters, special tokens between them
        id_lists.append([rng.randrange(vocab_size) for _ in range(rng.randrange(1, 12))])
        id_lists.append([rng.randrange(min(300, vocab_size)) for _ in range(rng.randrange(1, 12))])
    for ids in list(id_lists[:60]):
        if len(ids) > 1:
            id_lists += [ids[:-1], ids[1:]]
    for ids, (whole, streamed) in zip(id_lists, croquis.run([json.dumps(i) for i in id_lists], "--decode"), strict=True):
        wanted = decode(ids)
        score.equal(f"{name} decode", ids, whole, wanted)
        score.equal(f"{name} stream", ids, streamed, wanted)
    print(f"{name}: {len(texts)} texts, {len(id_lists)} sequences", flush=True)


def trained(kind, vocab=700):
    """Small tokenizers made by the `tokenizers` library itself."""
    special = ["<unk>", "<s>", "</s>"]
    if kind.startswith("metaspace") or kind.startswith("llama2"):
        tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if kind.startswith("llama2"):
            tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        else:
            scheme = kind.split("-")[1]
            tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=not kind.endswith("nosplit"))
        bytes_ = [f"<0x{b:02X}>" for b in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=special + bytes_, show_progress=False)
        tok.train_from_iterator(CORPUS, trainer)
        if kind.startswith("llama2"):
            tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                             decoders.Strip(" ", 1, 0)])
        else:
            tok.decoder = decoders.Metaspace(prepend_scheme=kind.split("-")[1])
        # The trainer made special tokens of the bytes; they are plain tokens in real files.
        data = json.loads(tok.to_str())
        data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in special]
        tok = Tokenizer.from_str(json.dumps(data))
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        tok.add_tokens([AddedToken("<word>", single_word=True, normalized=True), AddedToken("<x>", lstrip=True, normalized=False),
                        AddedToken("<tool_call>", rstrip=True, normalized=False)])
        return tok
    tok = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    patterns = {"llama3": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN}
    if kind in patterns:
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(patterns[kind]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif kind == "digits":
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif kind == "words":
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif kind == "behaviors":
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split("a", "merged_with_previous"), pre_tokenizers.Split(Regex(r"\s"), "merged_with_next"),
            pre_tokenizers.Split(Regex(r"\d"), "contiguous"), pre_tokenizers.Split(Regex(r"[^-]+"), "removed", invert=True),
            pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)])
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix")
    if kind == "qwen2":
        tok.normalizer = normalizers.NFC()
    elif kind == "words":
        tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex("[0-9]+"), "#")])
    elif kind == "behaviors":
        tok.normalizer = normalizers.NFD()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<|endoftext|>", "<s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(CORPUS, trainer)
    tok.decoder = decoders.ByteLevel()
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tok.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>", lstrip=True, rstrip=True)])
    tok.add_tokens([AddedToken("<word>", single_word=True), AddedToken("<x>", lstrip=True, normalized=False),
                    AddedToken("<xy>", normalized=False), AddedToken("<tool_call>", rstrip=True, normalized=True)])
    return tok


KINDS = ["gpt2", "prefix", "llama3", "qwen2", "tekken", "digits", "words", "behaviors", "llama2", "metaspace-always",
         "metaspace-first", "metaspace-never", "metaspace-first-nosplit"]


def library(tok):
    def encode(text, parse):
        tok.encode_special_tokens = not parse
        return tok.encode(text, add_special_tokens=False).ids
    return encode, lambda ids: tok.decode(ids, skip_special_tokens=True)


def sentencepiece_reference(model):
    """ids as SentencePiece gives them; special tokens cut by hand, later parts without the dummy prefix."""
    sp = sentencepiece.SentencePieceProcessor(model_file=model)
    pieces = {sp.id_to_piece(i): i for i in range(sp.get_piece_size()) if sp.is_control(i) or sp.is_unknown(i)}
    raw = open(model, "rb").read()
    rest = sentencepiece.SentencePieceProcessor(model_proto=raw + b"\x1a\x02\x18\x00")

    def encode(text, parse):
        if not parse:
            return sp.encode(text)
        out, at, done = [], 0, 0
        while at < len(text):
            hit = max((p for p in pieces if text.startswith(p, at)), key=len, default=None)
            if hit is None:
                at += 1
                continue
            out += (sp if done == 0 else rest).encode(text[done:at]) + [pieces[hit]]
            at += len(hit)
            done = at
        return out + (sp if done == 0 else rest).encode(text[done:])

    specials = set(pieces.values())
    return encode, lambda ids: sp.decode([i for i in ids if i not in specials]), sp.get_piece_size()


def transformers_folder(name, source, extra=None):
    """A folder with vocab.json, merges.txt and a tokenizer_config.json, and the library's tokenizer for it."""
    import transformers
    folder = tempfile.mkdtemp()
    for file in ("vocab.json", "merges.txt"):
        os.symlink(os.path.join(source, file), os.path.join(folder, file))
    config = {"tokenizer_class": name, "clean_up_tokenization_spaces": False}
    if extra:
        config["added_tokens_decoder"] = extra
        config["eos_token"] = "<|im_end|>"
    json.dump(config, open(os.path.join(folder, "tokenizer_config.json"), "w"))
    tok = getattr(transformers, name).from_pretrained(folder)
    return folder, tok


def run(args):
    score = Score()
    texts = TEXTS + random_texts(300, 1)
    model = os.path.join(args.model, "tokenizer.model")
    encode, decode, size = sentencepiece_reference(model)
    compare(score, "SentencePiece", args.program, args.model, encode, decode, size, texts, prefix=[1])
    for rule in ("identity", "nmt_nfkc"):  # unigram, with a normalisation table and without
        folder = tempfile.mkdtemp()
        corpus = os.path.join(folder, "corpus.txt")
        open(corpus, "w").write("\n".join(c.replace("\0", "") for c in CORPUS * 3))
        sentencepiece.SentencePieceTrainer.train(
            input=corpus, model_prefix=os.path.join(folder, "tokenizer"), vocab_size=900, model_type="unigram", hard_vocab_limit=False,
            byte_fallback=True, normalization_rule_name=rule, user_defined_symbols=["<tool_call>"], minloglevel=2)
        encode, decode, size = sentencepiece_reference(os.path.join(folder, "tokenizer.model"))
        sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
        compare(score, f"SentencePiece unigram {rule}", args.program, folder, encode, decode, size, texts, prefix=[1],
                weight=sp.get_score)
    for kind in KINDS:
        tok = trained(kind)
        folder = tempfile.mkdtemp()
        tok.save(os.path.join(folder, "tokenizer.json"))
        encode, decode = library(tok)
        compare(score, f"tokenizer.json {kind}", args.program, folder, encode, decode, tok.get_vocab_size(), texts,
                prefix=[1])
    if args.data and os.path.isdir(os.path.join(args.data, "tokenizers")):
        specials = {str(151643 + i): {"content": c, "special": True, "lstrip": False, "rstrip": False, "normalized": False,
                                      "single_word": False}
                    for i, c in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
        specials["151646"] = {**specials["151643"], "content": "<tool_call>", "special": False}
        for name, data, extra in (("GPT2Tokenizer", "gpt2", None), ("Qwen2Tokenizer", "qwen2.5", specials)):
            folder, tok = transformers_folder(name, os.path.join(args.data, "tokenizers", data), extra)
            encode = lambda t, parse: tok(t, add_special_tokens=False, split_special_tokens=not parse)["input_ids"]
            decode = lambda ids: tok.decode(ids, skip_special_tokens=True)
            compare(score, name, args.program, folder, encode, decode, len(tok), texts)
    print(f"{score.checks} checks, {score.failures} differences (transformers, tokenizers {tokenizers.__version__}, "
          f"sentencepiece {sentencepiece.__version__})")
    return 1 if score.failures else 0


def write_golden(args):
    folder = args.write_golden
    os.makedirs(folder, exist_ok=True)

    def rows(encode, decode):
        out = []
        for text in golden_texts():
            ids, special = encode(text, False), encode(text, True)
            row = {"text": text, "ids": ids}
            if special != ids:  # what is left out is equal
                row["ids_special"] = special
            if decode(ids) != text:
                row["decoded"] = decode(ids)
            out.append(row)
        return out
    encode, decode, _ = sentencepiece_reference(os.path.join(args.model, "tokenizer.model"))
    golden = {"sentencepiece": rows(encode, decode)}
    for kind in ("llama3", "llama2"):
        tok = trained(kind, 520 if kind == "llama3" else 600)
        tok.save(os.path.join(folder, f"{kind}.tokenizer.json"), pretty=False)
        golden[kind] = rows(*library(tok))
    with open(os.path.join(folder, "tokenizer_golden.json"), "w") as f:
        f.write("{\n" + ",\n".join(
            json.dumps(k) + ": [\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in v) + "\n]"
            for k, v in golden.items()) + "\n}\n")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program", nargs="?", default="")
    parser.add_argument("--data", default=os.path.join(ROOT, "..", "shared", "data"))
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "croquis-4m"))
    parser.add_argument("--write-golden")
    options = parser.parse_args()
    sys.exit(write_golden(options) if options.write_golden else run(options))
