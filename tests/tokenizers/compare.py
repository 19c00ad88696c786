"""Token by token: our tokenizers beside the libraries that define them. Run by tests/tokenizers/run.

Texts are whole files (WikiText-2's test.txt alone, and a Japanese novel), their lines, and random strings of awkward characters
from a fresh seed each time; the seed is printed, and FLYWHEEL_SEED repeats it.
"""
import gzip, json, pathlib, subprocess, sys, tempfile, time

from beside import data, difference, flywheel, mixture, ours, read_text, rng, seed

cache = pathlib.Path(sys.argv[2])
failures = checks = 0
start = time.monotonic()


def say(text):
    print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)


def corpus_files(folder):
    """What small models are trained on here: English and Japanese, a minute's worth for the slowest trainer."""
    files = []
    for name in ("tinyshakespeare.txt", "wagahaiwa_nekodearu.txt"):
        files.append(folder / name)
        files[-1].write_bytes(read_text(data / "text" / name)[:150_000].encode())
    return files


def check(name, text, got, wanted):
    global failures, checks
    checks += 1
    if got == wanted:
        return
    failures += 1
    if failures <= 20:
        print(f"FAILED {name}: {text[:200]!r}\n  {difference(got, wanted)}")


def random_text():
    kinds = ["abc XYZ", "'s 'T 'RE 've'll", "  \t\n\r\n", "0123456789½٣Ⅷ", "héüñ ÅÄÖ ſ İ ß", "日本語かなカナ漢字が", "한국어 조합",
             "🙂👩‍👩‍👧🇯🇵", "।नमस्ते", "\u0301\u0300e\u0301", "\u00a0\u2003\u3000\u200b", "!?.,;:()[]{}<>/\\|`~@#$%^&*-_=+",
             "ﬁ①Ⅳ㍿ｱ", "ΑΒγδς", "привет МИР", "<|im_start|>", "<s>", "</s>", "[MASK]", "▁", "\ufffd", "ǅ"]
    return mixture(kinds, 30)


def texts():
    """Whole files, and pieces: a long one of each file, lines, random strings."""
    whole = [read_text(data / "text" / name) for name in ("wikitext-2/test.txt", "wagahaiwa_nekodearu.txt")]
    starts = [rng.randrange(len(text) - 30_000) for text in whole]
    pieces = [text[start:start + 30_000] for text, start in zip(whole, starts)]
    pieces += [line for text in whole for line in rng.sample(text.split("\n"), 300)]
    return whole, pieces + [random_text() for _ in range(800)] + ["", " ", "\n"]


def byte_offsets(text, spans):
    at, total = [0], 0
    for c in text:
        total += len(c.encode())
        at.append(total)
    return [[at[b], at[e]] for b, e in spans]


def with_tokenizers(name, path, samples, offsets=False):
    import tokenizers
    theirs = tokenizers.Tokenizer.from_file(str(path))
    for flags, special in ((["--bare"], False), ([], True)):
        results = ours(path, samples, *flags)
        for text, result, wanted in zip(samples, results, theirs.encode_batch(samples, add_special_tokens=special)):
            check(f"{name} {flags}", text, result["ids"], wanted.ids)
            if offsets and not any(0x300 <= ord(c) < 0x370 or c in "स्" for c in text):  # removed marks
                check(f"{name} offsets {flags}", text, result["offsets"], byte_offsets(text, wanted.offsets))
            check(f"{name} decode {flags}", text, result["text"], theirs.decode(wanted.ids, skip_special_tokens=False))
    say(f"{name}: {len(samples)} texts, {sum(len(r['ids']) for r in results)} tokens")


def with_tiktoken(name, samples):
    import tiktoken, tiktoken_ext.openai_public as public
    import base64
    packed = data / f"tokenizers/{name}.tiktoken.gz"
    ranks = {base64.b64decode(l.split()[0]): int(l.split()[1]) for l in gzip.open(packed)}
    public.load_tiktoken_bpe = lambda *a, **k: ranks
    theirs = tiktoken.Encoding(**getattr(public, name)())
    for text, result in zip(samples, ours(packed, samples)):
        check(name, text, result["ids"], theirs.encode(text, allowed_special="all"))
        check(f"{name} decode", text, result["text"], text)
    say(f"{name}: {len(samples)} texts")


def with_sentencepiece(name, path, samples):
    import sentencepiece
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text, result in zip(samples, ours(path, samples, "--bare", "--plain")):
        check(name, text, result["ids"], theirs.encode(text))
    say(f"{name}: {len(samples)} texts")


def trained_by_tokenizers(folder):
    """Models of every kind, trained here by the library, with the pipelines that published models have."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, decoders, trainers, AddedToken
    corpus = [str(path) for path in corpus_files(folder)]
    special = ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"]

    bert = Tokenizer(models.WordPiece(unk_token="<unk>"))
    bert.normalizer, bert.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece()
    bert.train(corpus, trainers.WordPieceTrainer(vocab_size=6000, special_tokens=special, show_progress=False))
    bert.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)])
    bert.add_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
    yield "wordpiece", bert

    t5 = Tokenizer(models.Unigram())
    t5.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("``", '"'), normalizers.Lowercase()])
    t5.pre_tokenizer, t5.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    t5.train(corpus, trainers.UnigramTrainer(vocab_size=4000, special_tokens=special, unk_token="<unk>", show_progress=False))
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    yield "unigram", t5

    llama = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    from tokenizers.pre_tokenizers import Metaspace
    llama.pre_tokenizer = Metaspace(prepend_scheme="never")
    llama.train(corpus, trainers.BpeTrainer(vocab_size=5000, special_tokens=special + byte_tokens, show_progress=False))
    spec = json.loads(llama.to_str())
    spec["pre_tokenizer"] = None
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    llama = Tokenizer.from_str(json.dumps(spec))
    llama.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    yield "bpe_byte_fallback", llama

    clip = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    clip.normalizer, clip.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Whitespace()
    clip.decoder = decoders.BPEDecoder()
    clip.train(corpus, trainers.BpeTrainer(vocab_size=5000, special_tokens=special, end_of_word_suffix="</w>", show_progress=False))
    clip.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    yield "bpe_end_of_word", clip

    gpt2 = Tokenizer(models.BPE())
    gpt2.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    gpt2.decoder = decoders.ByteLevel()
    gpt2.train(corpus, trainers.BpeTrainer(vocab_size=5000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    gpt2.add_tokens(["  ", AddedToken("thee", single_word=True)])
    yield "bpe_digits", gpt2

    roberta = Tokenizer.from_str(gpt2.to_str())
    roberta.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    roberta.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=True)])
    yield "bpe_prefix_space", roberta


def becomes_special(tokenizer, text):
    """<S>, lower-cased, is <s>: the library's Unigram finds that special token in plain text. Ours never does."""
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return any(normal.count(token) > text.count(token) for token in ("<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"))


def training(folder, samples):
    """Our trainer: the library loads what it writes, agrees on every text, and learns the same merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers, Regex
    corpus = corpus_files(folder)
    path = folder / "trained.json"
    subprocess.run([flywheel, "tokenize", "--train", str(path), "--vocab-size", "4000", "--pattern", "gpt2",
                    *sum((["--from", str(c)] for c in corpus), [])], check=True, stderr=subprocess.DEVNULL)
    with_tokenizers("our trained tokenizer", path, samples)
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = []
    for file in corpus:  # the same cuts as `flywheel tokenize --train`
        part = ""
        for line in read_text(file).removesuffix("\n").split("\n"):
            part += line + "\n"
            if len(part.encode()) > 65536:
                parts.append(part)
                part = ""
        parts.append(part)
    theirs.train_from_iterator(parts, trainers.BpeTrainer(vocab_size=4000, min_frequency=2, special_tokens=["<|endoftext|>"],
                               initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    mine, other = json.loads(path.read_text())["model"], json.loads(theirs.to_str())["model"]
    check("merges learned", "", [list(m) for m in mine["merges"]], [list(m) for m in other["merges"]])
    check("vocabulary learned", "", sorted(mine["vocab"].items()), sorted(other["vocab"].items()))


def main():
    if not data.is_dir():
        print(f"skipped: no test data at {data}; set FLYWHEEL_TEST_DATA")
        return 77
    print(f"seed {seed}")
    whole, pieces = texts()
    samples = whole + pieces
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with_tokenizers("llama-3", cache / "llama3/tokenizer.json", samples)
        with_tokenizers("qwen-2.5", cache / "qwen2_5/tokenizer.json", samples)
        with_tiktoken("cl100k_base", samples)
        with_tiktoken("o200k_base", samples)
        with_sentencepiece("llama2.model", data / "tokenizers/llama2.model", samples)
        for kind, tokenizer in trained_by_tokenizers(folder):
            path = folder / f"{kind}.json"
            tokenizer.save(str(path))
            with_tokenizers(kind, path, [t for t in pieces if not becomes_special(tokenizer, t)], offsets=kind == "wordpiece")
        training(folder, pieces)
        golden()
    say(f"{checks} comparisons, {failures} differ")
    return 1 if failures else 0


def golden():
    """llama-bpe and qwen2 of the golden set have no GGUF: they are these tokenizer.json."""
    for name, path in (("llama-bpe", "llama3"), ("qwen2", "qwen2_5")):
        base = data / f"tokenizers/golden/ggml-vocab-{name}.gguf"
        cases = read_text(f"{base}.inp").split("\n__ggml_vocab_test__\n")[:-1]
        wanted = pathlib.Path(f"{base}.out").read_text().split("\n")
        for case, result, ids in zip(cases, ours(cache / path / "tokenizer.json", cases, "--bare"), wanted):
            check(f"golden {name}", case, result["ids"], [int(i) for i in ids.split()])
        say(f"golden {name}: {len(cases)} texts")


sys.exit(main())
