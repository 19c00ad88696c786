"""bench/run with small benchmarks of our own: one that hangs is ended with all its processes, results are checked."""
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

    def test_refuses_what_is_no_result(self):
        for changes, said in (({"limit_fraction": 1.01}, "what ours can pass is no limit"),
                              ({"limit_fraction": -0.1}, "no limit"), ({"ratio": "2"}, "ratio is no number")):
            done = self.printing(**changes)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertIn(said, done.stderr)
        self.assertIn("bench/mine: ", self.run_benchmark("echo no json").stderr)


if __name__ == "__main__":
    unittest.main()
