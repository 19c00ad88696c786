"""Our optimizers beside torch.optim's, and transformers' Adafactor as a formula, step for step on fresh random
input; our 8-bit floats beside ml_dtypes on every f16 and bf16 value and a million random f32. Run by
tests/optimizers/run. The seed is printed, and FLYWHEEL_SEED repeats it."""
import json, math, os, pathlib, random, sys, tempfile
import ml_dtypes, numpy, torch
from peer import Checks, Peer

ours, check = Peer(sys.argv[1]), Checks()
seed = int(os.environ.get("FLYWHEEL_SEED", random.randrange(2**32)))
rng = random.Random(seed)
torch.manual_seed(seed)
torch.set_num_threads(1)
print(f"seed {seed}")
STEPS = 12


def shapes():
    return [[rng.randint(2, 60), rng.randint(2, 60)], [rng.randint(64, 80), rng.randint(64, 90)], [rng.randint(1, 70)]]


def run_ours(config, shapes, names, weights, gradients, lrs):
    """The weights after every step, each a list of arrays."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "floats"
        flat = [w.numpy().ravel() for w in weights] + [g.numpy().ravel() for step in gradients for g in step]
        numpy.concatenate(flat).astype(numpy.float32).tofile(path)
        reply = ours("optimizer", config=json.dumps(config), shapes=shapes, names=names, file=str(path), lrs=lrs)
        if "error" in reply:
            raise SystemExit(reply["error"])
        out = numpy.fromfile(path, numpy.float32)
    result, at = [], 0
    for _ in lrs:
        step = []
        for shape in shapes:
            count = math.prod(shape)
            step.append(out[at:at + count].reshape(shape))
            at += count
        result.append(step)
    return result


def compare(name, config, make, tolerance, lr_of=lambda step: 1e-2, decays=lambda shape: True):
    """`tolerance`: of what a step changes, relative to the root mean square of that change."""
    sizes = shapes()
    names = [f"model.layers.{i}.weight" for i in range(len(sizes))]
    weights = [torch.randn(s) for s in sizes]
    gradients = [[torch.randn(s) for s in sizes] for _ in range(STEPS)]
    lrs = [lr_of(step) for step in range(STEPS)]
    mine = run_ours({"no_decay": [], **config}, sizes, names, weights, gradients, lrs)
    params = [torch.nn.Parameter(w.clone().double()) for w in weights]
    optimizers = make(params)
    before = [w.double().numpy() for w in weights]
    for step in range(STEPS):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lrs[step] * group.get("times", 1)
        for p, g in zip(params, gradients[step]):
            p.grad = g.clone().double()
        for optimizer in optimizers:
            optimizer.step()
        for i, p in enumerate(params):
            theirs = p.detach().numpy().copy()
            size = math.sqrt(((theirs - before[i])**2).mean()) + 1e-12
            error = abs(mine[step][i] - theirs).max() / (size * (step + 1))
            check(error < tolerance, f"{name}, step {step}, shape {sizes[i]}: {error:.2e} of a step")
            before[i] = theirs
    print(f"{name}: {STEPS} steps")


def optimizers():
    o = torch.optim
    common = dict(lr=1e-2)
    warm = lambda step: 1e-2 * (step + 1) / STEPS
    compare("SGD", {"type": "sgd", "weight_decay": 0.1, "sgd": {"momentum": 0}},
            lambda p: [o.SGD(p, **common, weight_decay=0.1)], 1e-3)
    compare("SGD, momentum, dampening", {"type": "sgd", "weight_decay": 0, "sgd": {"momentum": 0.9, "dampening": 0.2}},
            lambda p: [o.SGD(p, **common, momentum=0.9, dampening=0.2)], 1e-3, warm)
    compare("SGD, Nesterov", {"type": "sgd", "weight_decay": 0.05, "sgd": {"momentum": 0.8, "nesterov": True}},
            lambda p: [o.SGD(p, **common, momentum=0.8, nesterov=True, weight_decay=0.05)], 1e-3)
    compare("Adam", {"type": "adam", "weight_decay": 0.1, "betas": [0.9, 0.999]},
            lambda p: [o.Adam(p, **common, weight_decay=0.1)], 1e-3, warm)
    compare("AdamW", {"type": "adamw", "weight_decay": 0.1, "betas": [0.8, 0.98], "epsilon": 1e-6},
            lambda p: [o.AdamW(p, **common, betas=(0.8, 0.98), eps=1e-6, weight_decay=0.1)], 1e-3, warm)
    compare("Adafactor", {"type": "adafactor", "weight_decay": 0.1, "adafactor": {"relative_step": True}},
            lambda p: [o.Adafactor(p, **common, eps=(1e-30, 1e-3), weight_decay=0.1)], 1e-3)
    compare("AdamW, groups", {"type": "adamw", "weight_decay": 0.1, "groups": [
        {"match": r"layers\.1\.", "lr_scale": 0.1, "weight_decay": 0.5, "betas": [0.7, 0.9]}]},
            lambda p: [o.AdamW([{"params": [p[0], p[2]]}, {"params": [p[1]], "times": 0.1, "weight_decay": 0.5,
                                                          "betas": (0.7, 0.9)}],
                               **common, betas=(0.9, 0.95), weight_decay=0.1)], 1e-3)
    for scale, theirs in (("shape", "original"), ("like_adamw", "match_rms_adamw")):
        # torch rounds each product of Newton-Schulz to bf16, ours keep f32 between bf16 products: near, not equal.
        compare(f"Muon, {scale}", {"type": "muon", "weight_decay": 0.1, "betas": [0.9, 0.999],
                                   "muon": {"scale": scale}},
                lambda p: [o.Muon([q for q in p if q.dim() == 2], **common, weight_decay=0.1, adjust_lr_fn=theirs),
                           o.AdamW([q for q in p if q.dim() != 2], **common, weight_decay=0.1)], 0.3)


class TransformersAdafactor(torch.optim.Optimizer):
    """The rules of transformers' Adafactor with scale_parameter and relative_step off, in f64."""

    def __init__(self, params, lr, beta1=None):
        super().__init__(params, dict(lr=lr, beta1=beta1, step=0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] += 1
            beta2 = 1 - group["step"]**-0.8
            for p in group["params"]:
                s, g2 = self.state[p], p.grad**2 + 1e-30
                if p.dim() == 2:
                    s["r"] = beta2 * s.get("r", 0) + (1 - beta2) * g2.mean(-1)
                    s["c"] = beta2 * s.get("c", 0) + (1 - beta2) * g2.mean(-2)
                    update = p.grad * torch.outer((s["r"] / s["r"].mean()).rsqrt(), s["c"].rsqrt())
                else:
                    s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * g2
                    update = p.grad * s["v"].rsqrt()
                update = update / max(1.0, (update.norm() / update.numel()**0.5).item()) * group["lr"]
                if group["beta1"]:
                    s["m"] = update = group["beta1"] * s.get("m", 0) + (1 - group["beta1"]) * update
                p.sub_(update)


def adafactor_of_transformers():
    for beta1 in (0, 0.9):
        compare(f"Adafactor as transformers has it, beta1 {beta1}",
                {"type": "adafactor", "weight_decay": 0, "adafactor": {"scale_parameter": False, "beta1": beta1}},
                lambda p: [TransformersAdafactor(p, 1e-2, beta1)], 1e-3)


def eight_bits():
    """8-bit AdamW stays near AdamW: its moments are rounded, so by a tenth of a step at most on average."""
    sizes, names = [[64, 128], [4096]], ["model.layers.0.weight", "model.layers.1.weight"]
    weights = [torch.randn(s) for s in sizes]
    gradients = [[torch.randn(s) for s in sizes] for _ in range(STEPS)]
    config = {"type": "adamw_8bit", "weight_decay": 0.1, "no_decay": []}
    mine = run_ours(config, sizes, names, weights, gradients, [1e-2] * STEPS)
    exact = run_ours({**config, "type": "adamw"}, sizes, names, weights, gradients, [1e-2] * STEPS)
    for a, b, w in zip(mine[-1], exact[-1], weights):
        moved = math.sqrt(((b - w.numpy())**2).mean())
        error = math.sqrt(((a - b)**2).mean()) / moved
        check(error < 0.1, f"8-bit AdamW is {error:.3f} of the way from AdamW")
        check(error > 0, "8-bit AdamW is AdamW")
    print("8-bit AdamW: near AdamW")


def fp8():
    """Every f16 and bf16 value and random f32 ones: our codes are those of ml_dtypes and of torch."""
    for format, dtype in (("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)):
        top = float(ml_dtypes.finfo(dtype).max)
        values = numpy.concatenate([
            numpy.arange(65536, dtype=numpy.uint16).view(numpy.float16).astype(numpy.float32),
            (numpy.arange(65536, dtype=numpy.uint32) << 16).view(numpy.float32),
            numpy.random.default_rng(seed).integers(0, 2**32, 1_000_000, dtype=numpy.uint32).view(numpy.float32),
            numpy.random.default_rng(seed + 1).normal(size=1_000_000).astype(numpy.float32),
        ])
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "floats"
            values.tofile(path)
            reply = ours("fp8", format=format, file=str(path))
            codes = numpy.fromfile(path, numpy.uint8)
        with numpy.errstate(all="ignore"):
            theirs = numpy.clip(values, -top, top).astype(dtype)  # clip keeps NaN; ours saturates
        nan = numpy.isnan(values)
        differ = (codes != theirs.view(numpy.uint8)) & ~nan
        check(not differ.any(), f"{format}: {differ.sum()} codes, the first of {values[differ][:1]}")
        check(numpy.isnan(codes[nan].view(dtype).astype(numpy.float32)).all(), f"{format}: a NaN became a number")
        for code, value in enumerate(reply["values"]):
            other = float(numpy.uint8(code).view(dtype))
            same = (math.isnan(other) and "nan" in str(value)) or float(value) == other
            check(same, f"{format}: code {code} is {value}, not {other}")
        torch_type = torch.float8_e4m3fn if format == "e4m3" else torch.float8_e5m2
        theirs = torch.from_numpy(numpy.clip(values, -top, top)[~nan].copy()).to(torch_type).view(torch.uint8).numpy()
        check((theirs == codes[~nan]).all(), f"{format}: differs from torch's")
        print(f"{format}: {len(values)} values")


optimizers()
adafactor_of_transformers()
eight_bits()
fp8()
sys.exit(check.end())
