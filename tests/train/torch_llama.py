"""A Llama or Qwen3 decoder in plain PyTorch over weights in Hugging Face's layout, and the trainer's schedule.

Used beside our trainer: by the parity test (same loss, same gradients) and by bench/train_cpu (same work).
"""
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = np.frombuffer(raw, np.float32, offset=8 + size + begin, count=(end - begin) // 4)
        assert entry["dtype"] == "F32", name
        tensors[name] = torch.from_numpy(data.copy()).reshape(entry["shape"])
    return tensors


class Llama(torch.nn.Module):
    """Parameters under their Hugging Face names with dots replaced, since torch reserves dots."""

    def __init__(self, config, weights):
        super().__init__()
        self.config = config
        self.names = list(weights)
        for name, value in weights.items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(value))
        half = config["head_dim"] // 2
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self.frequency = 1.0 / theta ** (torch.arange(half, dtype=torch.float32) / half)

    def w(self, name):
        return self._parameters.get(name.replace(".", "/"))

    def norm(self, x, name):
        return F.rms_norm(x, (x.shape[-1],), self.w(name), self.config["rms_norm_eps"])

    def linear(self, x, module):
        return F.linear(x, self.w(module + ".weight"), self.w(module + ".bias"))

    def rope(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def hidden(self, ids):
        c = self.config
        B, T = ids.shape
        D = c["head_dim"]
        angle = torch.arange(T, dtype=torch.float32)[:, None] * self.frequency
        cos, sin = angle.cos(), angle.sin()
        x = F.embedding(ids, self.w("model.embed_tokens.weight"))
        for layer in range(c["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            attn, mlp = prefix + "self_attn.", prefix + "mlp."
            h = self.norm(x, prefix + "input_layernorm.weight")
            q, k, v = (self.linear(h, attn + p).view(B, T, -1, D) for p in ("q_proj", "k_proj", "v_proj"))
            if self.w(attn + "q_norm.weight") is not None:
                q, k = self.norm(q, attn + "q_norm.weight"), self.norm(k, attn + "k_norm.weight")
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            q, k = self.rope(q, cos, sin), self.rope(k, cos, sin)
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
            x = x + self.linear(h.transpose(1, 2).reshape(B, T, -1), attn + "o_proj")
            h = self.norm(x, prefix + "post_attention_layernorm.weight")
            x = x + self.linear(F.silu(self.linear(h, mlp + "gate_proj")) * self.linear(h, mlp + "up_proj"), mlp + "down_proj")
        return self.norm(x, "model.norm.weight")

    def forward(self, ids, targets):
        x = self.hidden(ids)
        head = self.w("lm_head.weight")
        logits = F.linear(x, self.w("model.embed_tokens.weight") if head is None else head)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def optimizer(self, o, fused=False):
        decayed = [p for p in self.parameters() if p.dim() == 2]
        rest = [p for p in self.parameters() if p.dim() != 2]
        groups = [{"params": decayed, "weight_decay": o["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=o["lr"], betas=tuple(o["betas"]), eps=o["epsilon"], fused=fused)


def learning_rate(o, step, steps):
    if step < o["warmup_steps"]:
        return o["lr"] * (step + 1) / o["warmup_steps"]
    left = steps - 1 - o["warmup_steps"]
    share = 1.0 if left <= 0 else min(1.0, (step - o["warmup_steps"]) / left)
    return o["min_lr"] + (o["lr"] - o["min_lr"]) * 0.5 * (1 + math.cos(math.pi * share))
