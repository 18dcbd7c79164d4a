"""The proxy before a prefill and a decode pool, against servers that compute nothing."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from inferlab.lab import kv_transfer
from inferlab.lab.disaggregated_proxy import Answer, Proxy, Relay
from inferlab.lab.server import free_port
from inferlab.lab.yaml_file import SpecificationError
from tests.proxy_fixture import (
    WAIT_S,
    WHERE,
    Worker,
    client_of,
    hand_over,
    pair,
    serving,
    two_chunks,
)


def test_the_prompt_is_computed_first_and_the_whole_request_follows_with_where_its_kv_lies() -> (
    None
):
    order: list[str] = []

    async def prefilling(body: dict[str, Any], http: Request) -> Response:
        order.append("prefill begins")
        await asyncio.sleep(0.05)
        order.append("prefill ends")
        return await hand_over(body, http)

    async def decoding(body: dict[str, Any], http: Request) -> Response:
        order.append("decode begins")
        return await two_chunks(body, http)

    asked = {
        "prompt": "once",
        "max_tokens": 50,
        "min_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    with pair(prefilling, decoding) as servers:
        answer = servers.ask(**asked)
        assert answer.text == 'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert order == ["prefill begins", "prefill ends", "decode begins"]
        (prefill,), (decode,) = servers.prefill.bodies, servers.decode.bodies
    assert prefill.pop("kv_transfer_params")["do_remote_decode"] is True
    # More than one token would be decoding; vLLM refuses a minimum above the maximum.
    assert prefill == {"prompt": "once", "max_tokens": 1, "stream": False, "temperature": 0}
    assert decode == {**asked, "kv_transfer_params": WHERE}


def test_a_connector_that_finds_the_kv_itself_needs_nothing_handed_over() -> None:
    async def nothing(body: dict[str, Any], http: Request) -> Response:
        return JSONResponse({"choices": [], "kv_transfer_params": None})

    with pair(nothing) as servers:
        assert servers.ask().status_code == 200
        assert "kv_transfer_params" not in servers.decode.bodies[0]


def test_a_chat_keeps_its_path_and_its_own_name_for_the_limit() -> None:
    with pair() as servers:
        servers.ask("/v1/chat/completions", messages=[], max_completion_tokens=50)
        assert servers.prefill.bodies[0]["max_completion_tokens"] == 1
        assert servers.decode.bodies[0]["max_completion_tokens"] == 50
        assert servers.prefill.paths == servers.decode.paths == ["/v1/chat/completions"]


def test_one_request_id_follows_both_legs() -> None:
    with pair() as servers:
        given = servers.client.post(
            "/v1/completions", json={"prompt": "once"}, headers={"x-request-id": "mine"}
        )
        made = [servers.ask().headers["x-request-id"] for _ in range(2)]
        assert servers.prefill.ids == servers.decode.ids == ["mine", *made]
        assert given.headers["x-request-id"] == "mine"
        assert made[0] != made[1]


def test_a_chunk_arrives_before_the_next_one_exists() -> None:
    received = threading.Event()

    async def waiting(body: dict[str, Any], http: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "data: first\n\n"
            # A proxy that buffers would never deliver the first, and this would not go on.
            yield f"data: {await asyncio.to_thread(received.wait, WAIT_S)}\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    with (
        pair(decode=waiting) as servers,
        servers.client.stream("POST", "/v1/completions", json={"prompt": "once"}) as answer,
    ):
        pieces = answer.iter_text()
        assert next(pieces) == "data: first\n\n"
        received.set()
        assert next(pieces) == "data: True\n\n"


def test_more_requests_run_at_once_than_a_client_has_connections_by_default() -> None:
    number, running = 110, 0
    everyone = asyncio.Event()

    async def together(body: dict[str, Any], http: Request) -> Response:
        nonlocal running
        running += 1
        if running == number:
            everyone.set()
        await asyncio.wait_for(everyone.wait(), WAIT_S)
        return JSONResponse({})

    async def ask_all(url: str) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=2 * WAIT_S, limits=limits, verify=False) as client:
            posts = (client.post(url, json={"prompt": "once"}) for _ in range(number))
            return [answer.status_code for answer in await asyncio.gather(*posts)]

    with pair(decode=together) as servers:
        url = f"{servers.client.base_url}/v1/completions"
        assert asyncio.run(ask_all(url)) == [200] * number


def test_the_servers_of_a_pool_take_turns() -> None:
    prefill, decode = [Worker(hand_over), Worker(hand_over)], [Worker(two_chunks) for _ in range(3)]
    with (
        serving(*(worker.app for worker in (*prefill, *decode))) as urls,
        serving(Proxy(urls[:2], urls[2:]).app) as (proxy,),
        client_of(proxy) as client,
    ):
        for _ in range(6):
            client.post("/v1/completions", json={"prompt": "once"})
    assert [len(worker.bodies) for worker in prefill] == [3, 3]
    assert [len(worker.bodies) for worker in decode] == [2, 2, 2]


def refusal(answer: httpx.Response) -> str:
    message: str = answer.json()["error"]["message"]
    return message


@pytest.mark.parametrize(("dead", "asked"), [("prefill", []), ("decode", ["prefill"])])
def test_an_error_names_the_server_that_is_dead(dead: str, asked: list[str]) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    alive = Worker(hand_over)
    with serving(alive.app) as (url,):
        prefill, decode = (nobody, url) if dead == "prefill" else (url, nobody)
        with serving(Proxy([prefill], [decode]).app) as (proxy,), client_of(proxy) as client:
            answer = client.post("/v1/completions", json={"prompt": "once"})
            health = client.get("/health")
    assert answer.status_code == 502
    assert refusal(answer).startswith(f"The {dead} server at {nobody} does not answer: ")
    assert len(alive.bodies) == len(asked)
    assert health.status_code == 503
    assert refusal(health) == f"These servers are not ready: {dead} at {nobody}."


def test_health_is_given_when_both_pools_are_healthy() -> None:
    with pair() as servers:
        assert servers.client.get("/health").status_code == 200


@pytest.mark.parametrize("task", ["prefill", "decode"])
def test_a_refusal_keeps_its_status_and_says_whose_it_is(task: str) -> None:
    async def refuse(body: dict[str, Any], http: Request) -> Response:
        return JSONResponse({"error": {"message": "The prompt is too long."}}, 400)

    async def crash(body: dict[str, Any], http: Request) -> Response:
        return Response("Internal Server Error", 500)

    for answerer, status, sentence in (
        (refuse, 400, "The prompt is too long."),
        (crash, 500, "Internal Server Error"),
    ):
        with pair(**{task: answerer}) as servers:
            answer = servers.ask()
            assert answer.status_code == status
            assert f"The {task} server at " in refusal(answer)
            assert refusal(answer).endswith(f" answered {status}: {sentence}")
            assert len(servers.decode.bodies) == (task == "decode")


def test_a_stream_whose_server_dies_ends_with_an_error_and_is_not_complete() -> None:
    async def dying(body: dict[str, Any], http: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "data: first\n\n"
            raise ConnectionError

        return StreamingResponse(chunks(), media_type="text/event-stream")

    pieces: list[str] = []
    with (
        pair(decode=dying) as servers,
        servers.client.stream("POST", "/v1/completions", json={"prompt": "once"}) as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        pieces.extend(answer.iter_text())
    first, error = "".join(pieces).strip().split("\n\n")
    assert first == "data: first"
    message = json.loads(error.removeprefix("data: "))["error"]["message"]
    assert message.startswith("The decode server at ")
    assert " broke off its answer: " in message


def test_the_decode_server_learns_that_the_client_has_left() -> None:
    left = threading.Event()

    async def endless(body: dict[str, Any], http: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            try:
                while True:
                    yield "data: more\n\n"
                    await asyncio.sleep(0.01)
            finally:
                left.set()

        return StreamingResponse(chunks(), media_type="text/event-stream")

    with pair(decode=endless) as servers:
        with servers.client.stream("POST", "/v1/completions", json={"prompt": "once"}) as answer:
            pieces = answer.iter_text()
            assert next(pieces).startswith("data: more")
            assert next(pieces).startswith("data: more")
            assert not left.is_set()
        assert left.wait(WAIT_S)


BODY = b'{"prompt": "once"}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
POST = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize("task", ["prefill", "decode"])
def test_a_client_that_leaves_before_any_answer_stops_the_server_at_work(task: str) -> None:
    begun, left = threading.Event(), threading.Event()

    async def wait_for_the_end(body: dict[str, Any], http: Request) -> Response:
        begun.set()
        while not await http.is_disconnected():
            await asyncio.sleep(0.01)
        left.set()
        return Response()

    with pair(**{task: wait_for_the_end}) as servers:
        url = servers.client.base_url
        with socket.create_connection((url.host, url.port)) as client:
            client.sendall(POST)
            assert begun.wait(WAIT_S)
        assert left.wait(WAIT_S)
        assert len(servers.decode.bodies) == (task == "decode")


def test_an_answer_that_nobody_waits_for_is_closed_before_it_began() -> None:
    """The client leaves between the head of the decode server's answer and its body."""
    response = httpx.Response(200, stream=Unread())

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def stuck(message: Any) -> None:
        await asyncio.Event().wait()

    relay = Relay(Answer("The decode server", response), "id")
    asyncio.run(relay({"type": "http"}, gone, stuck))
    assert response.is_closed


class Unread(httpx.AsyncByteStream):
    """A body of which nothing may be asked."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""


@pytest.mark.parametrize("body", [{"n": 2}, {"prompt": ["a", "b"]}, {"prompt": [[1], [2]]}])
def test_several_sequences_are_refused(body: dict[str, Any]) -> None:
    with pair() as servers:
        answer = servers.ask(**body)
        assert answer.status_code == 400
        assert "send several requests instead" in refusal(answer)
        assert servers.prefill.bodies == []


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2], [[1, 2]]])
def test_one_sequence_is_taken_however_it_is_written(prompt: Any) -> None:
    with pair() as servers:
        assert servers.ask(prompt=prompt, n=1).status_code == 200
        assert servers.decode.bodies[0]["prompt"] == prompt


def test_each_server_is_told_its_role() -> None:
    flags = {"max-model-len": 1024, kv_transfer.CONNECTOR: "NixlConnector"}
    for task, role in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
        told = kv_transfer.server_flags(flags, task, "kv")
        assert told == {**flags, "kv-transfer-config.kv_role": role}


def test_what_is_stored_in_files_comes_from_whole_prompts() -> None:
    flags = {kv_transfer.CONNECTOR: "ExampleConnector"}
    prefill, decode = (
        kv_transfer.server_flags(flags, task, "kv") for task in ("prefill", "decode")
    )
    folder = "kv-transfer-config.kv_connector_extra_config.shared_storage_path"
    assert prefill[folder] == decode[folder] == "kv"
    assert prefill["enable-chunked-prefill"] is False
    assert "enable-chunked-prefill" not in decode


def test_a_disaggregated_arm_without_a_connector_is_refused() -> None:
    with pytest.raises(SpecificationError, match="kv_connector with one of NixlConnector"):
        kv_transfer.server_flags({}, "prefill", "kv")
