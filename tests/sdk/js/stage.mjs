// What the tests play on: a redis-server and a hubbub of their own, on ports nobody else has.
// Each is stopped by its own process id, and nothing waits for a fixed time.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export const root = fileURLToPath(new URL('../../../', import.meta.url));
const binary = process.env.HUBBUB_BIN ?? path.join(root, 'target/debug/hubbub');
const logs = path.join(root, 'target/test-logs');

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

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
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
  async stop(signal = 'SIGTERM') {
    if (!this.running) return this.exited;
    this.child.kill(signal);
    return within(`the end of ${this.child.pid}`, this.exited).catch((error) => {
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
  static async start({ knobs = {}, args = [], port = 0 } = {}) {
    fs.mkdirSync(logs, { recursive: true });
    const log = fs.openSync(path.join(logs, 'hubbub-of-node-tests.log'), 'a');
    const shards = process.env.HUBBUB_TEST_SHARDS ?? '2';
    const dev = args.includes('--dev') ? {} : { HUB_DEV: 'true' };
    const env = environment({ ...dev, HUB_LISTEN: `127.0.0.1:${port}`, HUB_SHARDS: shards, ...knobs });
    const hub = new Hub(spawn(binary, args, { env, stdio: ['ignore', 'pipe', log] }));
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

  async api(method, params) {
    const body = JSON.stringify(params);
    const response = await fetch(`${this.origin}/api/${method}`, { method: 'POST', body });
    const { result, error } = await response.json();
    if (!result) throw new Error(`${method}: ${response.status} ${JSON.stringify(error)}`);
  }
}
