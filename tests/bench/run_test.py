"""bench/run with small benchmarks of our own: one that hangs is ended with all its processes, results are checked.
bench/all with one of them: each row names the machine that it was measured on."""
import json
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest

RUN = pathlib.Path(__file__).resolve().parents[2] / "bench" / "run"
GOOD = {"ours": 2, "peer": 1, "ratio": 2, "limit_fraction": 0.5, "unit": "things/s"}


class BenchRun(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.bench = pathlib.Path(self.temporary.name)
        shutil.copy(RUN, self.bench / "run")

    def run_benchmark(self, script, *options):
        program = self.bench / "mine"
        program.write_text("#!/bin/bash\n" + script)
        program.chmod(0o755)
        return subprocess.run([self.bench / "run", "mine", *options], capture_output=True, text=True, timeout=60)

    def printing(self, **changes):
        return self.run_benchmark(f"echo a table; echo '{json.dumps(GOOD | changes)}'")

    def assert_ended(self, marks):
        for mark in marks:
            found = subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True).stdout
            self.assertEqual(found, "", f"sleep {mark} still runs")

    def test_good(self):
        done = self.printing()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[0], "a table")
        self.assertEqual(json.loads(done.stdout.splitlines()[-1]), GOOD)
        self.assertEqual(self.printing(limit_fraction=None).returncode, 0)

    def test_ends_what_hangs_with_all_its_processes(self):
        # A child that holds stdout, one in a session of its own, one whose parent went away.
        marks = ["876543.1", "876543.2", "876543.3"]
        start = time.monotonic()
        done = self.run_benchmark(f"echo begun; sleep {marks[0]} & setsid sleep {marks[1]} & "
                                  f"(setsid nohup sleep {marks[2]} &) ; wait", "--timeout", "5")
        self.assertLess(time.monotonic() - start, 40)
        self.assertEqual(done.returncode, 1)
        self.assertIn("was not done after 5 s", done.stderr)
        self.assertIn("begun", done.stdout)
        self.assert_ended(marks)

    def test_ends_what_hangs_without_stdout(self):
        done = self.run_benchmark("exec >&-; sleep 876543.4", "--timeout", "2")
        self.assertIn("was not done after 2 s", done.stderr)
        self.assert_ended(["876543.4"])

    def test_leaves_nothing_running_behind_a_failure(self):
        done = self.run_benchmark("setsid sleep 876543.5 > /dev/null & exit 3")
        self.assertIn("failed (exit 3)", done.stderr)
        self.assert_ended(["876543.5"])

    def test_says_what_cannot_run_here(self):
        done = self.run_benchmark("echo no GPU here >&2; exit 77")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (77, "", "no GPU here\n"))

    def test_refuses_what_is_no_result(self):
        for changes, said in (({"limit_fraction": 1.01}, "what ours can pass is no limit"),
                              ({"limit_fraction": -0.1}, "no limit"), ({"ratio": "2"}, "ratio is no number")):
            done = self.printing(**changes)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertIn(said, done.stderr)
        self.assertIn("bench/mine: ", self.run_benchmark("echo no json").stderr)


class BenchAll(unittest.TestCase):
    OLD = "| old | x/s | 3 | 2 (peer) | 1.50 | - | 2020-01-02 | Some CPU, 4 cores, 8 GiB, avx512 |"

    def test_rows_keep_their_machines(self):
        with tempfile.TemporaryDirectory() as temporary:
            root = pathlib.Path(temporary)
            for folder in ("bench", "docs", "build/cli"):
                (root / folder).mkdir(parents=True)
            for name in ("run", "all"):
                shutil.copy(RUN.parent / name, root / "bench" / name)
            (root / "docs/benchmarks.md").write_text(self.OLD + "\n")
            found = {"cpu": "CPU", "cores": 2, "memory_bytes": 24.0 * 2**30, "instruction_set": "avx2"}
            programs = {"bench/old": "", "bench/new": f"echo a table; echo '{json.dumps(GOOD)}'",
                        "build/cli/flywheel": f"echo '{json.dumps(found)}'; exit 1"}
            for name, script in programs.items():
                (root / name).write_text("#!/bin/bash\n" + script + "\n")
                (root / name).chmod(0o755)
            for names, script, code in ((["new", "old"], "exit 77", 0), (["old"], "exit 3", 1)):
                (root / "bench/old").write_text("#!/bin/bash\n" + script + "\n")
                done = subprocess.run([root / "bench/all", *names], capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, code, done.stderr)
                page = (root / "docs/benchmarks.md").read_text()
                self.assertRegex(page, r"(?m)^\| new \| things/s \|.* \| CPU, 2 cores, 24 GiB, avx2 \|$")
                self.assertEqual(self.OLD in page, code == 0)
            self.assertRegex(page, r"(?m)^\| old \| could not be measured .*\| CPU, 2 cores, 24 GiB, avx2 \|$")
            done = subprocess.run([root / "bench/all", "--build", root / "nowhere"], capture_output=True, text=True)
            self.assertIn("run `make build`", done.stderr)


if __name__ == "__main__":
    unittest.main()
