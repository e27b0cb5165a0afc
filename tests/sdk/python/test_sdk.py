"""centrifuge-python, unchanged, against a real hubbub and a real Redis."""

import asyncio
import base64
import hashlib
import hmac
import json
import signal
import tempfile
import time
import unittest

from centrifuge import (
    CentrifugeError,
    Client,
    ClientEventHandler,
    StreamPosition,
    SubscriptionEventHandler,
)
from centrifuge.exceptions import ReplyError

from stage import Hub, Redis, eventually


class Connects(ClientEventHandler):
    def __init__(self):
        self.count = 0
        self.end = None

    async def on_connected(self, ctx):
        self.count += 1

    async def on_disconnected(self, ctx):
        self.end = ctx.code


class Collector(SubscriptionEventHandler):
    def __init__(self):
        self.data = []
        self.end = None

    async def on_publication(self, ctx):
        self.data.append(ctx.pub.data)

    async def on_unsubscribed(self, ctx):
        self.end = ctx.code


class Served(Connects):
    """Collects what comes on server-side subscriptions."""

    def __init__(self):
        super().__init__()
        self.subscribed = []
        self.data = {}

    async def on_subscribed(self, ctx):
        self.subscribed.append(ctx)

    async def on_publication(self, ctx):
        self.data.setdefault(ctx.channel, []).append(ctx.pub.data)


def sign(claims, secret):
    """A JWT, HS256."""

    def encode(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    text = encode(b'{"alg":"HS256"}') + b"." + encode(json.dumps(claims).encode())
    signature = hmac.new(secret.encode(), text, hashlib.sha256).digest()
    return (text + b"." + encode(signature)).decode()


class Viewer:
    """A client that collects what arrives; it comes back fast, as a test cannot wait."""

    def __init__(self, hub, token="", connects=None):
        self.connects = connects or Connects()
        self.client = Client(
            hub.socket_url,
            events=self.connects,
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.2,
            proxy=None,
            token=token,
        )
        self.collectors = {}

    async def subscribe(self, channel):
        """A subscription, once hubbub has confirmed it."""
        collector = self.collectors[channel] = Collector()
        subscription = self.client.new_subscription(
            channel,
            events=collector,
            min_resubscribe_delay=0.02,
            max_resubscribe_delay=0.2,
        )
        await subscription.subscribe()
        await subscription.ready()
        return subscription

    def of(self, channel):
        return self.collectors[channel].data

    async def gets(self, channel, expected, limit=10.0):
        try:
            await eventually("", lambda: self.of(channel) == expected, limit)
        except AssertionError:
            raise AssertionError(f"{channel}: {self.of(channel)} is not {expected}") from None


class Sdk(unittest.IsolatedAsyncioTestCase):
    def open(self, thing):
        """What a test opens is closed in reverse, whatever happens."""
        self.addAsyncCleanup(thing.stop)
        return thing

    async def redis(self, port=None):
        return self.open(await Redis.start(port))

    async def hub_on(self, redis, port=0):
        return self.open(await Hub.on(redis, port))

    async def viewer(self, hub):
        viewer = Viewer(hub)
        await viewer.client.connect()
        self.addAsyncCleanup(viewer.client.disconnect)
        await viewer.client.ready()
        return viewer

    async def test_redis_publish_arrives(self):
        redis = await self.redis()
        viewer = await self.viewer(await self.hub_on(redis))
        await viewer.subscribe("prices")
        self.assertEqual(await redis.publish("prices", {"EURUSD": 1.0542}), 1)
        await viewer.gets("prices", [{"EURUSD": 1.0542}])

    async def test_publication_comes_back_and_reaches_others(self):
        hub = await self.hub_on(await self.redis())
        one, other = await self.viewer(hub), await self.viewer(hub)
        subscription = await one.subscribe("talk")
        await other.subscribe("talk")
        await subscription.publish({"says": 'hello, "world" \u2713'})
        await subscription.publish([1, None, "two"])
        for viewer in (one, other):
            await viewer.gets("talk", [{"says": 'hello, "world" \u2713'}, [1, None, "two"]])

    async def test_fifty_subscriptions_at_once(self):
        redis = await self.redis()
        viewer = await self.viewer(await self.hub_on(redis))
        channels = [f"many:{i}" for i in range(50)]
        await asyncio.gather(*(viewer.subscribe(channel) for channel in channels))
        for channel in channels:
            self.assertEqual(await redis.publish(channel, channel), 1)
        for channel in channels:
            await viewer.gets(channel, [channel])

    async def test_survives_death_and_return_of_redis(self):
        redis = await self.redis()
        viewer = await self.viewer(await self.hub_on(redis))
        await viewer.subscribe("steady")
        await redis.publish("steady", "before")
        await viewer.gets("steady", ["before"])
        await redis.stop(signal.SIGKILL)
        returned = await self.redis(redis.port)
        end = time.monotonic() + 5

        async def back():
            return await returned.subscribers("steady") == 1

        await eventually("hubbub is back on Redis", back, 5)
        await returned.publish("steady", "after")
        await viewer.gets("steady", ["before", "after"], end - time.monotonic())

    async def test_survives_restart_of_hubbub(self):
        redis = await self.redis()
        hub = await self.hub_on(redis)
        viewer = await self.viewer(hub)
        await viewer.subscribe("steady")
        await redis.publish("steady", "before")
        await viewer.gets("steady", ["before"])
        self.assertEqual(await hub.stop(), 0)
        await self.hub_on(redis, hub.port)

        async def subscribed():
            return await redis.subscribers("steady") == 1

        await eventually("connected again", lambda: viewer.connects.count >= 2)
        await eventually("subscribed again", subscribed)
        await redis.publish("steady", "after")
        await viewer.gets("steady", ["before", "after"])

    async def test_nothing_arrives_after_unsubscribe(self):
        redis = await self.redis()
        hub = await self.hub_on(redis)
        viewer = await self.viewer(hub)
        subscription = await viewer.subscribe("left")
        await viewer.subscribe("stayed")
        await hub.publish("left", 1)
        await viewer.gets("left", [1])
        await subscription.unsubscribe()

        async def nobody():
            return await redis.subscribers("left") == 0

        await eventually("Redis has no subscriber left", nobody)
        await redis.publish("left", 2)
        # What is published later on a channel that stayed proves that the other had its turn.
        await redis.publish("stayed", 3)
        await viewer.gets("stayed", [3])
        self.assertEqual(viewer.of("left"), [1])

    async def test_embedded_broker_delivers_what_the_api_publishes(self):
        hub = self.open(await Hub.start())
        one, other = await self.viewer(hub), await self.viewer(hub)
        await one.subscribe("prices")
        await other.subscribe("prices")
        await hub.publish("prices", {"BTC": 97000})
        for viewer in (one, other):
            await viewer.gets("prices", [{"BTC": 97000}])

    async def history_and_its_positions(self, **knobs):
        file = tempfile.NamedTemporaryFile("w", suffix=".toml")
        self.addCleanup(file.close)
        file.write('[namespaces.rooms]\nhistory_size = 10\nhistory_ttl = "60s"\n')
        file.flush()
        hub = self.open(await Hub.start(HUB_CONFIG=file.name, **knobs))
        viewer = await self.viewer(hub)
        subscription = await viewer.subscribe("rooms:1")
        for data in ("one", "two", "three"):
            await hub.publish("rooms:1", data)
        await viewer.gets("rooms:1", ["one", "two", "three"])

        async def read(**options):
            page = await subscription.history(**options)
            self.assertEqual((page.offset, len(page.epoch)), (3, 8))
            return [(pub.offset, pub.data) for pub in page.publications]

        everything = [(1, "one"), (2, "two"), (3, "three")]
        self.assertEqual(await read(limit=-1), everything)
        self.assertEqual(await read(), [])
        self.assertEqual(await read(limit=2, reverse=True), [(3, "three"), (2, "two")])
        epoch = (await subscription.history()).epoch
        self.assertEqual(await read(limit=1, since=StreamPosition(1, epoch)), everything[1:2])
        with self.assertRaises(CentrifugeError) as caught:
            await read(limit=1, since=StreamPosition(1, "abcdefgh"))
        self.assertEqual(caught.exception.code, 112)

    async def test_history_with_the_embedded_broker(self):
        await self.history_and_its_positions()

    async def test_history_with_redis(self):
        await self.history_and_its_positions(HUB_REDIS_URL=(await self.redis()).url)

    async def test_server_side_subscriptions(self):
        file = tempfile.NamedTemporaryFile("w", suffix=".toml")
        self.addCleanup(file.close)
        file.write(
            '[namespaces.orders]\nhistory_size = 100\nhistory_ttl = "60s"\nrecovery = "stream"\n'
            '[namespaces.""]\npersonal = true\n'
        )
        file.flush()
        redis = await self.redis()
        knobs = dict(
            HUB_CONFIG=file.name, HUB_REDIS_URL=redis.url, HUB_TOKEN_HMAC_SECRET="secret"
        )
        hub = self.open(await Hub.start(**knobs))
        other = self.open(await Hub.start(**knobs))
        served = Served()
        token = sign({"sub": "42", "channels": ["orders:1"]}, "secret")
        viewer = Viewer(hub, token, served)
        self.addAsyncCleanup(viewer.client.disconnect)
        await viewer.client.connect()
        await eventually("both are subscribed", lambda: len(served.subscribed) == 2)
        self.assertEqual({ctx.channel for ctx in served.subscribed}, {"orders:1", "#42"})
        await other.publish("orders:1", 1)
        await other.publish("#42", "for you")
        expected = {"orders:1": [1], "#42": ["for you"]}
        await eventually("they are delivered", lambda: served.data == expected)
        self.assertEqual(await hub.stop(), 0)
        await other.publish("orders:1", 2)
        await other.publish("orders:1", 3)
        served.subscribed.clear()
        self.open(await Hub.start(hub.port, **knobs))
        await eventually("both are there again", lambda: len(served.subscribed) == 2)
        order = next(ctx for ctx in served.subscribed if ctx.channel == "orders:1")
        self.assertEqual((order.was_recovering, order.recovered), (True, True))
        await other.publish("orders:1", 4)
        await eventually("nothing is missing", lambda: served.data["orders:1"] == [1, 2, 3, 4])

    async def test_what_is_off_answers_108(self):
        hub = self.open(await Hub.start())
        viewer = await self.viewer(hub)
        subscription = await viewer.subscribe("prices")
        for ask in (subscription.history, subscription.presence, subscription.presence_stats):
            with self.assertRaises(CentrifugeError) as caught:
                await ask()
            self.assertIsInstance(caught.exception, ReplyError)
            self.assertEqual(caught.exception.code, 108)
        await hub.publish("prices", "still here")
        await viewer.gets("prices", ["still here"])

    async def test_refusals_carry_their_code(self):
        async def refused(viewer, channel):
            collector = Collector()
            await viewer.client.new_subscription(channel, events=collector).subscribe()
            return await eventually(f"{channel} is refused", lambda: collector.end)

        dev = await self.viewer(self.open(await Hub.start()))
        self.assertEqual(await refused(dev, "x" * 256), 107)
        self.assertEqual(await refused(dev, "ws:control"), 107)

        hub = self.open(await Hub.start(HUB_DEV="false", HUB_ALLOW_ANONYMOUS="true"))
        self.assertEqual(await refused(await self.viewer(hub), "prices"), 103)

        stranger = Viewer(self.open(await Hub.start(HUB_DEV="false")))
        self.addAsyncCleanup(stranger.client.disconnect)
        await stranger.client.connect()
        await eventually("a stranger is turned away", lambda: stranger.connects.end)
        self.assertEqual(stranger.connects.end, 3501)


if __name__ == "__main__":
    unittest.main()
