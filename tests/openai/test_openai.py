"""What people's programs do with the official clients."""
import asyncio
import json
import subprocess
import time

import openai
import pytest

from conftest import ASK, MODEL, ROOT, Server

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


def test_a_prompt_is_scored(client):
    """As evaluation harnesses ask: echo, logprobs, and no or one new token. The prompt's log-probabilities are those
    that its tokens had when they were written."""
    ask = dict(model=MODEL, temperature=0, logprobs=2)
    written = client.completions.create(**ask, prompt="The sea is", max_tokens=8).choices[0]
    text = "The sea is" + written.text
    scored = client.completions.create(**ask, prompt=text, max_tokens=0, echo=True)
    choice, found = scored.choices[0], scored.choices[0].logprobs
    assert choice.text == text and choice.finish_reason == "length" and scored.usage.completion_tokens == 0
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert len(found.tokens) == scored.usage.prompt_tokens
    assert found.tokens[-8:] == written.logprobs.tokens
    assert found.token_logprobs[-8:] == written.logprobs.token_logprobs
    assert found.text_offset[0] == 0 and found.text_offset[-8] == len("The sea is")
    one = client.completions.create(**ask, prompt=text, max_tokens=1, echo=True).choices[0]
    assert one.logprobs.token_logprobs[:-1] == found.token_logprobs and one.text.startswith(text)
    streamed = [c.choices[0] for c in client.completions.create(**ask, prompt=text, max_tokens=1, echo=True, stream=True)]
    assert "".join(c.text for c in streamed) == one.text
    assert [p for c in streamed if c.logprobs for p in c.logprobs.token_logprobs] == one.logprobs.token_logprobs
    both = client.completions.create(**ask, prompt=["The sea", "A ship"], n=2, max_tokens=0, echo=True)
    assert [c.text for c in both.choices] == ["The sea", "The sea", "A ship", "A ship"]
    assert both.choices[2].logprobs.tokens == both.choices[3].logprobs.tokens


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


def test_text_offsets_count_characters_streamed_and_whole(client):
    # The model repeats what it has just read: characters of two to four bytes, some of several tokens.
    ask = dict(model=MODEL, prompt="日本語 café 🙂 日本語 café 🙂 日本語 café 🙂 日本語", max_tokens=24, temperature=0, logprobs=3)
    choice = client.completions.create(**ask).choices[0]
    text, whole = choice.text, choice.logprobs
    assert any(ord(c) > 0x2000 for c in text), text
    assert any(t.startswith("bytes:") for t in whole.tokens), whole.tokens
    for token, offset in zip(whole.tokens, whole.text_offset):
        if not token.startswith("bytes:") and not token.startswith("<|"):
            assert text[offset:].startswith(token), (token, offset, text)
    assert all(len(top) == 3 for top in whole.top_logprobs)  # no two share a name
    chunks = [c.choices[0] for c in client.completions.create(**ask, stream=True)]
    assert "".join(c.text for c in chunks) == text
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        assert [x for c in chunks if c.logprobs for x in getattr(c.logprobs, name)] == getattr(whole, name)


def test_top_p_of_zero_is_the_likeliest_token(client):
    greedy = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=8, temperature=0)
    assert client.completions.create(model=MODEL, prompt="The sky is", max_tokens=8, temperature=2,
                                     top_p=0).choices[0].text == greedy.choices[0].text


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
    (dict(stop="x" * 5000), openai.BadRequestError, "stop"),
    (dict(logit_bias={"9999999": 1}), openai.BadRequestError, "logit_bias"),
    (dict(extra_body={"top_k": 2**31 - 1}), openai.BadRequestError, "top_k"),
    (dict(extra_body={"stop_token_ids": [10**6]}), openai.BadRequestError, "stop_token_ids"),
    (dict(extra_body={"chat_template_kwargs": {"messages": [1]}}), openai.BadRequestError, "chat_template_kwargs"),
    (dict(messages=[{"role": "user", "content": [{"type": 5, "text": "x"}]}]), openai.BadRequestError,
     "messages[0].content"),
    (dict(messages=[{"role": "user", "content": [{"type": None, "text": "x"}]}]), openai.BadRequestError,
     "messages[0].content"),
])
def test_errors_name_the_field(client, change, kind, param):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{**ASK, **change})
    assert caught.value.param == param, caught.value


@pytest.mark.parametrize("change, param", [
    (dict(prompt=[999999]), "prompt"),
    (dict(max_tokens=0), "max_tokens"),  # none at all is for a prompt that is echoed
    (dict(prompt=["x"] * 1025), "prompt"),  # more than the queue ever holds: to wait would not help
    (dict(prompt=["x"] * 9, n=128), "prompt"),
])
def test_errors_of_completions_name_the_field(client, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{**dict(model=MODEL, prompt="a", max_tokens=1), **change})
    assert caught.value.param == param, caught.value


def test_async_clients_together(server):
    async def main():
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        alone = (await client.chat.completions.create(**ASK)).choices[0].message.content
        together = await asyncio.gather(*[client.chat.completions.create(**ASK) for _ in range(16)])
        assert {a.choices[0].message.content for a in together} == {alone}  # company changes nothing

    asyncio.run(main())


def test_thousand_streams(server):
    """A thousand streams under way at once, each with the text that its request has alone."""
    kinds, streams, places = 32, 1000, 256  # different requests; all of them; how many run in one step (max_running)

    async def main():
        # Two clients: each opens a thousand connections at most.
        clients = [openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=600)
                   for _ in range(2)]

        async def one(i):
            stream = await clients[i % 2].completions.create(
                model=MODEL, prompt=f"The number {i % kinds} is", max_tokens=3, temperature=1, seed=i % kinds, stream=True,
                extra_body={"ignore_eos": True})
            chunks = [chunk.choices[0] async for chunk in stream]
            assert [c.finish_reason for c in chunks if c.finish_reason] == ["length"]
            return "".join(c.text for c in chunks)

        def under_way():
            return server.metric("num_requests_running") + server.metric("num_requests_waiting")

        async def hold_a_place():
            return await clients[0].completions.create(model=MODEL, prompt="Once", max_tokens=1000, stream=True,
                                                       extra_body={"ignore_eos": True})

        alone = [await one(i) for i in range(kinds)]
        assert len(set(alone)) > kinds * 3 / 4  # a text that went to another request would show
        held = await asyncio.gather(*[hold_a_place() for _ in range(places)])
        all_of_them = [asyncio.create_task(one(i)) for i in range(streams)]
        until = time.monotonic() + 120
        while await asyncio.to_thread(under_way) < places + streams:
            assert time.monotonic() < until, "they are not all under way"
            await asyncio.sleep(0.05)
        for stream in held:
            await stream.close()
        texts = await asyncio.gather(*all_of_them)
        assert [i for i, text in enumerate(texts) if text != alone[i % kinds]] == []

    asyncio.run(main())


def see_with_node(server, model):
    out = subprocess.run([ROOT / "tests/npm", "--node", ROOT / ".cache/openai-node/client.mjs", server.url + "/v1", model],
                         capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_node_client(server):
    seen = see_with_node(server, MODEL)
    assert seen["whole"] == seen["streamed"] == seen["helper"] and seen["whole"].strip()
    assert seen["error"] == {"kind": "BadRequestError", "status": 400, "param": "temperature"}
    assert seen["models"] == [MODEL] and seen["usage"]["total_tokens"] > 0


def test_a_name_with_a_slash():
    """Models of hubs are called owner/name; the clients escape the slash in the path of /v1/models/NAME."""
    name = "org/tiny 1"
    with Server(served_name=name) as server:
        client = server.client()
        assert [m.id for m in client.models.list()] == [name]
        assert client.models.retrieve(name).id == name
        assert see_with_node(server, name)["retrieved"] == name
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("org/other")
        assert "`org/other` does not exist" in str(caught.value)
