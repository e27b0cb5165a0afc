// Promise: two nodes behind a balancer are upgraded from another build to this one, one after the other, and
// restarted once more, and no centrifuge-js client misses a publication or is asked twice; nobody is
// stampeded; and registry and presence are right in the end.
//
// HUBBUB_PREVIOUS_BIN is the build they are upgraded from; without it, it is this one too.
import assert from 'node:assert/strict';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';
import { Balancer, binary, call, eventually, freePort, Hub, Redis, sign, SOON, staged, temporary } from './stage.mjs';

const full = process.env.HUBBUB_TEST_FULL !== undefined;
const previous = process.env.HUBBUB_PREVIOUS_BIN ?? binary;
const N_CLIENTS = full ? 2_000 : 80;
const DRAIN_S = full ? 20 : 4;
// So few clients on a busy machine say less: then it is enough that they are spread.
const RATE_FACTOR_MAX = full ? 1.5 : 3;
const PUBLISH_EVERY = full ? 200 : 100;
/** Each client is in one of four; some are in a fifth too, which tells who comes and goes. */
const PLACES = ['place:0', 'place:1', 'place:2', 'place:3'];
const LOBBY = 'lobby:0';
const CHANNELS = [...PLACES, LOBBY];
const STREAM = 'history_size = 1000\nhistory_ttl = "10m"\nrecovery = "stream"\npresence = true\n';
const NAMESPACES = `[namespaces.place]\n${STREAM}[namespaces.lobby]\n${STREAM}join_leave = "on"\n`;
const SECRET = 'secret';

/** A client as the SDK makes it: with its own back-off, and a ledger of what it is told. */
class Viewer {
  constructor(url, n) {
    this.user = `u${n >> 3}`;
    this.ids = [];
    this.n_errors = 0;
    /** When it was connected, sent off and subscribed to all of its channels again. */
    this.connects = [];
    this.closes = [];
    this.back_at = 0;
    /** Whatever should not have happened. */
    this.faults = [];
    /** By channel, the next number. */
    this.next = new Map();
    this.comes = [];
    this.goes = [];
    const token = sign({ sub: this.user }, SECRET);
    this.centrifuge = new Centrifuge(url, { websocket: WebSocket, token });
    this.centrifuge
      .on('connected', ({ client }) => { this.ids.push(client); this.connects.push(performance.now()); })
      .on('connecting', ({ code, reason }) => this.#off(code, reason))
      .on('disconnected', ({ code, reason }) => this.faults.push(`ended: ${code} ${reason}`))
      .on('error', () => { this.n_errors += 1; });
    this.#follow(PLACES[n % PLACES.length]);
    // Odd, since a balancer deals even and odd ones to one node each.
    if (n % 7 === 0) this.#follow(LOBBY);
    this.centrifuge.connect();
  }

  #off(code, reason) {
    if (code === 0) return;
    this.closes.push(performance.now());
    if (code !== 3001) this.faults.push(`cut: ${code} ${reason}`);
  }

  #follow(channel) {
    this.next.set(channel, 0);
    const subscription = this.centrifuge.newSubscription(channel, { joinLeave: channel === LOBBY });
    subscription
      .on('publication', ({ data }) => this.#take(channel, data.seq))
      .on('subscribed', (context) => this.#on(channel, context))
      .on('unsubscribed', ({ code, reason }) => this.faults.push(`${channel} ended: ${code} ${reason}`))
      .on('join', ({ info }) => this.comes.push(info.client))
      .on('leave', ({ info }) => this.goes.push(info.client));
    subscription.subscribe();
  }

  #on(channel, { wasRecovering, recovered }) {
    this.back_at = performance.now();
    const again = this.ids.length > 1;
    if (wasRecovering !== again || recovered !== again) {
      this.faults.push(`${channel}: recovering ${wasRecovering}, recovered ${recovered} as number ${this.ids.length}`);
    }
  }

  #take(channel, seq) {
    const due = this.next.get(channel);
    if (seq !== due) this.faults.push(`${channel}: ${seq} where ${due} was due`);
    this.next.set(channel, seq + 1);
  }

  get id() {
    return this.ids.at(-1);
  }

  get is_on() {
    return Object.values(this.centrifuge.subscriptions()).every(({ state }) => state === 'subscribed');
  }

  stop() {
    this.centrifuge.removeAllListeners('disconnected');
    for (const subscription of Object.values(this.centrifuge.subscriptions())) subscription.removeAllListeners();
    this.centrifuge.disconnect();
  }
}

/** A back end that publishes through the balancer, to every channel in turn; what fails, it tries again. */
class Publisher {
  constructor(origin) {
    this.origin = origin;
    this.sent = new Map(CHANNELS.map((channel) => [channel, 0]));
    this.n_retries = 0;
    this.stopping = false;
    this.ended = Promise.all(CHANNELS.map((channel) => this.#run(channel)));
    // Awaited in `stop`; until then a failure is nobody's.
    this.ended.catch(() => {});
  }

  async #run(channel) {
    for (; !this.stopping; await pause(PUBLISH_EVERY)) {
      const seq = this.sent.get(channel);
      const params = { channel, data: { seq }, idempotency_key: `${seq}` };
      const publish = () => call(this.origin, 'publish', params).catch(() => { this.n_retries += 1; });
      await eventually(`${seq} accepted on ${channel}`, publish);
      this.sent.set(channel, seq + 1);
    }
  }

  stop() {
    this.stopping = true;
    return this.ended;
  }
}

/** The most of these times within one second. */
function peakPerSecond(times) {
  const sorted = [...times].sort((a, b) => a - b);
  let from = 0;
  return sorted.reduce((most, time, at) => {
    while (time - sorted[from] >= 1000) from += 1;
    return Math.max(most, at - from + 1);
  }, 0);
}

/** SIGTERM, exit, start of this build under the same port and name; everybody is back. */
async function restart(stage, what, at) {
  const { hubs, viewers, balancer } = stage;
  const stall = monitorEventLoopDelay({ resolution: 10 });
  stall.enable();
  const before = viewers.map(({ ids }) => ids.length);
  const began = performance.now();
  const ended = await hubs[at].stop('SIGTERM', (DRAIN_S + 10) * 1000);
  assert.deepEqual(ended, { code: 0, signal: null });
  hubs[at] = await stage.start(at, binary);
  await eventually('everybody is back', () => viewers.every((viewer) => viewer.is_on), 3 * SOON);
  await eventually('the balancer sends to it', async () => await balancer.next() === `node-${at}`);
  stall.disable();

  const moved = viewers.filter(({ ids }, n) => ids.length > before[n]);
  const connects = moved.flatMap((viewer) => viewer.connects).filter((time) => time > began);
  assert.ok(moved.length >= N_CLIENTS / 4, `${moved.length} were on it`);
  assert.equal(connects.length, moved.length, 'nobody moved twice');
  const peak = peakPerSecond(connects);
  const bound = moved.length / DRAIN_S * RATE_FACTOR_MAX;
  const back = Math.max(...moved.map(({ back_at }) => back_at)) - began;
  const stalled = stall.max / 1e9;
  stage.say(`node-${at} ${what}: ${moved.length} moved, at most ${peak} a second (bound ${bound.toFixed(1)}), `
    + `all back after ${(back / 1000).toFixed(2)} s; longest stall of this test ${stalled.toFixed(2)} s`);
  // How the build before spreads its closes can't be helped any more.
  assert.ok(what !== 'restarted' || peak <= bound, `a stampede: ${peak} of ${bound} a second`);
  return new Set(moved);
}

/** Who stayed in the lobby was told of everybody who moved: once that they went, and once that they came. */
async function assertTold(viewers, moved) {
  const inside = viewers.filter(({ next }) => next.has(LOBBY));
  const [movers, stayers] = [inside.filter((v) => moved.has(v)), inside.filter((v) => !moved.has(v))];
  assert.ok(movers.length > 0 && stayers.length > 0, `${movers.length} moved, ${stayers.length} stayed`);
  const was = new Set(movers.map(({ ids }) => ids.at(-2)));
  const is = new Set(movers.map(({ id }) => id));
  for (const { comes, goes } of stayers) {
    const seen = () => goes.filter((id) => was.has(id)).length >= was.size && comes.filter((id) => is.has(id)).length >= is.size;
    await eventually('told of everybody', seen);
    assert.deepEqual(goes.toSorted(), [...was].sort(), 'who went');
    assert.deepEqual(comes.filter((id) => is.has(id)).toSorted(), [...is].sort(), 'who came');
  }
}

/** Polls until what is asked equals what is due, and shows the difference if it never does. */
async function becomes(what, ask, due) {
  let seen;
  const same = async () => JSON.stringify(seen = await ask()) === JSON.stringify(due);
  await eventually(what, same).catch((error) => assert.deepEqual(seen, due, error.message));
}

/** Exactly those who are here, on both nodes. */
async function assertPresence(hubs, viewers) {
  for (const channel of CHANNELS) {
    const here = viewers.filter(({ next }) => next.has(channel));
    const due = here.map(({ id, user }) => [id, user]).sort();
    const stats = { num_clients: here.length, num_users: new Set(here.map(({ user }) => user)).size };
    for (const hub of hubs) {
      const list = async () => {
        const { presence } = await hub.api('presence', { channel });
        return Object.entries(presence).map(([id, { user }]) => [id, user]).sort();
      };
      await becomes(`presence of ${channel}`, list, due);
      await becomes(`presence_stats of ${channel}`, () => hub.api('presence_stats', { channel }), stats);
    }
  }
}

/** Every client once, each on a node of this life. */
async function assertRegistry(hub, viewers) {
  const { nodes } = await hub.api('nodes', {});
  const runs = Object.fromEntries(nodes.map(({ run_id, instance_id }) => [run_id, instance_id]));
  assert.deepEqual(Object.values(runs).sort(), ['node-0', 'node-1']);
  const due = viewers.map(({ id, user }) => [id, user, true]).sort();
  const list = async () => {
    const { connections } = await hub.api('connections', { limit: 10_000 });
    return connections.map(({ client, user, run_id, instance_id }) => [client, user, runs[run_id] === instance_id]).sort();
  };
  await becomes('the registry', list, due);
}

staged('rolling restart, and upgrade, of two nodes behind a balancer', async (open, t) => {
  const redis = await open(Redis.start());
  const config = await open(temporary(NAMESPACES));
  const ports = [await freePort(), await freePort()];
  const start = (at, program) => Hub.start({
    program,
    port: ports[at],
    knobs: {
      HUB_REDIS_URL: redis.url, HUB_CONFIG: config.path, HUB_TOKEN_HMAC_SECRET: SECRET,
      HUB_NODE_ID: `node-${at}`, HUB_DRAIN_TIMEOUT: `${DRAIN_S}s`,
    },
  });
  const hubs = [];
  await open({ stop: () => Promise.all(hubs.map((hub) => hub.stop('SIGKILL'))) });
  for (const at of [0, 1]) hubs.push(await start(at, previous));
  const balancer = await open(Balancer.start(ports));
  const viewers = [];
  const stage = { hubs, viewers, balancer, start, say: (text) => t.diagnostic(text) };
  const url = `${balancer.origin.replace('http', 'ws')}/connection/websocket`;
  for (let n = 0; n < N_CLIENTS; n += 1) {
    viewers.push(await open(new Viewer(url, n)));
    // Not all at once: a stampede of the test's own would say nothing.
    if (n % 20 === 0) await eventually('they get in', () => viewers.every((viewer) => viewer.is_on));
  }
  await eventually('everybody is in', () => viewers.every((viewer) => viewer.is_on));
  const publisher = await open(new Publisher(balancer.origin));

  if (previous === binary) stage.say('HUBBUB_PREVIOUS_BIN is not set: upgraded from this build itself');
  await assertTold(viewers, await restart(stage, 'upgraded', 0));
  for (const [what, at] of [['upgraded', 1], ['restarted', 0], ['restarted', 1]]) await restart(stage, what, at);

  await publisher.stop();
  const has_all = ({ next }) => [...next].every(([channel, seq]) => seq >= publisher.sent.get(channel));
  await eventually('everybody has everything', () => viewers.every(has_all)).catch(() => {});
  const faults = viewers.flatMap((viewer) => viewer.faults);
  const n_short = viewers.filter((viewer) => !has_all(viewer)).length;
  assert.deepEqual(faults.slice(0, 10), [], `${faults.length} faults`);
  assert.equal(n_short, 0, 'their newest are missing');
  const sum = (numbers) => numbers.reduce((total, n) => total + n, 0);
  stage.say(`${sum([...publisher.sent.values()])} publications, 0 lost, ${publisher.n_retries} tried twice; `
    + `${viewers.length} clients, ${sum(viewers.map(({ n_errors }) => n_errors))} attempts in vain`);
  await assertPresence(hubs, viewers);
  await assertRegistry(hubs[0], viewers);
}, full ? 280_000 : 120_000);
