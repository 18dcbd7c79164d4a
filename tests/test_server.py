"""The server as clients meet it: the `openai` package, and plain HTTP where bytes matter."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from inferlab.engine import LLM, SamplingParams
from inferlab.engine.async_llm import AsyncLLM, Call
from inferlab.engine.openai_api import load_chat_template
from inferlab.engine.server import Server, listen
from tests.oracle import MARGIN, decision_margin
from tests.server_fixture import CHECKPOINT, OurServer, our_server

QUESTION = "What is 12 + 34?"
PROMPT = f"<|bos|><|user|>{QUESTION}<|end|><|assistant|>"
STORY = "<|bos|><|user|>Tell me a story<|end|><|assistant|>"
MODEL = "tiny-chat"


@pytest.fixture(scope="module")
def server() -> Iterator[OurServer]:
    with our_server("--num-blocks", "2000") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: OurServer) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(CHECKPOINT, num_blocks=2000)


def chat(client: openai.OpenAI, **options: Any) -> Any:
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def test_a_completion_is_that_of_the_engine(client: openai.OpenAI, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(temperature=0))
    answer = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == MODEL
    assert answer.choices[0].text == expected.text == "46"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids) == 14
    assert answer.usage.completion_tokens == len(expected.token_ids) == 3
    assert answer.usage.total_tokens == 17


def test_a_chat_is_the_completion_of_its_template(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0)
    assert answer.object == "chat.completion"
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == (
        "assistant",
        "46",
        "stop",
    )
    assert answer.usage.prompt_tokens == 14
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "12 + 34?"}]
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": parts}],  # type: ignore[list-item,misc]
        temperature=0,
    )
    assert answer.choices[0].message.content == "46"


def test_a_prompt_may_be_text_token_ids_or_several_of_either(
    client: openai.OpenAI, llm: LLM
) -> None:
    ids = llm.tokenizer.encode(PROMPT).ids
    other = "<|bos|><|user|>What is 20 + 30?<|end|><|assistant|>"
    prompts: list[Any] = [PROMPT, [PROMPT, other], ids, [ids, ids[:-1]]]
    for prompt in prompts:
        answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, n=2)
        several = prompt if isinstance(prompt[0], list) or len(prompt) == 2 else [prompt]
        expected = [
            completion.text for completion in llm.generate(several, SamplingParams(temperature=0))
        ]
        texts = [choice.text for choice in sorted(answer.choices, key=lambda c: c.index)]
        assert texts == [text for text in expected for _ in range(2)]


@pytest.mark.parametrize("options", [{}, {"n": 3, "seed": 11}, {"logprobs": 2, "seed": 3}], ids=str)
def test_a_stream_gives_what_the_whole_answer_gives(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    asked = {"model": MODEL, "prompt": STORY, "max_tokens": 24, "seed": 5, **options}
    whole = client.completions.create(**asked)
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    texts = [""] * len(whole.choices)
    reasons: list[str | None] = [None] * len(texts)
    logprobs: list[Any] = [[] for _ in texts]
    *chunks, last = stream
    assert len(chunks) > len(texts)
    for chunk in chunks:
        assert chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = reasons[choice.index] or choice.finish_reason
            if choice.logprobs is not None:
                logprobs[choice.index] += zip(
                    choice.logprobs.tokens or [], choice.logprobs.text_offset or []
                )
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    for choice, streamed in zip(whole.choices, logprobs):
        if choice.logprobs is not None:
            assert streamed == list(
                zip(choice.logprobs.tokens or [], choice.logprobs.text_offset or [])
            )
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_tokens_are_sent_at_once_and_not_held_for_the_next() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_chat_stream_names_its_role_once(client: openai.OpenAI) -> None:
    stream = chat(client, stream=True, temperature=0, n=2)
    deltas: list[list[Any]] = [[], []]
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        deltas[chunk.choices[0].index].append(chunk.choices[0])
    for choices in deltas:
        assert [choice.delta.role for choice in choices] == ["assistant", None, None]
        assert "".join(choice.delta.content for choice in choices) == "46"
        assert [choice.finish_reason for choice in choices] == [None, None, "stop"]


def test_stop_strings_are_never_leaked(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": STORY, "max_tokens": 60, "temperature": 0}
    asked["extra_body"] = {"ignore_eos": True}
    free = client.completions.create(**asked).choices[0].text
    pieces = [c.choices[0].text for c in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == free
    sent, straddling = "", []
    for i, piece in enumerate(pieces[:-1]):
        sent += piece
        joint = piece[-1:] + pieces[i + 1][:1]  # begins in one token and ends in the next
        if len(joint) == 2 and joint not in sent:
            straddling.append((joint, free.index(joint)))
    assert len(straddling) > 5
    for stop, start in straddling[:6]:
        for several in (stop, [stop, "never to be seen"]):
            stream = list(client.completions.create(**asked, stream=True, stop=several))
            texts = [chunk.choices[0].text for chunk in stream]
            assert "".join(texts) == free[:start]
            assert stream[-1].choices[0].finish_reason == "stop"
    # As offline, where the same detokenizer reads.
    offline = LLM(CHECKPOINT).generate(
        [STORY], SamplingParams(60, 0.0, ignore_eos=True, stop=(straddling[0][0],))
    )
    assert offline[0].text == free[: straddling[0][1]]


def test_seeded_choices_differ_and_come_again(client: openai.OpenAI, llm: LLM) -> None:
    def texts(seed: int | None, n: int) -> list[str]:
        answer = client.completions.create(model=MODEL, prompt=STORY, n=n, seed=seed, max_tokens=16)
        return [choice.text for choice in answer.choices]

    first = texts(7, 4)
    assert len(set(first)) == 4
    assert texts(7, 4) == first
    assert texts(7, 2) == first[:2]
    assert not set(texts(8, 4)) & set(first)
    assert texts(None, 4) != texts(None, 4)
    (offline,) = llm.generate([STORY], SamplingParams(seed=7))
    assert first[0] == offline.text


def test_logprobs_are_those_of_transformers(client: openai.OpenAI, llm: LLM) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = llm.tokenizer.encode(STORY).ids
    asked: dict[str, Any] = {"seed": 3, "max_tokens": 8, "temperature": 0.7, "logprobs": 3}
    (own,) = llm.generate([ids], SamplingParams(max_tokens=8, temperature=0.7, seed=3))
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids + own.token_ids])).logits[0, len(ids) - 1 : -1]
    expected = torch.log_softmax(logits.double(), dim=-1)
    answer = client.completions.create(model=MODEL, prompt=STORY, **asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    chosen = expected[range(8), own.token_ids]
    np.testing.assert_allclose(logprobs.token_logprobs, chosen, atol=1e-3)
    assert logprobs.tokens == [llm.tokenizer.decode([i]) for i in own.token_ids]
    assert "".join(logprobs.tokens) == answer.choices[0].text
    best = expected.topk(3).values
    assert logprobs.top_logprobs is not None
    for found, values, own_value in zip(logprobs.top_logprobs, best, chosen):
        largest = sorted(found.values(), reverse=True)[:3]
        np.testing.assert_allclose(largest, values, atol=1e-3)
        assert min(abs(p - float(own_value)) for p in found.values()) < 1e-3

    chatted = chat(client, temperature=0, logprobs=True, top_logprobs=2, max_tokens=2)
    for entry in chatted.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy: the best is the chosen one
        assert bytes(entry.bytes).decode() == entry.token
    assert chat(client, temperature=0).choices[0].logprobs is None


def test_usage_says_what_came_from_the_prefix_cache(client: openai.OpenAI) -> None:
    prompt = STORY + "something that only this test asks for, and long enough for a few blocks"

    def cached(n: int) -> tuple[int, int]:
        usage = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2, n=n).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens is not None
        return usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens

    first, num_tokens = cached(1)
    assert num_tokens > 32
    assert first < 16  # no more than the story's first words, which other tests ask for too
    whole_blocks = (num_tokens - 1) // 16 * 16
    assert cached(1) == (whole_blocks, num_tokens)
    assert cached(3) == (whole_blocks, num_tokens)  # the prompt of three choices counts once


def test_vllms_extensions_are_taken(client: openai.OpenAI, llm: LLM) -> None:
    extra = {"ignore_eos": True, "top_k": 1, "min_p": 0.0, "repetition_penalty": 1.0}
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=9, extra_body=extra)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9  # past the end token
    (greedy,) = llm.generate([PROMPT], SamplingParams(9, 0.0, ignore_eos=True))
    assert answer.choices[0].text == greedy.text  # top_k 1 is greedy
    stopped = client.completions.create(
        model=MODEL, prompt=PROMPT, extra_body={"top_k": 1, "stop_token_ids": [greedy.token_ids[1]]}
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("4", "stop")
    everything = client.completions.create(
        model=MODEL, prompt=PROMPT, seed=1, extra_body={"top_k": -1}
    )
    assert everything.choices[0].text == llm.generate([PROMPT], SamplingParams(seed=1))[0].text


def test_a_chat_without_a_limit_ends_where_the_cache_does() -> None:
    with our_server("--num-blocks", "5") as small:
        answer = chat(small.client(), extra_body={"ignore_eos": True})
        assert answer.usage.total_tokens == 4 * 16 + 1  # the last token is never fed back
        assert answer.choices[0].finish_reason == "length"


BAD = [
    ({"temperature": -1}, "temperature is -1.0; it has to be 0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_p": 0}, "top_p is 0.0; it has to be above 0 and at most 1."),
    ({"presence_penalty": float("nan")}, "presence_penalty is nan"),
    ({"frequency_penalty": float("inf")}, "frequency_penalty is inf"),
    ({"max_tokens": 0}, "max_tokens is 0; it has to be at least 1."),
    ({"max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
    ({"seed": -5}, "seed is -5"),
    ({"n": 0}, "n: Input should be greater than or equal to 1."),
    ({"stop": ["a", ""]}, "it has to be non-empty strings"),
    ({"logprobs": -1}, "logprobs is -1"),
    ({"prompt": ""}, "empty prompt"),
    ({"prompt": []}, "empty prompt"),
    ({"prompt": ["a", 1]}, "prompt: give text"),
    ({"prompt": [[]]}, "empty prompt"),
    ({"prompt": [5, 640]}, "the vocabulary has ids 0 to 639"),
    ({"prompt": [7] * 9000}, "the cache can hold 8192 for one request"),
    ({"prompt": None}, "prompt: Field required."),
    ({"echo": True}, "does not support 'echo'"),
    ({"logit_bias": {"5": 1}}, "does not support 'logit_bias'"),
    ({"skip_special_tokens": False}, "does not support 'skip_special_tokens'"),
    ({"best_of": 3}, "best_of: Input should be 1."),
    ({"prompt": "\ud800"}, "surrogates not allowed"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=lambda value: str(value)[:40])
def test_what_makes_no_sense_is_refused_in_one_sentence(
    server: OurServer, fields: dict[str, Any], message: str
) -> None:
    body = json.dumps({"model": MODEL, "prompt": PROMPT, **fields})  # NaN included, unlike httpx's
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]


def test_the_client_raises_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is -1"):
        client.completions.create(model=MODEL, prompt=PROMPT, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="temperature is -1"):
        list(client.completions.create(model=MODEL, prompt=PROMPT, temperature=-1, stream=True))
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=MODEL, messages=[])
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.role"):
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "wizard", "content": "hello"}],  # type: ignore[list-item,misc]
        )
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here") as caught:
        client.completions.create(model="gpt-4", prompt=PROMPT)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="a")
    # A call of which one prompt is refused leaves nothing of the others behind.
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model=MODEL, prompt=[[5, 6], [5, 640]])
    assert client.completions.create(model=MODEL, prompt=PROMPT, temperature=0).choices[0].text


def test_malformed_json_and_other_methods_are_refused(server: OurServer) -> None:
    headers = {"content-type": "application/json"}
    for content, status in ((b'{"prompt": ', 400), (b"[]", 400), (b"", 400), (b"\xff", 400)):
        answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (
            status,
            "invalid_request_error",
        )
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert httpx.get(f"{server.url}/nothing").json()["error"]["message"] == "Not Found."


def test_models_health_and_metrics(server: OurServer, client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert httpx.get(f"{server.url}/health").status_code == 200
    before = server.metrics()
    assert before.cache == {"kv_block_size_tokens": 16, "num_gpu_blocks": 2000}
    prompt = [9] * 40
    for _ in range(2):
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=5)
    grown = {
        name.removeprefix("vllm:"): value - before.values[name]
        for name, value in server.metrics().values.items()
        if value != before.values[name]
    }
    assert grown.pop("request_queue_time_seconds_sum") > 0
    num_tokens = grown.pop("generation_tokens_total")
    steps = grown.pop("iteration_tokens_total_count")
    assert 2 <= num_tokens == steps <= 10  # one token a step, alone
    assert grown == {
        "prompt_tokens_total": 80,
        "prefix_cache_queries_total": 80,
        "prefix_cache_hits_total": 32,
        "iteration_tokens_total_sum": 80 - 32 + num_tokens - 2,
        "request_params_max_tokens_sum": 10,
        "request_success_total": 2,
    }


def test_text_is_never_broken_between_chunks(server: OurServer) -> None:
    """High temperature gives random bytes: each line decodes alone, and loses no character."""
    asked = {
        "prompt": STORY,
        "temperature": 100,
        "seed": 5,
        "max_tokens": 200,
        "ignore_eos": True,
        "n": 4,
    }
    url = f"{server.url}/v1/completions"
    whole = httpx.post(url, json=asked, timeout=60).json()["choices"]
    with httpx.stream("POST", url, json={**asked, "stream": True}, timeout=60) as stream:
        received = b"".join(stream.iter_raw())
    texts: list[list[str]] = [[] for _ in whole]
    for line in received.split(b"\n\n"):
        if line and line != b"data: [DONE]":
            chunk = json.loads(line.removeprefix(b"data: ").decode("utf-8", errors="strict"))
            texts[chunk["choices"][0]["index"]].append(chunk["choices"][0]["text"])
    assert ["".join(pieces) for pieces in texts] == [choice["text"] for choice in whole]
    # It did happen: bytes were held back, and some became characters of several bytes.
    assert all(len(pieces) == 200 and pieces.count("") > 10 for pieces in texts)
    every = "".join(choice["text"] for choice in whole)
    assert sum(ord(character) > 127 and character != "\ufffd" for character in every) >= 2


def num_aborted(server: OurServer) -> int:
    text = httpx.get(f"{server.url}/metrics").text
    return int(float(text.split('finished_reason="abort"} ')[1].split()[0]))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_clients_that_leave_midway_give_their_blocks_back(server: OurServer, llm: LLM) -> None:
    """Of 64 streams 8 are cut; the others end as if alone, and no block stays behind."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(6, 640, size=n).tolist() for n in rng.integers(5, 60, size=64)]
    leaving, num_tokens, too_many = set(range(0, 64, 8)), 16, 1500
    already, generated = num_aborted(server), server.value("generation_tokens_total")
    assert server.value("kv_cache_usage_perc") == 0

    async def stream(client: openai.AsyncOpenAI, i: int) -> list[str]:
        chunks = await client.completions.create(
            model=MODEL,
            prompt=prompts[i],
            max_tokens=too_many if i in leaving else num_tokens,
            temperature=0,
            logprobs=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        tokens: list[str] = []
        async for chunk in chunks:
            logprobs = chunk.choices[0].logprobs
            tokens += logprobs.tokens or [] if logprobs is not None else []
            if i in leaving and len(tokens) >= 3:
                await chunks.close()
                break
        return tokens

    async def all_streams() -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(stream(client, i) for i in range(64)))

    received = asyncio.run(all_streams())
    wait_until(lambda: server.value("kv_cache_usage_perc") == 0)
    assert num_aborted(server) - already == 8
    assert server.value("num_requests_running") == server.value("num_requests_waiting") == 0
    # They were running when they were cut, and did not go on after that.
    generated = server.value("generation_tokens_total") - generated
    assert generated < 56 * num_tokens + 8 * too_many / 4
    near_ties = 0
    greedy = SamplingParams(num_tokens, 0.0, ignore_eos=True)
    for i in set(range(64)) - leaving:
        (alone,) = llm.generate([prompts[i]], greedy)
        decode = llm.tokenizer.decode
        expected = [decode([t], skip_special_tokens=False) for t in alone.token_ids]
        assert len(received[i]) == num_tokens
        different = [k for k in range(num_tokens) if received[i][k] != expected[k]]
        if different:
            context = prompts[i] + alone.token_ids[: different[0]]
            assert decision_margin(llm, context) < MARGIN
            near_ties += 1
    assert near_ties <= 2


def test_a_client_that_leaves_before_the_whole_answer_is_noticed(server: OurServer) -> None:
    already = num_aborted(server)
    asked = {"prompt": [9] * 20, "max_tokens": 7000, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=asked, timeout=0.5)
    wait_until(lambda: num_aborted(server) == already + 1)
    wait_until(lambda: server.value("kv_cache_usage_perc") == 0)


def run_with_engine(scenario: Callable[[AsyncLLM], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        engine = AsyncLLM(LLM(CHECKPOINT), asyncio.get_running_loop())
        try:
            await scenario(engine)
        finally:
            engine.close()

    asyncio.run(run())


async def text_of(call: Call) -> str:
    return "".join([output.text async for outputs in call for output in outputs])


LONG = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)


def test_an_engine_without_work_sleeps() -> None:
    async def scenario(engine: AsyncLLM) -> None:
        questions = 0
        is_idle = engine._is_idle

        def count() -> bool:
            nonlocal questions
            questions += 1
            return is_idle()

        engine._is_idle = count  # type: ignore[method-assign]
        for _ in range(2):
            await text_of(await engine.submit([([5, 6], LONG)]))
            await asyncio.sleep(0.05)
            asked = questions
            assert asked >= 60  # once a step
            await asyncio.sleep(0.3)
            assert questions == asked

    run_with_engine(scenario)


def test_a_refused_call_harms_no_other() -> None:
    async def scenario(engine: AsyncLLM) -> None:
        alone = await text_of(await engine.submit([([5, 6], LONG)]))
        other = await engine.submit([([5, 6], LONG)])
        for prompt in ([640], [], [7] * 9000):
            with pytest.raises(ValueError, match=r"vocabulary|empty prompt|cache can hold"):
                await engine.submit([([5, 6], LONG), (prompt, LONG)])
        assert await text_of(other) == alone
        assert engine.llm.scheduler.kv_cache_manager.num_free_blocks == 511

    run_with_engine(scenario)


def test_a_failing_step_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(LLM(CHECKPOINT), load_chat_template(CHECKPOINT), MODEL, "http://test")
    step, steps = server.llm.step, 0

    def failing_step() -> Any:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise MemoryError("no room")
        return step()

    monkeypatch.setattr(server.llm, "step", failing_step)
    with TestClient(server.app) as client:
        asked = {"prompt": [5, 6], "max_tokens": 50, "ignore_eos": True}
        assert client.get("/health").status_code == 200
        streamed = client.post("/v1/completions", json={**asked, "stream": True})
        *events, last = streamed.text.strip().split("\n\n")
        assert len(events) == 3
        assert "no room" in json.loads(last.removeprefix("data: "))["error"]["message"]
        for answer in (client.post("/v1/completions", json=asked), client.get("/health")):
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "server_error"
        assert steps == 4


def test_a_port_that_is_taken_is_one_sentence_and_status_1(server: OurServer) -> None:
    port = server.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "inferlab.engine.server", "--model", str(CHECKPOINT)]
    second = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr == (
        f"Cannot listen on 127.0.0.1:{port} (Address already in use); choose another --port.\n"
    )
    assert second.stdout == ""


def test_a_folder_without_a_checkpoint_is_one_sentence_and_status_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inferlab.engine.server", "--model", str(tmp_path)]
    found = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert found.stderr.startswith(f"Cannot serve {tmp_path}: ")
    assert found.stderr.count("\n") == 1


def test_ctrl_c_ends_the_server_with_a_stream_in_progress() -> None:
    asked = {"prompt": [9] * 20, "max_tokens": 7000, "ignore_eos": True, "stream": True}
    with (
        our_server() as running,
        httpx.stream("POST", f"{running.url}/v1/completions", json=asked) as stream,
    ):
        assert next(stream.iter_lines()).startswith("data: ")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=20) == 0
