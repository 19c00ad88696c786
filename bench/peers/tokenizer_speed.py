"""The peers of bench/tokenize, on one thread: MB/s as one JSON line, keyed as VOCABULARY/TEXT/LIBRARY.

    tokenizer_speed.py TOKENIZER_JSON TIKTOKEN_GZ FILE...
"""
import base64
import gzip
import json
import os
import sys
import time

os.environ["RAYON_NUM_THREADS"] = "1"
import tiktoken  # noqa: E402
import tiktoken_ext.openai_public as public  # noqa: E402
import tokenizers  # noqa: E402


def documents(path):
    """Cut as model_tokenizer_bench cuts: pieces of 16 KiB, on to the line's end."""
    text, at, out = open(path, "rb").read(), 0, []
    while at < len(text):
        end = text.find(b"\n", min(len(text), at + 16384)) + 1 or len(text)
        out.append(text[at:end].decode())
        at = end
    return out, len(text)


def speed(size, body):
    best = 0
    for _ in range(5):
        start = time.perf_counter()
        body()
        best = max(best, size / (time.perf_counter() - start) / 1e6)
    return best


hf = tokenizers.Tokenizer.from_file(sys.argv[1])
ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in gzip.open(sys.argv[2])}
public.load_tiktoken_bpe = lambda *a, **k: ranks
openai = tiktoken.Encoding(**public.cl100k_base())
results = {}
for path in sys.argv[3:]:
    texts, size = documents(path)
    name = os.path.basename(path)
    results[f"llama3/{name}"] = speed(size, lambda: hf.encode_batch_fast(texts))
    results[f"cl100k/{name}"] = speed(size, lambda: [openai.encode_ordinary(t) for t in texts])
print(json.dumps(results))
