"""PyTorch's side of bench/train_gpu: torch.compile, SDPA, autocast to bf16, fused AdamW, on one GPU.

    torch_compile.py '{"hidden_size": 768, ..., "steps": 20}'

Trains a Llama with tied embeddings on random tokens and prints one JSON line.
"""
import json
import pathlib
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/train"))
from torch_llama import Llama  # noqa: E402

OPTIMIZER = dict(lr=3e-4, betas=[0.9, 0.95], epsilon=1e-8, weight_decay=0.1)
WARMUP = 5  # compiles, and fills the allocator's caches


def initial_weights(c):
    D, F, heads = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * heads, c["num_key_value_heads"] * heads
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], D), "model.norm.weight": (D,)}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes |= {p + "self_attn.q_proj.weight": (q, D), p + "self_attn.k_proj.weight": (kv, D),
                   p + "self_attn.v_proj.weight": (kv, D), p + "self_attn.o_proj.weight": (D, q),
                   p + "mlp.gate_proj.weight": (F, D), p + "mlp.up_proj.weight": (F, D), p + "mlp.down_proj.weight": (D, F),
                   p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
    return {n: torch.ones(s) if len(s) == 1 else torch.randn(s) * 0.02 for n, s in shapes.items()}


def main():
    job = json.loads(sys.argv[1])
    torch.set_default_device("cuda")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    config = dict(vocab_size=job["vocab_size"], hidden_size=job["hidden_size"], intermediate_size=job["intermediate_size"],
                  num_hidden_layers=job["num_layers"], num_attention_heads=job["num_heads"],
                  num_key_value_heads=job["num_kv_heads"], head_dim=job["hidden_size"] // job["num_heads"],
                  rms_norm_eps=1e-5, rope_theta=10000.0)
    llama = Llama(config, initial_weights(config))
    optimizer = llama.optimizer(OPTIMIZER, fused=True)
    model = torch.compile(llama)
    micro, length, microbatches = job["micro_sequences"], job["length"], job["sequences"] // job["micro_sequences"]
    generator = torch.Generator("cuda").manual_seed(1)
    for step in range(WARMUP + job["steps"]):
        if step == WARMUP:
            torch.cuda.synchronize()
            begin = time.perf_counter()
        total = 0.0
        for _ in range(microbatches):
            tokens = torch.randint(0, job["vocab_size"], (micro, length + 1), generator=generator)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(tokens[:, :-1], tokens[:, 1:]) / microbatches
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    print(json.dumps({"tokens_per_second": job["sequences"] * length * job["steps"] / seconds, "loss": float(total),
                      "parameters": sum(p.numel() for p in llama.parameters()), "torch": torch.__version__,
                      "gpu": torch.cuda.get_device_name(), "peak_bytes": torch.cuda.max_memory_allocated()}))


if __name__ == "__main__":
    main()
