// centrifuge-js, unchanged, against a real hubbub and a real Redis.
import assert from 'node:assert/strict';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';
import { eventually, Hub, Redis, sign, staged, temporary, within } from './stage.mjs';

/** A client that collects what arrives; it comes back fast, as a test cannot wait. */
class Client {
  constructor(hub, options = {}) {
    this.centrifuge = new Centrifuge(hub.socketUrl, {
      websocket: WebSocket, minReconnectDelay: 20, maxReconnectDelay: 200, timeout: 5000, ...options,
    });
    this.received = [];
    this.n_connects = 0;
    this.centrifuge.on('connected', () => { this.n_connects += 1; });
    this.centrifuge.connect();
  }

  /** A subscription, once hubbub has confirmed it. */
  async subscribe(channel, options = {}) {
    const delays = { minResubscribeDelay: 20, maxResubscribeDelay: 200 };
    const subscription = this.centrifuge.newSubscription(channel, { ...delays, ...options });
    subscription.on('publication', ({ data }) => this.received.push({ channel, data }));
    subscription.subscribe();
    await within(`subscribed to ${channel}`, subscription.ready());
    return subscription;
  }

  of(channel) {
    return this.received.filter((publication) => publication.channel === channel).map(({ data }) => data);
  }

  async gets(channel, expected, limit) {
    const text = JSON.stringify(expected);
    await eventually(`${text} on ${channel}`, () => JSON.stringify(this.of(channel)) === text, limit)
      .catch((error) => assert.deepEqual(this.of(channel), expected, error.message));
  }

  stop() {
    this.centrifuge.disconnect();
  }
}

staged('a redis-cli PUBLISH arrives', async (open) => {
  const redis = await open(Redis.start());
  const hub = await open(Hub.on(redis));
  const client = await open(new Client(hub));
  await client.subscribe('prices');
  assert.equal(await redis.publish('prices', { EURUSD: 1.0542 }), 1);
  await client.gets('prices', [{ EURUSD: 1.0542 }]);
});

staged('a publication comes back to its publisher and reaches others', async (open) => {
  const redis = await open(Redis.start());
  const hub = await open(Hub.on(redis));
  const [one, other] = [await open(new Client(hub)), await open(new Client(hub))];
  const subscription = await one.subscribe('talk');
  await other.subscribe('talk');
  await subscription.publish({ says: 'hello, "world" \u2713' });
  await subscription.publish([1, null, 'two']);
  for (const client of [one, other]) {
    await client.gets('talk', [{ says: 'hello, "world" \u2713' }, [1, null, 'two']]);
  }
});

staged('fifty subscriptions at once', async (open) => {
  const redis = await open(Redis.start());
  const hub = await open(Hub.on(redis));
  const client = await open(new Client(hub));
  const channels = Array.from({ length: 50 }, (_, i) => `many:${i}`);
  await Promise.all(channels.map((channel) => client.subscribe(channel)));
  for (const channel of channels) assert.equal(await redis.publish(channel, { channel }), 1);
  for (const channel of channels) await client.gets(channel, [{ channel }]);
});

staged('survives the death and return of Redis', async (open) => {
  const redis = await open(Redis.start());
  const hub = await open(Hub.on(redis));
  const client = await open(new Client(hub));
  await client.subscribe('steady');
  await redis.publish('steady', 'before');
  await client.gets('steady', ['before']);
  await redis.stop('SIGKILL');
  const returned = await open(Redis.start(redis.port));
  const began = performance.now();
  await eventually('hubbub is back on Redis', async () => await returned.subscribers('steady') === 1, 5000);
  await returned.publish('steady', 'after');
  await client.gets('steady', ['before', 'after'], 5000 - (performance.now() - began));
});

staged('survives a restart of hubbub', async (open) => {
  const redis = await open(Redis.start());
  const hub = await open(Hub.on(redis));
  const client = await open(new Client(hub));
  await client.subscribe('steady');
  await redis.publish('steady', 'before');
  await client.gets('steady', ['before']);
  assert.deepEqual(await hub.stop(), { code: 0, signal: null });
  await open(Hub.on(redis, hub.port));
  await eventually('connected again', () => client.n_connects >= 2);
  await eventually('subscribed again', async () => await redis.subscribers('steady') === 1);
  await redis.publish('steady', 'after');
  await client.gets('steady', ['before', 'after']);
});

staged('nothing arrives after an unsubscribe', async (open) => {
  const redis = await open(Redis.start());
  const hub = await open(Hub.on(redis));
  const client = await open(new Client(hub));
  const subscription = await client.subscribe('left');
  await client.subscribe('stayed');
  await hub.publish('left', 1);
  await client.gets('left', [1]);
  subscription.unsubscribe();
  await eventually('Redis has no subscriber left', async () => await redis.subscribers('left') === 0);
  await redis.publish('left', 2);
  // What is published later on a channel that stayed proves that the other had its turn.
  await redis.publish('stayed', 3);
  await client.gets('stayed', [3]);
  assert.deepEqual(client.of('left'), [1]);
  subscription.subscribe();
  await within('subscribed again', subscription.ready());
  await redis.publish('left', 4);
  await client.gets('left', [1, 4]);
});

staged('the embedded broker delivers what the API publishes', async (open) => {
  const hub = await open(Hub.start());
  const [one, other] = [await open(new Client(hub)), await open(new Client(hub))];
  await one.subscribe('prices');
  await other.subscribe('prices');
  await hub.publish('prices', { BTC: 97000 });
  for (const client of [one, other]) await client.gets('prices', [{ BTC: 97000 }]);
});

const NAMESPACES = '[namespaces.rooms]\nhistory_size = 10\nhistory_ttl = "60s"\n';

for (const broker of ['the embedded broker', 'Redis']) {
  staged(`history and its positions with ${broker}`, async (open) => {
    const knobs = { HUB_CONFIG: (await open(temporary(NAMESPACES))).path };
    if (broker === 'Redis') knobs.HUB_REDIS_URL = (await open(Redis.start())).url;
    const hub = await open(Hub.start({ knobs }));
    const client = await open(new Client(hub));
    const subscription = await client.subscribe('rooms:1');
    const live = [];
    subscription.on('publication', ({ data, offset }) => live.push([data, offset]));
    await hub.publish('rooms:1', 'one');
    await subscription.publish('two');
    await hub.publish('rooms:1', 'three');
    await eventually('three publications', () => live.length === 3);
    assert.deepEqual(live, [['one', 1], ['two', 2], ['three', 3]]);
    const read = async (options) => {
      const { publications, offset, epoch } = await subscription.history(options);
      assert.equal(offset, 3);
      assert.match(epoch, /^[a-zA-Z]{8}$/);
      return { epoch, page: publications.map(({ data, offset }) => [data, offset]) };
    };
    const { epoch, page } = await read({ limit: 10 });
    assert.deepEqual(page, live);
    assert.deepEqual((await read({})).page, [], 'the position alone');
    assert.deepEqual((await read({ limit: 1, since: { offset: 1, epoch } })).page, [['two', 2]]);
    assert.deepEqual((await read({ limit: 2, reverse: true })).page, [['three', 3], ['two', 2]]);
    await assert.rejects(subscription.history({ limit: 1, since: { offset: 1, epoch: 'abcdefgh' } }), { code: 112 });
    const { publications } = await subscription.history({ limit: 10 });
    assert.equal(publications[1].info.client.length, 36, 'who published it');
  });
}

staged('server-side subscriptions: with the token, by the API, and recovered', async (open) => {
  const redis = await open(Redis.start());
  const file = await open(temporary(
    '[namespaces.orders]\nhistory_size = 100\nhistory_ttl = "60s"\nrecovery = "stream"\n'
    + '[namespaces.user]\npersonal = true\n[namespaces.""]\n',
  ));
  const knobs = { HUB_CONFIG: file.path, HUB_REDIS_URL: redis.url, HUB_TOKEN_HMAC_SECRET: 'secret' };
  const [hub, other] = [await open(Hub.start({ knobs })), await open(Hub.start({ knobs }))];
  const token = sign({ sub: '42', subs: { 'orders:1': { data: { motd: 'hi' } } } }, 'secret');
  const client = new Client(hub, { token });
  const [subscribed, unsubscribed] = [[], []];
  client.centrifuge.on('publication', ({ channel, data }) => client.received.push({ channel, data }));
  client.centrifuge.on('subscribed', (context) => subscribed.push(context));
  client.centrifuge.on('unsubscribed', ({ channel }) => unsubscribed.push(channel));
  await open(client);
  await eventually('both are subscribed', () => subscribed.length === 2);
  const context = subscribed.find(({ channel }) => channel === 'orders:1');
  assert.deepEqual([context.recoverable, context.data], [true, { motd: 'hi' }]);
  assert.ok(subscribed.some(({ channel }) => channel === 'user:#42'));
  await other.publish('orders:1', 1);
  await other.publish('user:#42', 'for you');
  await client.gets('orders:1', [1]);
  await client.gets('user:#42', ['for you']);
  await other.api('subscribe', { user: '42', channel: 'orders:2' });
  await eventually('the API subscribed it', () => subscribed.some(({ channel }) => channel === 'orders:2'));
  await other.publish('orders:2', 'a');
  await client.gets('orders:2', ['a']);

  assert.deepEqual(await hub.stop(), { code: 0, signal: null });
  await other.publish('orders:1', 2);
  await other.publish('orders:1', 3);
  await other.publish('orders:2', 'b');
  subscribed.length = 0;
  const again = await open(Hub.start({ knobs, port: hub.port }));
  await eventually('all are there again', () => subscribed.length === 3);
  for (const channel of ['orders:1', 'orders:2']) {
    const context = subscribed.find((context) => context.channel === channel);
    assert.deepEqual([context.wasRecovering, context.recovered], [true, true], channel);
  }
  await other.publish('orders:1', 4);
  await client.gets('orders:1', [1, 2, 3, 4]);
  await client.gets('orders:2', ['a', 'b']);
  await again.api('unsubscribe', { user: '42', channel: 'orders:2' });
  await eventually('the API unsubscribed it', () => unsubscribed.includes('orders:2'));
  assert.deepEqual(unsubscribed, ['orders:2']);
});

staged('delta: patches become the values again', async (open) => {
  const redis = await open(Redis.start());
  const file = await open(temporary('[namespaces.quotes]\ndelta = true\n'));
  const hub = await open(Hub.start({ knobs: { HUB_CONFIG: file.path, HUB_REDIS_URL: redis.url } }));
  const patched = () => hub.metric('hubbub_patches_total');
  const [one, other, late] = [await open(new Client(hub)), await open(new Client(hub)), await open(new Client(hub))];
  const subscription = await one.subscribe('quotes:a', { delta: 'fossil' });
  await other.subscribe('quotes:a');
  const quote = (n) => ({ symbol: 'EURUSD', name: 'Euro and US dollar \u20ac\u00e9\ud83d\ude00', price: n });
  const values = [];
  const publish = async (value) => {
    values.push(value);
    await redis.publish('quotes:a', value);
  };
  for (let n = 0; n < 20; n += 1) await publish(quote(n));
  for (const client of [one, other]) await client.gets('quotes:a', values);
  await late.subscribe('quotes:a', { delta: 'fossil' });
  const n_before = values.length;
  for (const value of ['text', null, [1, 2], { ...quote(7), name: '\u00e8' }, quote(8), quote(9)]) await publish(value);
  for (const client of [one, other]) await client.gets('quotes:a', values);
  await late.gets('quotes:a', values.slice(n_before));
  await eventually('patches were made', async () => await patched() > 10);
  subscription.unsubscribe();
  await eventually('one has left', () => subscription.state === 'unsubscribed');
  await publish(quote(10));
  await other.gets('quotes:a', values);
  await late.gets('quotes:a', values.slice(n_before));
  subscription.subscribe();
  await within('subscribed again', subscription.ready());
  await publish(quote(11));
  await publish(quote(12));
  await one.gets('quotes:a', [...values.slice(0, -3), quote(11), quote(12)]);
});

staged('what is off answers 108', async (open) => {
  const hub = await open(Hub.start());
  const client = await open(new Client(hub));
  const subscription = await client.subscribe('prices');
  await assert.rejects(subscription.history({ limit: 1 }), { code: 108 });
  await assert.rejects(subscription.presence(), { code: 108 });
  await assert.rejects(subscription.presenceStats(), { code: 108 });
  await assert.rejects(client.centrifuge.rpc('method', {}), { code: 108 });
  await hub.publish('prices', 'still here');
  await client.gets('prices', ['still here']);
});

staged('refusals carry their code', async (open) => {
  const refused = (client, channel) => {
    const subscription = client.centrifuge.newSubscription(channel);
    const event = new Promise((resolve) => subscription.once('unsubscribed', resolve));
    subscription.subscribe();
    return within(`${channel} is refused`, event).then(({ code }) => code);
  };
  const dev = await open(new Client(await open(Hub.start())));
  assert.equal(await refused(dev, 'x'.repeat(256)), 107);
  assert.equal(await refused(dev, 'ws:control'), 107);

  const anonymous = await open(Hub.start({ knobs: { HUB_DEV: 'false', HUB_ALLOW_ANONYMOUS: 'true' } }));
  assert.equal(await refused(await open(new Client(anonymous)), 'prices'), 103);

  const closed = await open(Hub.start({ knobs: { HUB_DEV: 'false' } }));
  const stranger = await open(new Client(closed));
  const end = new Promise((resolve) => stranger.centrifuge.once('disconnected', resolve));
  assert.equal((await within('a stranger is turned away', end)).code, 3501);
});
