"""Folders of torch.distributed.checkpoint, saved by two processes: sharded, replicated and plain tensors."""
import json
import os
import pathlib
import pickle
import socket
import sys
import tempfile

import torch
import torch.distributed
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from compare import CONFIG, Decoder, compare, export, finish, read, refused, verified

WORLD = 2


def tensors(seed):
    """What all ranks agree on: name -> (tensor, placement)."""
    torch.manual_seed(seed)
    out = {"rows": (torch.randn(5, 4), Shard(0)), "columns": (torch.randn(6, 7).bfloat16(), Shard(1)),
           "middle": (torch.randn(3, 5, 2).half(), Shard(1)), "whole": (torch.randn(3), Replicate()),
           "fewer rows than ranks": (torch.randn(1, 3), Shard(0)), "scalar": (torch.tensor(1.5), None),
           "view": (torch.randn(4, 6).t(), None)}
    return out


def save(rank, scratch, port, seed):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    place = lambda tensor, how: tensor if how is None else distribute_tensor(tensor, mesh, [how])
    state = {name: place(*how) for name, how in tensors(seed).items()}
    state.update(step=7, name="x", numbers=torch.arange(4), nested={"list": [1, 2, {"a": 3}]})
    torch.distributed.checkpoint.save(state, checkpoint_id=scratch / "tensors")

    torch.manual_seed(seed)
    model = Decoder().bfloat16()
    if rank == 0:
        torch.save(model.state_dict(), scratch / "model.pt")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(5)).float().sum().backward()
    torch.distributed.fsdp.fully_shard(model, mesh=mesh)
    weights = {name: value for name, value in model.state_dict().items()}
    moments = {name: {"exp_avg": torch.zeros(3)} for name in weights}
    torch.distributed.checkpoint.save({"model": weights, "optimizer": {"state": moments}, "epoch": 3},
                                      checkpoint_id=scratch / "model")
    torch.distributed.checkpoint.save({"model": weights},
                                      storage_writer=torch.distributed.checkpoint.FileSystemWriter(
                                          scratch / "one_file", single_file_per_rank=False))
    torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def main():
    program, flywheel = sys.argv[1:]
    scratch = pathlib.Path(tempfile.mkdtemp())
    seed = int.from_bytes(os.urandom(4), "little")
    torch.multiprocessing.spawn(save, args=(scratch, free_port(), seed), nprocs=WORLD)

    compare("tensors", read(program, scratch / "tensors", scratch), {name: t for name, (t, _) in tensors(seed).items()})
    state = torch.load(scratch / "model.pt")
    compare("FSDP with its optimizer", read(program, scratch / "model", scratch), state)
    compare("a file for each tensor", read(program, scratch / "one_file", scratch), state)
    (scratch / "config").mkdir()
    (scratch / "config" / "config.json").write_text(json.dumps(CONFIG))
    compare("exported", export(flywheel, scratch / "model", scratch / "out", "--config", scratch / "config"), state)

    verified(flywheel, "verify", scratch / "model", scratch / "model" / "__0_0.distcp")
    shard = scratch / "tensors" / "__1_0.distcp"
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) // 4])  # what is at its end may be no tensor's
    refused("a shard that is cut", read(program, scratch / "tensors", scratch), "__1_0.distcp", "cut short")
    shard.unlink()
    refused("a shard that is missing", read(program, scratch / "tensors", scratch), "__1_0.distcp", "every rank's")
    with open(scratch / "tensors" / ".metadata", "wb") as metadata:
        pickle.dump({"state_dict_metadata": Evil()}, metadata)
    refused("an evil .metadata", read(program, scratch / "tensors", scratch), "system", "refused")
    finish()


if __name__ == "__main__":
    main()
