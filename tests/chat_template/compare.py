"""Chat templates: our engine beside Python's jinja2 under Transformers' settings. Run by tests/chat_template/run.

Conversations are generated from a fresh seed each time; the seed is printed, and FLYWHEEL_SEED repeats it.
Where jinja2 raises, ours must refuse; with the same words, where the words are a template's or Jinja's own.
"""
import datetime, json, os, pathlib, random, re, subprocess, sys
import jinja2, jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

flywheel = sys.argv[1]
root = pathlib.Path(__file__).resolve().parents[2]
data = pathlib.Path(os.environ.get("FLYWHEEL_TEST_DATA", root / "../shared/data"))
seed = int(os.environ.get("FLYWHEEL_SEED", random.randrange(2**32)))
rng = random.Random(seed)
NOW = "2026-03-09 08:05:07"


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _support(self, context, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    now = datetime.datetime.strptime(NOW, "%Y-%m-%d %H:%M:%S")
    env.globals["strftime_now"] = now.strftime
    return env


def words():
    pool = ["hello", "world", "What's 2 < 3 & 4?", "日本語", "🙂", "line\nbreak", '"quoted"', "\ttab", "{{ no }}", "{% x %}",
            "<think>", "</think>", "a/b", "é", "  spaced  ", "\\", "'", "1.5", "[INST]", "<|im_end|>"]
    return " ".join(rng.choice(pool) for _ in range(rng.randrange(1, 7)))


def parameter():
    kind = rng.choice(["string", "integer", "number", "boolean", "array", "object"])
    schema = {"type": kind}
    if rng.random() < .8:
        schema["description"] = words()
    if kind == "string" and rng.random() < .4:
        schema["enum"] = ["celsius", "fahrenheit"]
    if kind == "array":
        schema["items"] = {"type": rng.choice(["string", "number"])}
    if kind == "object":
        schema["properties"] = {"inner": {"type": "string", "description": "d"}}
        if rng.random() < .5:
            schema["required"] = ["inner"]
    if rng.random() < .2:
        schema["default"] = rng.choice([1, "x", None, 2.5, True])
    return schema


def tool():
    names = rng.sample(["city", "unit", "query", "limit", "options"], rng.randrange(0, 4))
    function = {"name": rng.choice(["get_weather", "search", "run_code", "math.add"]), "description": words(),
                "parameters": {"type": "object", "properties": {n: parameter() for n in names}}}
    if names or rng.random() < .5:
        function["parameters"]["required"] = names[:1]
    if rng.random() < .2:
        function["return"] = {"type": "string"}
    return {"type": "function", "function": function}


def value():
    return rng.choice(["Paris", 3, 2.5, True, None, ["a", 1], {"k": "v", "n": {"m": [1, 2]}}, "日本", 'say "hi"', 1e20, -0.001])


def call(tools, index, strings):
    name = rng.choice(tools)["function"]["name"] if tools else "search"
    arguments = {k: value() for k in rng.sample(["city", "unit", "query", "limit"], rng.randrange(0, 4))}
    made = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments) if strings else arguments}}
    if rng.random() < .8:
        made["id"] = rng.choice([f"call{index:05d}", f"functions.{name}:{index}", "".join(rng.choices("abcXYZ019", k=9))])
    return made


def content(rich):
    if rich and rng.random() < .4:
        return [{"type": "text", "text": words()} for _ in range(rng.randrange(1, 3))] + (
            [{"type": "image", "image": "x.png"}] if rng.random() < .2 else [])
    return words()


def conversation():
    tools = [tool() for _ in range(rng.randrange(1, 4))] if rng.random() < .5 else None
    rich, strings = rng.random() < .3, rng.random() < .3
    messages = []
    if rng.random() < .6:
        messages.append({"role": rng.choice(["system"] * 5 + ["developer"]), "content": content(rich)})
    for turn in range(rng.randrange(1, 4)):
        messages.append({"role": "user", "content": content(rich)})
        if turn and rng.random() < .1:
            messages.append({"role": "user", "content": words()})
        if rng.random() < (.6 if tools else .08):
            calls = [call(tools, i, strings) for i in range(rng.randrange(1, 3))]
            message = {"role": "assistant", "content": rng.choice([None, "", words()]), "tool_calls": calls}
            if rng.random() < .2:
                del message["content"]
            messages.append(message)
            for one in calls:
                result = {"role": "tool", "content": rng.choice([words(), json.dumps({"t": 21.5, "ok": True})])}
                if "id" in one and rng.random() < .9:
                    result["tool_call_id"] = one["id"]
                if rng.random() < .7:
                    result["name"] = one["function"]["name"]
                messages.append(result)
        if rng.random() < .85 or turn == 0:
            message = {"role": "assistant", "content": content(rich)}
            if rng.random() < .25:
                message[rng.choice(["reasoning_content", "reasoning", "thinking"])] = words()
            if rng.random() < .1:
                message["content"] = "<think>" + words() + "</think>" + words()
            messages.append(message)
    if rng.random() < .5:
        messages.append({"role": "user", "content": words()})
    variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": rng.random() < .7,
                 "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if rng.random() < .5:
        variables |= {"functions": json.dumps(tools), "datetime": NOW}
    if rng.random() < .3:
        variables["enable_thinking"] = rng.random() < .5
    if rng.random() < .1:
        variables["documents"] = [{"title": "T", "text": words()}]
    if rng.random() < .1:
        variables["reasoning_effort"] = rng.choice(["low", "high", "none", "no_think", "max"])
    return variables


# Python's own words for what no template means to say; those differ between its versions.
PYTHON_WORDS = (TypeError, ValueError, AttributeError, KeyError, IndexError)


def main():
    folder = data / "templates"
    if not folder.is_dir():
        print(f"skipped: no test data at {folder}; set FLYWHEEL_TEST_DATA")
        return 77
    print(f"seed {seed}")
    count = int(os.environ.get("FLYWHEEL_CONVERSATIONS", 300))
    inputs = [conversation() for _ in range(count)]
    # The same JSON on both sides: a conversation survives being written and read.
    lines = [json.dumps(i) for i in inputs]
    failures = total = refused = 0
    for path in sorted(folder.glob("*.jinja")):
        done = subprocess.run([flywheel, "template", str(path), "-", "--lines", "--now", NOW],
                              input="\n".join(lines).encode() + b"\n", capture_output=True, timeout=120)
        results = [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]
        problem = done.stderr.decode().strip()
        try:
            template, broken = environment().from_string(path.read_bytes().decode()), None
        except jinja2.TemplateError as error:
            template, broken = None, error
        bad = raised = 0
        for i, line in enumerate(lines):
            total += 1
            try:
                if broken:
                    raise broken
                wanted = {"text": template.render(**json.loads(line))}
            except Exception as error:
                wanted, kind = {"error": str(error)}, error
            got = results[i] if i < len(results) else {"error": problem}
            if "error" in wanted:
                raised += 1
                same = "chat template (line" in got.get("error", "") and (isinstance(kind, PYTHON_WORDS) or got["error"].endswith(wanted["error"]))
            else:
                same = got == wanted
            if same:
                continue
            bad += 1
            if bad <= 2:
                print(f"FAILED {path.name} conversation {i}")
                if "text" in wanted and "text" in got:
                    a, b = got["text"], wanted["text"]
                    at = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                    print(f"  at {at}: ours {a[max(0, at - 60):at + 80]!r}\n        theirs {b[max(0, at - 60):at + 80]!r}")
                else:
                    print(f"  ours   {str(got)[:300]}\n  theirs {str(wanted)[:300]}")
        failures += bad
        refused += raised
        print(f"{path.name}: {len(lines) - bad} of {len(lines)} agree ({raised} refused by both)" if not bad else
              f"{path.name}: {bad} of {len(lines)} differ")
    print(f"{total} renderings, {failures} differ, {refused} refused by jinja2")
    return 1 if failures else 0


sys.exit(main())
