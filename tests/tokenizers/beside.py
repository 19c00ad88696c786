"""What the comparisons of tokenizers share: the program, the data, a seed, random texts, and how a difference is told."""
import json, os, pathlib, random, subprocess, sys

flywheel = sys.argv[1]
data = pathlib.Path(os.environ.get("FLYWHEEL_TEST_DATA", pathlib.Path(__file__).resolve().parents[3] / "shared/data"))
seed = int(os.environ.get("FLYWHEEL_SEED", random.randrange(2**32)))
rng = random.Random(seed)


def ours(tokenizer, texts, *flags):
    lines = "".join(json.dumps(t) + "\n" for t in texts)
    done = subprocess.run([flywheel, "tokenize", str(tokenizer), "--lines", *flags], input=lines.encode(),
                          capture_output=True, timeout=300)
    if done.returncode:
        sys.exit(f"flywheel tokenize {tokenizer}: exit {done.returncode}: {done.stderr.decode()}")
    return [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]


def read_text(path):
    with open(path, encoding="utf-8", newline="") as file:  # newlines as they are
        return file.read()


def mixture(kinds, pieces):
    """Fewer than `pieces` pieces, each one of the kinds or some of its characters."""
    out = ""
    for _ in range(rng.randrange(1, pieces)):
        kind = rng.choice(kinds)
        out += kind if rng.random() < .3 else "".join(rng.choice(kind) for _ in range(rng.randrange(1, 6)))
    return out


def difference(got, wanted):
    at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
    return f"at {at}: ours {got[at:at + 8]}, theirs {wanted[at:at + 8]}"
