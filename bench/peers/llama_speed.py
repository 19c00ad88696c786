"""llama.cpp's side of bench/decode and bench/prefill: the same work as engine_speed_bench, one JSON line.

    llama_speed.py prefill|decode|perplexity MODEL [--tokens N] [--rounds N] [--text FILE] [--chunks N] [--threads N]
"""
import argparse
import json
import math
import random
import time

import llama_cpp
import numpy as np

CHUNK = 512


class Model:
    def __init__(self, path, threads, context, logits_all=False):
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = context
        options.n_batch = options.n_ubatch = CHUNK
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def forget(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, tokens, position, all_logits=False):
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i == len(tokens) - 1
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_batch_free(batch)

    def logits(self, rows):
        pointer = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.size))

    def encode(self, text):
        data = text.encode()
        tokens = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), False, False)
        return list(tokens[:n])


def prompt(tokens, seed):
    return [random.Random(seed).randrange(100, 20000) for _ in range(tokens)]


def prefill(model, args):
    best = 0.0
    for round_ in range(args.rounds + 1):
        model.forget()
        tokens = prompt(args.tokens, round_)
        start = time.perf_counter()
        model.decode(tokens, 0)
        model.logits(1)
        if round_ > 0:
            best = max(best, args.tokens / (time.perf_counter() - start))
    return {"tokens_per_second": best}


def decode(model, args):
    best = 0.0
    for round_ in range(args.rounds):
        model.forget()
        model.decode(prompt(32, round_), 0)
        token = int(model.logits(1)[0].argmax())
        start = time.perf_counter()
        for i in range(args.tokens):
            model.decode([token], 32 + i)
            token = int(model.logits(1)[0].argmax())
        best = max(best, args.tokens / (time.perf_counter() - start))
    return {"tokens_per_second": best}


def perplexity(model, args):
    with open(args.text, encoding="utf-8", newline="") as file:
        tokens = model.encode(file.read())
    chunks = min(args.chunks, len(tokens) // CHUNK)
    total, count, mixed = 0.0, 0, 0
    for c in range(chunks):
        chunk = tokens[c * CHUNK:(c + 1) * CHUNK]
        model.forget()
        model.decode(chunk, 0, all_logits=True)
        logits = model.logits(CHUNK)[:-1]
        most = logits.max(axis=1)
        log_sum = np.log(np.exp((logits - most[:, None]).astype(np.float64)).sum(axis=1)) + most
        total += float((log_sum - logits[np.arange(CHUNK - 1), chunk[1:]]).sum())
        count += CHUNK - 1
        for token in chunk:
            mixed = (mixed * 31 + token) % 2**64
    return {"perplexity": math.exp(total / count), "tokens": count, "tokens_fingerprint": f"{mixed:016x}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["prefill", "decode", "perplexity"])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text")
    args = parser.parse_args()
    llama_cpp.llama_log_set(quiet, None)
    model = Model(args.model, args.threads, CHUNK if args.mode == "perplexity" else 2048)
    print(json.dumps({"prefill": prefill, "decode": decode, "perplexity": perplexity}[args.mode](model, args)))


@llama_cpp.llama_log_callback
def quiet(level, text, data):
    pass


if __name__ == "__main__":
    main()
