// What the tests play on: a redis-server and a hubbub of their own, on ports nobody else has.
// Each is stopped by its own process id, and nothing waits for a fixed time.
import { execFile, spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export const root = fileURLToPath(new URL('../../../', import.meta.url));
/** This build. */
export const binary = process.env.HUBBUB_BIN ?? path.join(root, 'target/debug/hubbub');
const logs = path.join(root, 'target/test-logs');

/** A test with a stage: what it opens is closed in reverse, whatever happens. */
export function staged(name, play, timeout = 60_000) {
  test(name, { timeout }, async (t) => {
    const opened = [];
    const open = async (thing) => {
      opened.unshift(await thing);
      return opened[0];
    };
    try {
      await play(open, t);
    } finally {
      for (const thing of opened) await thing.stop();
    }
  });
}

/** A JWT, HS256. */
export function sign(claims, secret) {
  const encode = (bytes) => Buffer.from(bytes).toString('base64url');
  const text = `${encode('{"alg":"HS256"}')}.${encode(JSON.stringify(claims))}`;
  return `${text}.${encode(createHmac('sha256', secret).update(text).digest())}`;
}

/** How long a test waits for what must happen. Generous: the machine is shared and busy. */
export const SOON = 10_000;
const POLL = 10;

/** Asks until the answer is truthy, and returns it. */
export async function eventually(what, ask, limit = SOON) {
  const end = performance.now() + limit;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (performance.now() > end) throw new Error(`not within ${limit} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, POLL));
  }
}

/** A promise that does not hang the suite. */
export function within(what, promise, limit = SOON) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${limit} ms: ${what}`)), limit);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Below the ephemeral range: who is down for a while finds it free again, as it is nobody's outgoing port. */
export async function freePort() {
  for (;;) {
    const server = net.createServer().listen(10_000 + Math.floor(Math.random() * 22_000), '127.0.0.1');
    if (!await once(server, 'listening').catch(() => false)) continue;
    const { port } = server.address();
    server.close();
    await once(server, 'close');
    return port;
  }
}

/** The surroundings without their own HUB_ knobs. */
function environment(knobs) {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('HUB_')));
  return { ...env, ...knobs };
}

/** A file with this text; it goes when it is stopped. */
export function temporary(text) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'hubbub-test-'));
  const file = { path: path.join(directory, 'file'), stop: () => fs.rmSync(directory, { recursive: true }) };
  fs.writeFileSync(file.path, text);
  return file;
}

const alive = new Set();
process.once('exit', () => alive.forEach((child) => child.kill('SIGKILL')));

class Process {
  constructor(child) {
    this.child = child;
    this.exited = new Promise((resolve, reject) => {
      child.once('exit', (code, signal) => resolve({ code, signal }));
      child.once('error', reject);
    });
    this.exited.catch(() => {});
    alive.add(child);
    child.once('exit', () => alive.delete(child));
  }

  get running() {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Politely; by force once it does not listen. */
  async stop(signal = 'SIGTERM', limit = SOON) {
    if (!this.running) return this.exited;
    this.child.kill(signal);
    return within(`the end of ${this.child.pid}`, this.exited, limit).catch((error) => {
      this.child.kill('SIGKILL');
      throw error;
    });
  }
}

export class Redis extends Process {
  static async start(port) {
    port ??= await freePort();
    const args = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', os.tmpdir()];
    const redis = new Redis(spawn('redis-server', args.map(String), { stdio: 'ignore' }));
    redis.port = port;
    await eventually('redis-server answers', () => redis.cli('PING').then((pong) => pong === 'PONG', () => false));
    return redis;
  }

  get url() {
    return `redis://127.0.0.1:${this.port}`;
  }

  async cli(...args) {
    const { stdout } = await promisify(execFile)('redis-cli', ['-p', String(this.port), ...args]);
    return stdout.trimEnd();
  }

  /** Publishes as any back end would; the answer is how many nodes got it. */
  async publish(channel, data) {
    return Number(await this.cli('PUBLISH', channel, JSON.stringify(data)));
  }

  async subscribers(channel) {
    return Number((await this.cli('PUBSUB', 'NUMSUB', channel)).split('\n')[1]);
  }
}

export class Hub extends Process {
  /** `dev` as a knob, unless the command line already says so. */
  static async start({ knobs = {}, args = [], port = 0, program = binary } = {}) {
    fs.mkdirSync(logs, { recursive: true });
    const log = fs.openSync(path.join(logs, 'hubbub-of-node-tests.log'), 'a');
    const shards = process.env.HUBBUB_TEST_SHARDS ?? '2';
    const dev = args.includes('--dev') ? {} : { HUB_DEV: 'true' };
    const env = environment({ ...dev, HUB_LISTEN: `127.0.0.1:${port}`, HUB_SHARDS: shards, ...knobs });
    const hub = new Hub(spawn(program, args, { env, stdio: ['ignore', 'pipe', log] }));
    fs.closeSync(log);
    hub.origin = await within('the line that names the port', hub.#announcement());
    hub.port = Number(new URL(hub.origin).port);
    await eventually('hubbub is ready', () => fetch(`${hub.origin}/ready`).then((r) => r.ok, () => false));
    return hub;
  }

  static on(redis, port) {
    return Hub.start({ knobs: { HUB_REDIS_URL: redis.url }, port });
  }

  #announcement() {
    return new Promise((resolve, reject) => {
      createInterface({ input: this.child.stdout }).on('line', (line) => {
        const found = /^hubbub listening on (http:\S+)$/.exec(line);
        if (found) resolve(found[1]);
      });
      this.exited.then(({ code }) => reject(new Error(`hubbub ended with ${code} at its start`)), reject);
    });
  }

  get socketUrl() {
    return `${this.origin.replace('http', 'ws')}/connection/websocket`;
  }

  /** A metric, over all its labels. */
  async metric(name) {
    const page = await (await fetch(`${this.origin}/metrics`)).text();
    const lines = page.split('\n').filter((line) => line.split(/[ {]/)[0] === name);
    return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
  }

  publish(channel, data) {
    return this.api('publish', { channel, data });
  }

  api(method, params) {
    return call(this.origin, method, params);
  }
}

/** The result of a call of the API; an error throws. */
export async function call(origin, method, params) {
  const response = await fetch(`${origin}/api/${method}`, { method: 'POST', body: JSON.stringify(params) });
  const { result, error } = await response.json();
  if (!result) throw new Error(`${method}: ${response.status} ${JSON.stringify(error)}`);
  return result;
}

/** Debian's haproxy in front of two nodes that come and go under their ports; one at least is ready. */
export class Balancer extends Process {
  static async start(ports) {
    const addrs = [await freePort(), ...ports].map((port) => `127.0.0.1:${port}`);
    const env = { BALANCER: addrs[0], NODE_0: addrs[1], NODE_1: addrs[2] };
    const config = path.join(root, 'tests/common/haproxy.cfg');
    // Not on everybody's PATH.
    const balancer = new Balancer(spawn('/usr/sbin/haproxy', ['-db', '-f', config], { env, stdio: 'ignore' }));
    balancer.origin = `http://${addrs[0]}`;
    await eventually('haproxy passes something on', () => balancer.next());
    return balancer;
  }

  /** Who would get the next connection: the one with the fewest. */
  async next() {
    const response = await fetch(`${this.origin}/ready`).catch(() => null);
    await response?.arrayBuffer();
    return response?.ok && response.headers.get('x-node');
  }
}
