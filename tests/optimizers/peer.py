"""Talks with train_peer: one JSON request a line, one answer a line."""
import json
import subprocess


class Peer:
    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, what, **request):
        self.process.stdin.write(json.dumps({"do": what, **request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"train_peer died on {what}: {str(request)[:300]}")
        return json.loads(line)


class Checks:
    """Counts comparisons; says the first few that differ."""

    def __init__(self):
        self.done = self.failed = 0

    def __call__(self, holds, what):
        self.done += 1
        if not holds:
            self.failed += 1
            if self.failed <= 20:
                print("DIFFERS:", what)

    def end(self):
        print(f"{self.done} comparisons, {self.failed} differ")
        return 1 if self.failed else 0
