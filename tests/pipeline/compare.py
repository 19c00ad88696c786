"""Our pipeline schedules against torch.distributed.pipelining's, action by action.

    compare.py FLYWHEEL

For every kind and many sizes the order of computation on each worker must be the same. Where PyTorch writes "no
operation" to keep its ranks in step, we write nothing. GPipe and 1F1B are compared too: PyTorch derives their order
for checks.
"""
import json
import random
import re
import subprocess
import sys

try:
    from torch.distributed.pipelining import schedules as peer
except ImportError as error:
    print(f"torch.distributed.pipelining is not here: {error}")
    sys.exit(77)


class Stage:
    """What a schedule's constructor asks of a stage; nothing is computed."""

    def __init__(self, index, stages, workers):
        self.stage_index, self.num_stages = index, stages
        self.group_rank, self.group_size = index % workers, workers
        self.is_first, self.is_last = index == 0, index == stages - 1
        self.submod, self.has_backward, self.group = None, True, None
        self.stage_index_to_group_rank = None


KINDS = {
    "gpipe": (peer.ScheduleGPipe, [1]),
    "1f1b": (peer.Schedule1F1B, [1]),
    "interleaved": (peer.ScheduleInterleaved1F1B, [2, 3, 4]),
    "zb-h1": (peer.ScheduleInterleavedZeroBubble, [1, 2, 3]),
    "zb-v": (peer.ScheduleZBVZeroBubble, [2]),
}
LETTERS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "B", "BACKWARD_WEIGHT": "W"}


def theirs(kind, workers, chunks, microbatches):
    """Lists of (letter, stage, microbatch) by worker."""
    make = KINDS[kind][0]
    stages = workers * chunks
    if kind in ("gpipe", "1f1b"):
        schedule = make(Stage(0, stages, workers), microbatches)
        order = schedule._get_pipeline_order()
    else:
        schedule = make([Stage(i * workers, stages, workers) for i in range(chunks)], microbatches)
        order = schedule.pipeline_order
    lists = [[(LETTERS[a.computation_type.name], a.stage_index, a.microbatch_index) for a in order[rank]
              if a is not None and a.computation_type.name in LETTERS] for rank in range(workers)]
    if kind == "1f1b":  # the derived order counts the last worker's forwards from 1 (what is run does not)
        lists[-1] = [(letter, stage, m - (letter == "F")) for letter, stage, m in lists[-1]]
    return lists


def ours(flywheel, kind, workers, chunks, microbatches):
    done = subprocess.run(
        [flywheel, "plan", "schedule", "--kind", kind, "--stages", str(workers), "--chunks", str(chunks),
         "--microbatches", str(microbatches), "--json"], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        return None
    lists = []
    for worker, actions in enumerate(json.loads(done.stdout)["actions"]):
        found = [re.fullmatch(r"([FBW])(\d+)(?:\.(\d+))?", action) for action in actions]
        lists.append([])
        for match in filter(None, found):
            chunk = int(match[3] or 0)
            stage = chunk * workers + worker
            if kind == "zb-v":
                stage = worker if chunk == 0 else 2 * workers - 1 - worker
            lists[-1].append((match[1], stage, int(match[2])))
    return lists


def main():
    flywheel = sys.argv[1]
    rng = random.Random()
    cases = [(kind, p, v, m) for kind in KINDS for p in (2, 3, 4) for v in KINDS[kind][1] for m in (p, 2 * p, 5 * p)]
    for _ in range(60):
        kind = rng.choice(list(KINDS))
        cases.append((kind, rng.randint(2, 9), rng.choice(KINDS[kind][1]), rng.randint(1, 40)))
    compared, refused = 0, 0
    for case in cases:
        kind, p, v, m = case
        mine = ours(flywheel, kind, p, v, m)
        try:
            peers = theirs(kind, p, v, m)
        except ValueError:
            peers = None
        if v == 1 and peers is None and mine is not None:
            continue  # PyTorch asks for whole rounds of microbatches even where each worker has one stage
        if (mine is None) != (peers is None):
            sys.exit(f"{case}: {'refused by us' if mine is None else 'refused by PyTorch'} alone")
        if mine != peers:
            for worker in range(p):
                if mine[worker] != peers[worker]:
                    sys.exit(f"{case}: worker {worker}\n ours   {mine[worker]}\n theirs {peers[worker]}")
        compared, refused = compared + (mine is not None), refused + (mine is None)
    print(f"{compared} schedules are PyTorch's, action by action; {refused} sizes are refused by both")


main()
