"""Runs cases/*.txt: commands as a person types them, their exit code, and what they say.

    # A line that begins with # is for people.
    needs train               skip this file where the program was built without that verb
    $ flywheel store lst      a command for bash, in a folder and a home made for this file
    exit 2                    its exit code; 0 where none is given
    err: did you mean list?   stderr holds this
    out: ARTIFACT             stdout holds this
    no err: Traceback         ... and not this; likewise `no out:`

$ROOT is the project's folder. The commands of a file follow each other: one may leave files for the next.
`run_cases.py --flywheel PATH [NAME...]` runs the files of these names alone; it exits with 77 where all were skipped.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COMMAND_SECONDS = 60
SKIPPED = 77


class Command:
    def __init__(self, line_number, text):
        self.line_number, self.text = line_number, text
        self.exit_code = 0
        self.expected = []  # line number, stream, wanted (or unwanted), fragment


def read_case(path):
    """The verbs that a file needs, and its commands."""
    needs, commands = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        expectation = re.fullmatch(r"(no )?(out|err): (.+)", line)
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("needs "):
            needs.append(line.removeprefix("needs "))
        elif line.startswith("$ "):
            commands.append(Command(number, line[2:]))
        elif commands and re.fullmatch(r"exit \d+", line):
            commands[-1].exit_code = int(line.split()[1])
        elif commands and expectation:
            unwanted, stream, fragment = expectation.groups()
            commands[-1].expected.append((number, stream, not unwanted, fragment))
        else:
            sys.exit(f"{path}:{number}: not a line of a case: {line}")
    return needs, commands


def run(command, folder, environment):
    """What was wrong, as lines; none when all was right."""
    try:
        done = subprocess.run(["bash", "-c", command.text], cwd=folder, env=environment, capture_output=True,
                              text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"{command.line_number}: did not end within {COMMAND_SECONDS} s"]
    said = {"out": done.stdout, "err": done.stderr}
    wrong = []
    if done.returncode != command.exit_code:
        wrong.append(f"{command.line_number}: exit {done.returncode}, not {command.exit_code}")
    for number, stream, wanted, fragment in command.expected:
        if (fragment in said[stream]) != wanted:
            wrong.append(f"{number}: std{stream} {'lacks' if wanted else 'holds'}: {fragment}")
    if wrong:
        wrong += [f"  | {line}" for line in (done.stdout + done.stderr).splitlines()[:30]]
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--flywheel", required=True)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    program = pathlib.Path(arguments.flywheel).resolve()
    verbs = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    paths = [path for path in sorted((HERE / "cases").glob("*.txt"))
             if not arguments.names or path.stem in arguments.names]
    if not paths:
        sys.exit("no such case")
    failed = commands_run = 0
    for path in paths:
        needs, commands = read_case(path)
        missing = [verb for verb in needs if not re.search(rf"^  {verb} ", verbs, re.M)]
        if missing:
            print(f"{path.name}: skipped, the program has no {' '.join(missing)}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("FLYWHEEL_")}
            environment |= {"HOME": folder, "ROOT": str(HERE.parents[1]), "NO_COLOR": "1",
                            "PATH": f"{program.parent}:{os.environ['PATH']}"}
            for command in commands:
                commands_run += 1
                wrong = run(command, folder, environment)
                if wrong:
                    failed += 1
                    print(f"{path.name}: $ {command.text}")
                    print("\n".join(f"  {line}" for line in wrong))
    print(f"{commands_run} commands of {len(paths)} files, {failed} wrong")
    return 1 if failed else SKIPPED if commands_run == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
