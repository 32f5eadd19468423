"""Many clients polling one serving side on one core: how many miss their deadline; and what a poll costs a client.

Starts ``python -m harness.remote serve`` on one core of its own, then polls it from asyncio over TLS: every client has
a connection of its own and asks every ``--interval`` seconds, spread evenly. Before that, one real client polls an
unchanged server in a loop, and its CPU time for one poll is taken. Status 1 if a client misses its deadline or a poll
costs a millisecond. Everything on loopback; run it on a quiet machine with two cores or more:

    python benchmarks/remote_clients.py --clients 1000 --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import grpc
import psutil

from harness.remote import messages
from harness.remote.client import Client
from harness.remote.endpoint import Endpoint, token_of
from harness.remote.state import State
from harness.remote.wire.config_pb2 import ClientGetConfigsRequest, ClientGetConfigsResponse
from harness.telemetry import Registry

FILES = 10
ROOT = Path(__file__).parents[1]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clients", type=int, default=1000)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--interval", type=float, default=5.0)
    options.add_argument("--deadline", type=float, default=1.0)
    wanted = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for n in range(FILES):
            file = directory / f"datadog/2/TESTING1/{n}/config"
            file.parent.mkdir(parents=True)
            file.write_bytes(os.urandom(1000))
        server, said = serve(directory, cores[0])
        os.sched_setaffinity(0, set(cores[1:]) or set(cores))
        try:
            cheap = poll_cost(said) < 1.0
            return int(asyncio.run(load(said, wanted, server)) > 0 or not cheap)
        finally:
            server.terminate()
            server.wait()


def serve(directory: Path, core: int) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The serving side, held to one core, and where its things are."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.remote", "serve", str(directory), "--listen", "127.0.0.1:0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    assert process.stdout is not None
    said = {"url": process.stdout.readline().strip()}
    for _ in range(3):
        key, _, value = process.stdout.readline().partition(" ")
        said[key] = value.strip()
    return process, said


def poll_cost(said: dict[str, str], polls: int = 500) -> float:
    """Milliseconds of CPU of one client's unchanged poll, threads of the library included."""
    endpoint = Endpoint(said["url"], ca=Path(said["ca"]))
    state = State.verified(Path(said["root"]).read_bytes())
    with Client(
        endpoint.fetcher(token_of(Path(said["token"]))), state, products=["TESTING1"], metrics=Registry()
    ) as client:
        client.update()
        assert len(client.state.configs) == FILES
        batches = []
        for _ in range(15):
            before = time.process_time()
            for _ in range(polls // 15):
                client.poll()
            batches.append((time.process_time() - before) / (polls // 15) * 1e3)
        assert client.schedule.last_error == ""
    cost = statistics.median(batches)
    print(f"an unchanged poll with {FILES} files: {cost:.2f} ms of CPU (median of 15 batches)", flush=True)
    return cost


async def load(said: dict[str, str], wanted: argparse.Namespace, server: subprocess.Popen[str]) -> int:
    """All clients at once, for as long as asked; how many answers came too late or not at all."""
    credentials = grpc.ssl_channel_credentials(Path(said["ca"]).read_bytes())
    metadata = (("authorization", f"Bearer {Path(said['token']).read_text().strip()}"),)
    state = State.verified(Path(said["root"]).read_bytes())
    async with channel(said, credentials) as first:
        answer = await method(first)(asked(state, "x" * 21), metadata=metadata)
        state = state.apply(messages.update_of(answer), now=datetime.now(UTC)).state
    channels = [channel(said, credentials) for _ in range(wanted.clients)]
    # Connected first, a few at a time: handshakes are not what is measured.
    for at in range(0, len(channels), 50):
        await asyncio.gather(*(each.channel_ready() for each in channels[at : at + 50]))
    times: list[float] = []
    missed: dict[str, int] = {}
    process = psutil.Process(server.pid)
    cpu = sum(process.cpu_times()[:2])
    begun = time.monotonic()

    async def client(n: int) -> None:
        call, request = method(channels[n]), asked(state, f"{n:021d}")
        due = begun + n / wanted.clients * wanted.interval
        while due < begun + wanted.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            try:
                got = await call(request, metadata=metadata, timeout=wanted.deadline)
                assert not got.ByteSize()
                times.append(time.monotonic() - sent)
            except grpc.aio.AioRpcError as error:
                missed[error.code().name] = missed.get(error.code().name, 0) + 1
            due += wanted.interval

    await asyncio.gather(*(client(n) for n in range(wanted.clients)))
    elapsed = time.monotonic() - begun
    cpu = sum(process.cpu_times()[:2]) - cpu
    await asyncio.gather(*(each.close() for each in channels))
    times = sorted(times) or [float("inf")]
    p50, p99 = times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3
    print(f"{wanted.clients} clients every {wanted.interval:g} s for {elapsed:.0f} s: {len(times)} answers, "
          f"{sum(missed.values())} missed {missed or ''} at a deadline of {wanted.deadline:g} s")  # fmt: skip
    print(f"latency: median {p50:.1f} ms, 99 % {p99:.1f} ms, longest {times[-1] * 1e3:.1f} ms; "
          f"the server used {cpu / elapsed:.0%} of its core")  # fmt: skip
    return sum(missed.values())


def channel(said: dict[str, str], credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    return grpc.aio.secure_channel(said["url"].removeprefix("grpcs://"), credentials, options=options)


def method(on: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable:
    return on.unary_unary(
        messages.METHOD,
        request_serializer=ClientGetConfigsRequest.SerializeToString,
        response_deserializer=ClientGetConfigsResponse.FromString,
    )


def asked(state: State, id: str) -> ClientGetConfigsRequest:
    return messages.request(state, id, ["TESTING1"], messages.Agent("load"))


if __name__ == "__main__":
    sys.exit(main())
