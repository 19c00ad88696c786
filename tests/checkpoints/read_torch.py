"""Files of torch.save: dtypes, views, parameters, wrappers, shards; and what must be refused."""
import json
import os
import pathlib
import sys
import tempfile
import zipfile

import torch

from compare import CONFIG, Decoder, check, compare, export, finish, imported, read, refused, verified

program, flywheel = sys.argv[1:]
scratch = pathlib.Path(tempfile.mkdtemp())
torch.manual_seed(int.from_bytes(os.urandom(4), "little"))


def bits(shape, dtype):
    """Random bits, so NaNs and denormals too."""
    return torch.randint(-2**31, 2**31 - 1, shape, dtype=torch.int32).view(dtype) if dtype == torch.float32 else \
        torch.randint(-2**15, 2**15 - 1, shape, dtype=torch.int16).view(dtype)


def values_and_views():
    whole = bits((6, 5, 4), torch.float32)
    usable = {
        "f32": whole, "f16": bits((7, 3), torch.float16), "bf16": bits((2, 3, 5), torch.bfloat16),
        "scalar": torch.tensor(3.25), "empty": torch.empty(0, 4), "one": torch.ones(1, 1, 1),
        "turned": whole.permute(2, 0, 1), "row": whole[3], "column": whole[:, 2, 1], "every second": whole[::2, :, 1::2],
        "transposed": bits((9, 4), torch.bfloat16).t(), "expanded": torch.randn(5).expand(3, 5),
        "behind an offset": torch.randn(100)[17:29].view(3, 4), "parameter": torch.nn.Parameter(whole[1]),
        "buffer": torch.nn.Buffer(torch.randn(3)),
    }
    marked = torch.nn.Parameter(torch.randn(4))
    marked.partition_dim = 1  # as Megatron does
    usable["marked parameter"] = marked
    noted = torch.randn(2, 2)
    noted.note = "a tensor with an attribute"
    usable["noted tensor"] = noted
    unusable = {"f64": torch.randn(3, dtype=torch.float64), "i64": torch.arange(4), "bool": torch.tensor([True]),
                "f8": torch.randn(4).to(torch.float8_e4m3fn), "u16": torch.arange(3).to(torch.uint16),
                "complex": torch.randn(2, dtype=torch.complex64)}
    others = {"step": 7, "name": "x", "loss": float("nan"), "big": 1 << 80, "none": None, "bytes": b"\xff\0", "set": {1},
              "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu")}
    for protocol in (2, 3, 4, 5):
        path = scratch / f"values{protocol}.pt"
        torch.save({**usable, **unusable, **others}, path, pickle_protocol=protocol)
        compare(f"values, protocol {protocol}", read(program, path, scratch), usable)


def modules():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = Decoder().to(dtype)
        path = scratch / "module.bin"
        torch.save(model.state_dict(), path)
        compare(f"state_dict in {dtype}", read(program, path, scratch), model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(5)).float().sum().backward()
    optimizer.step()
    state = model.state_dict()
    wrapped = {"DistributedDataParallel": {f"module.{k}": v for k, v in state.items()},
               "torch.compile": {f"_orig_mod.{k}": v for k, v in state.items()},
               "with its optimizer": {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3},
               "Lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "hyper_parameters": {"lr": 0.1}}}
    for label, content in wrapped.items():
        torch.save(content, scratch / "wrapped.pt")
        compare(label, read(program, scratch / "wrapped.pt", scratch), state)
    tied = Decoder(tied=True)
    torch.save(tied.state_dict(), scratch / "tied.pt")
    compare("tied", read(program, scratch / "tied.pt", scratch), tied.state_dict())


def folders():
    state = Decoder().to(torch.bfloat16).state_dict()
    names = sorted(state)
    folder = scratch / "sharded"
    folder.mkdir()
    shards = {f"pytorch_model-0000{i + 1}-of-00003.bin": names[i::3] for i in range(3)}
    for shard, of in shards.items():
        torch.save({name: state[name] for name in of}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, of in shards.items() for name in of}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    compare("shards", read(program, folder, scratch), state)
    refused("export without a config", export(flywheel, folder, scratch / "none"), "config.json", "--config")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    compare("exported", export(flywheel, folder, scratch / "exported"), state)
    compare("imported", imported(flywheel, folder, scratch), state)
    verified(flywheel, "verify", folder, folder / "pytorch_model-00003-of-00003.bin")
    verified(flywheel, "verify what was exported", scratch / "exported", scratch / "exported" / "model.safetensors")
    compare("exported in f32", export(flywheel, folder, scratch / "exported32", "--dtype", "f32"),
            {name: tensor.float() for name, tensor in state.items()})
    torch.save(state, scratch / "alone.pt")
    compare("exported, described by another", export(flywheel, scratch / "alone.pt", scratch / "alone", "--config", folder),
            state)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    refused("a shard is missing", read(program, folder, scratch), "pytorch_model-00002-of-00003.bin")


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def refusals():
    mark = scratch / "pwned"
    for label, thing, word in [("os.system", Evil(os.system, f"touch {mark}"), "system"),
                               ("exec", Evil(exec, f"open({str(mark)!r}, 'w')"), "exec"),
                               ("eval", Evil(eval, f"open({str(mark)!r}, 'w')"), "eval")]:
        for protocol in (2, 4):
            torch.save({"model.norm.weight": torch.ones(2), "x": thing}, scratch / "evil.pt", pickle_protocol=protocol)
            refused(f"{label}, protocol {protocol}", read(program, scratch / "evil.pt", scratch), word, "refused")
    torch.save(torch.nn.Linear(2, 2), scratch / "whole.pt")
    refused("a whole module", read(program, scratch / "whole.pt", scratch), "torch.nn.modules.linear.Linear", "state_dict")
    torch.save({"a": torch.ones(2)}, scratch / "old.pt", _use_new_zipfile_serialization=False)
    refused("torch before 1.6", read(program, scratch / "old.pt", scratch), "torch 1.6")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), scratch / "script.pt")
    refused("TorchScript", read(program, scratch / "script.pt", scratch))
    torch.save({"a": torch.complex(torch.ones(2), torch.ones(2)).conj().imag}, scratch / "negative.pt")
    refused("a lazy negation", read(program, scratch / "negative.pt", scratch), "contiguous()")
    torch.save({"a": torch.sparse_coo_tensor([[0]], [1.0], (3,))}, scratch / "sparse.pt")
    refused("sparse", read(program, scratch / "sparse.pt", scratch), "_rebuild_sparse_tensor")
    torch.save({"a": torch.ones(100)}, scratch / "sound.pt")
    with zipfile.ZipFile(scratch / "sound.pt") as sound, \
            zipfile.ZipFile(scratch / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in sound.infolist():
            packed.writestr(entry.filename, sound.read(entry))
    refused("packed anew", read(program, scratch / "packed.pt", scratch), "compressed")
    raw = (scratch / "sound.pt").read_bytes()
    (scratch / "cut.pt").write_bytes(raw[:len(raw) // 2])
    refused("cut", read(program, scratch / "cut.pt", scratch), "cut short")
    (scratch / "config.pt").write_text("{}")
    refused("no zip", read(program, scratch / "config.pt", scratch), "torch.save")
    check(not mark.exists(), "a pickle was run")


values_and_views()
modules()
folders()
refusals()
finish()
