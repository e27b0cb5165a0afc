"""What the tests play on: a redis-server and a hubbub of their own, on ports nobody else has.

Each is stopped by its own process id, and nothing waits for a fixed time.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = os.environ.get("HUBBUB_BIN", str(ROOT / "target/debug/hubbub"))
LOGS = ROOT / "target/test-logs"
# How long a test waits for what must happen. Generous: the machine is shared and busy.
SOON = 10.0
POLL = 0.01
# Loopback, whatever proxy the surroundings name.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


async def eventually(what, ask, limit=SOON):
    """Asks until the answer is true, and returns it."""
    end = time.monotonic() + limit
    while True:
        answer = ask()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:.1f} s: {what}")
        await asyncio.sleep(POLL)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment(knobs):
    """The surroundings without their own HUB_ knobs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HUB_")}
    return {**env, **knobs}


class Process:
    def __init__(self, child):
        self.child = child

    async def stop(self, number=signal.SIGTERM):
        """Politely; by force once it does not listen. Returns the exit code."""
        if self.child.returncode is None:
            self.child.send_signal(number)
            try:
                await asyncio.wait_for(self.child.wait(), SOON)
            except asyncio.TimeoutError:
                self.child.kill()
                await self.child.wait()
                raise AssertionError(f"{self.child.pid} does not end") from None
        return self.child.returncode


class Redis(Process):
    @classmethod
    async def start(cls, port=None):
        port = port or free_port()
        args = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        child = await asyncio.create_subprocess_exec(
            "redis-server", *args, "--dir", tempfile.gettempdir(), stdout=subprocess.DEVNULL
        )
        redis = cls(child)
        redis.port = port
        await eventually("redis-server answers", redis._answers)
        return redis

    async def _answers(self):
        return await self.cli("PING", check=False) == "PONG"

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    async def cli(self, *args, check=True):
        child = await asyncio.create_subprocess_exec(
            "redis-cli",
            "-p",
            str(self.port),
            *args,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        out, _ = await child.communicate()
        assert child.returncode == 0 or not check, f"redis-cli {args}: {out!r}"
        return out.decode().rstrip()

    async def publish(self, channel, data):
        """Publishes as any back end would; the answer is how many nodes got it."""
        return int(await self.cli("PUBLISH", channel, json.dumps(data)))

    async def subscribers(self, channel):
        return int((await self.cli("PUBSUB", "NUMSUB", channel)).split("\n")[1])


class Hub(Process):
    @classmethod
    async def start(cls, port=0, **knobs):
        LOGS.mkdir(parents=True, exist_ok=True)
        env = environment(
            {
                "HUB_DEV": "true",
                "HUB_LISTEN": f"127.0.0.1:{port}",
                "HUB_SHARDS": os.environ.get("HUBBUB_TEST_SHARDS", "2"),
                **knobs,
            }
        )
        with open(LOGS / "hubbub-of-python-tests.log", "ab") as log:
            child = await asyncio.create_subprocess_exec(
                BINARY, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        hub = cls(child)
        try:
            hub.origin = await asyncio.wait_for(hub._announcement(), SOON)
            hub.port = int(hub.origin.rsplit(":", 1)[1])
            await eventually("hubbub is ready", hub._ready)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            raise
        return hub

    @classmethod
    async def on(cls, redis, port=0):
        return await cls.start(port, HUB_REDIS_URL=redis.url)

    async def _announcement(self):
        start = "hubbub listening on "
        async for line in self.child.stdout:
            if line.decode().startswith(start):
                return line.decode().removeprefix(start).strip()
        raise AssertionError(f"hubbub ended with {await self.child.wait()} at its start")

    async def _ready(self):
        try:
            await asyncio.to_thread(HTTP.open, f"{self.origin}/ready", None, SOON)
            return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    @property
    def socket_url(self):
        return self.origin.replace("http", "ws", 1) + "/connection/websocket"

    async def publish(self, channel, data):
        body = json.dumps({"channel": channel, "data": data}).encode()
        url = f"{self.origin}/api/publish"
        response = await asyncio.to_thread(HTTP.open, url, body, SOON)
        answer = json.load(response)
        assert "result" in answer, answer
