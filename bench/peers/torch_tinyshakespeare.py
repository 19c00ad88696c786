"""PyTorch's side of bench/tinyshakespeare: FOLDER/model trained on FOLDER/train.i32 in f32, with FOLDER/case.json's
schedule. Prints one JSON line with the loss over the whole validation set.
"""
import json
import pathlib
import sys
import time

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/train"))
from torch_llama import Llama, learning_rate, read_safetensors  # noqa: E402

folder = pathlib.Path(sys.argv[1])
case = json.loads((folder / "case.json").read_text())
config = json.loads((folder / "model/config.json").read_text())
row = case["length"] + 1


def tokens_of(name):
    return torch.from_numpy(np.fromfile(folder / name, np.int32).astype(np.int64))


torch.set_num_threads(2)
model = Llama(config, read_safetensors(folder / "model/model.safetensors"))
optimizer = model.optimizer(case["optimizer"], fused=True)
batches = tokens_of("train.i32").reshape(case["steps"], case["sequences"], row)
begin = time.perf_counter()
for step, batch in enumerate(batches):
    loss = model(batch[:, :-1], batch[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), case["optimizer"]["clip_norm"])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(case["optimizer"], step, case["steps"])
    optimizer.step()
seconds = time.perf_counter() - begin
total = count = 0
with torch.no_grad():
    for part in tokens_of("validation.i32").reshape(-1, row).split(32):
        total += model(part[:, :-1], part[:, 1:]).item() * len(part)
        count += len(part)
print(json.dumps({"validation_loss": total / count, "loss": loss.item(), "torch": torch.__version__,
                  "tokens_per_second": case["steps"] * case["sequences"] * case["length"] / seconds}))
