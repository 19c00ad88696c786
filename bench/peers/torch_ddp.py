"""PyTorch's side of bench/train_cpu: DistributedDataParallel over Gloo, SDPA, autocast to bf16, fused AdamW.

Starts 2 processes of 1 thread on the same 15-million-parameter Llama (tied embeddings) and prints one JSON line.
"""
import json
import os
import pathlib
import socket
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/train"))
from torch_llama import Llama  # noqa: E402

WORLD, SEQUENCES, LENGTH, WARMUP = 2, 4, 256, 3
CONFIG = dict(vocab_size=32000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
              num_key_value_heads=6, head_dim=48, rms_norm_eps=1e-5, rope_theta=10000.0)
OPTIMIZER = dict(lr=1e-3, betas=[0.9, 0.95], epsilon=1e-8, weight_decay=0.1)


def initial_weights():
    D, F = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], D), "model.norm.weight": (D,)}
    for layer in range(CONFIG["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{p}self_attn.{name}_proj.weight"] = (D, D)
        shapes |= {p + "mlp.gate_proj.weight": (F, D), p + "mlp.up_proj.weight": (F, D), p + "mlp.down_proj.weight": (D, F),
                   p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
    torch.manual_seed(1)
    return {n: torch.ones(s) if len(s) == 1 else torch.randn(s) * 0.02 for n, s in shapes.items()}


def worker(rank, port, steps, seconds):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    llama = Llama(CONFIG, initial_weights())
    optimizer = llama.optimizer(OPTIMIZER, fused=True)
    model = torch.nn.parallel.DistributedDataParallel(llama)
    generator = torch.Generator().manual_seed(rank)
    for step in range(WARMUP + steps):
        if step == WARMUP:
            dist.barrier()
            begin = time.perf_counter()
        tokens = torch.randint(0, CONFIG["vocab_size"], (SEQUENCES, LENGTH + 1), generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
    dist.barrier()
    if rank == 0:
        seconds.value = time.perf_counter() - begin
    dist.destroy_process_group()


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    seconds = context.Value("d", 0.0)
    mp.spawn(worker, (port, steps, seconds), nprocs=WORLD)
    print(json.dumps({"tokens_per_second": WORLD * SEQUENCES * LENGTH * steps / seconds.value, "torch": torch.__version__}))
