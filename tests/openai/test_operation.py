"""What an operator relies on: clients that vanish, stall or ask too much, the truth of /health, and the end."""
import concurrent.futures
import contextlib
import ctypes
import json
import os
import pathlib
import time
import urllib.error
import urllib.request

import openai
import pytest

from conftest import ASK, MODEL, Server

LONG = dict(model=MODEL, prompt="Once upon a time", max_tokens=4000, temperature=1, seed=1, ignore_eos=True)


def wait_until(condition, seconds):
    """How long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - start


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 8])
def test_a_client_that_vanishes_is_cancelled(server, stream, n):
    with server.send("/v1/completions", dict(LONG, stream=stream, n=n)):
        wait_until(lambda: server.metric("num_requests_running") == n, 10)
        time.sleep(0.2)  # tokens flow
    wait_until(lambda: server.metric("num_requests_running") == 0, 1.5)  # within 1 s, and a step may be under way
    assert server.metric("kv_cache_usage_perc") == 0


def memory_bytes(process):
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024


def read_all(s):
    received = bytearray()
    s.settimeout(60)
    with contextlib.suppress(ConnectionResetError):
        while piece := s.recv(1 << 20):
            received += piece
    return bytes(received)


def test_a_slow_reader_slows_only_itself():
    """A stream of megabytes, more than the kernel's buffers hold, to a client that reads nothing meanwhile."""
    def seconds_of_an_answer():
        start = time.monotonic()
        server.client().chat.completions.create(**dict(ASK, max_tokens=8), extra_body={"ignore_eos": True})
        return time.monotonic() - start

    def answered():
        return server.metric("flywheel_serve_request_seconds_count")

    n, tokens = 32, 150
    ask = dict(ASK, messages=[{"role": "user", "content": "Tell me a long story."}], max_tokens=tokens, n=n,
               temperature=1, seed=3, stream=True, ignore_eos=True, logprobs=True, top_logprobs=20)
    # So small a cache that the first run touches all of it: what grows later is not the cache.
    with Server(kv_cache_bytes=160 << 20, prefix_cache=False) as server:
        with server.send("/v1/chat/completions", ask) as s:
            seconds_of_an_answer()
            whole = len(read_all(s))
        assert whole > 6 << 20, whole
        alone = min(seconds_of_an_answer() for _ in range(3))
        memory = memory_bytes(server.process)
        with server.send("/v1/chat/completions", ask, receive_buffer=4096) as s:
            received = s.recv(1000)  # and then nothing more
            assert b"200 OK" in received
            during = seconds_of_an_answer()  # in one batch with the others
            wait_until(lambda: server.metric("num_requests_running") == 0, 180)
            # All tokens are there, and the call is still under way: its write waits for us.
            before = answered()
            blocked = [seconds_of_an_answer() for _ in range(3)]
            growth = memory_bytes(server.process) - memory
            calls = answered() - before  # the three answers, and the look at the metrics that counted them
            assert calls == len(blocked) + 1, f"the slow call ended: nothing was stuck ({calls})"
            received += read_all(s)
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert received.count(b'"finish_reason":"length"') == n
        assert min(blocked) < 3 * alone + 0.3, (alone, blocked)
        assert during < 30 * alone + 1, (alone, during)
        assert growth < 32 << 20, growth


def test_malformed_bodies_leave_the_server_up(client, server):
    for body in [b"", b"{", b"[]", b'{"model": "smollm2"}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000]:
        request = urllib.request.Request(server.url + "/v1/chat/completions", data=body)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert 400 <= caught.value.code < 500
        assert "message" in json.load(caught.value)["error"]
    assert client.chat.completions.create(**dict(ASK, max_tokens=1)).choices


def test_a_body_that_is_too_large_is_413(client, server):
    size = 20 << 20
    with server.send_head("/v1/chat/completions", size) as s:  # a client that reads early: nothing of the body is sent
        head, _, body = read_all(s).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413"), head
        assert "max_body_bytes" in json.loads(body)["error"]["message"]
    # urllib sends everything before it reads.
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(server.url + "/v1/chat/completions", data=b" " * size))
    assert caught.value.code == 413
    assert "max_body_bytes" in json.load(caught.value)["error"]["message"]
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=MODEL, prompt=" " * size, max_tokens=1)
    assert caught.value.status_code == 413
    assert client.chat.completions.create(**dict(ASK, max_tokens=1)).choices


def test_keys():
    with Server("--api-key", "secret-key-for-tests") as server:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
        good = openai.OpenAI(base_url=server.url + "/v1", api_key="secret-key-for-tests", max_retries=0)
        assert good.models.list().data
        assert urllib.request.urlopen(server.url + "/health").status == 200

        def status(authorization):
            request = urllib.request.Request(server.url + "/v1/models", headers={"Authorization": authorization})
            with contextlib.suppress(urllib.error.HTTPError):
                return urllib.request.urlopen(request).status
            return 401
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer "]:
            assert status(f"{scheme} secret-key-for-tests") == 200, scheme
        for refused in ["Basic secret-key-for-tests", "Bearer", "Bearer ", "secret-key-for-tests", "Bearer x"]:
            assert status(refused) == 401, refused


def test_full_queue_is_429_with_retry_after():
    with Server(max_running=1, max_waiting=2) as server:
        client = server.client()

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
        # What never fits is not told to come again.
        for change, param in [(dict(n=3), "n"), (dict(prompt=["a", "b", "c"]), "prompt")]:
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(**{**dict(model=MODEL, prompt="a", max_tokens=1), **change})
            assert caught.value.param == param
            assert "retry-after" not in caught.value.response.headers


def test_sigterm_drains():
    with Server() as server:
        stream = server.client().chat.completions.create(**dict(ASK, max_tokens=60), stream=True,
                                                         extra_body={"ignore_eos": True})
        next(iter(stream))
        server.process.terminate()
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        assert server.process.wait(timeout=30) == 0


def test_sigterm_cuts_what_does_not_end_in_time():
    """After drain_ms every client gets a clean end, and the process ends well."""
    with Server("--set", "drain_ms=1500") as server:
        whole = server.send("/v1/completions", dict(LONG, max_tokens=7000))
        stream = server.send("/v1/completions", dict(LONG, max_tokens=7000, stream=True))
        unread = server.send("/v1/completions", dict(LONG, max_tokens=7000, stream=True, n=4, logprobs=20),
                             receive_buffer=4096)
        wait_until(lambda: server.metric("num_requests_running") == 6, 20)
        server.process.terminate()
        start = time.monotonic()
        assert server.process.wait(timeout=20) == 0
        assert 1.4 < time.monotonic() - start < 8
        head, _, body = read_all(whole).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503"), head
        assert b"shutting down" in body and json.loads(body)["error"]["type"] == "server_error"
        events = read_all(stream)
        assert b"shutting down" in events and events.endswith(b"0\r\n\r\n"), events[-300:]
        unread.close()


@pytest.mark.parametrize("stream", [False, True])
def test_sigterm_does_not_wait_for_a_client_that_vanished(stream):
    with Server() as server:  # drain_ms is 30 s
        with server.send("/v1/completions", dict(LONG, max_tokens=7000, stream=stream)):
            wait_until(lambda: server.metric("num_requests_running") == 1, 20)
        server.process.terminate()
        start = time.monotonic()
        assert server.process.wait(timeout=60) == 0
        assert time.monotonic() - start < 5


class Frozen:
    """One thread of a child process, stopped by ptrace: what a hung engine looks like from outside."""
    SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000

    def __init__(self, process, name):
        tasks = pathlib.Path(f"/proc/{process.pid}/task").iterdir()
        self.thread = next(int(t.name) for t in tasks if (t / "comm").read_text().strip() == name)
        self.ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self.ptrace.argtypes = [ctypes.c_long] * 4

    def call(self, request):
        if self.ptrace(request, self.thread, 0, 0) != 0:
            pytest.skip(f"ptrace is not allowed here: {os.strerror(ctypes.get_errno())}")

    def __enter__(self):
        self.call(self.SEIZE)
        self.call(self.INTERRUPT)
        os.waitpid(self.thread, self.WALL)

    def __exit__(self, *_):
        self.call(self.DETACH)


def test_health_tells_of_a_dead_engine():
    def health(server):
        try:
            with urllib.request.urlopen(server.url + "/health", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    with Server(stall_ms=1000) as server:
        assert health(server) == (200, {"status": "ok", "models": {MODEL: "ok"}})
        with server.send("/v1/completions", LONG) as s:
            wait_until(lambda: server.metric("num_requests_running") == 1, 20)
            with Frozen(server.process, "engine"):
                wait_until(lambda: health(server)[0] == 503, 10)
                status, body = health(server)
                assert (status, body["status"]) == (503, "unhealthy")
                assert "no step has ended for" in body["models"][MODEL]
            wait_until(lambda: health(server)[0] == 200, 10)
