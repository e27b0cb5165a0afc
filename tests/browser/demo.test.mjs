// The demo of a real `hubbub --dev`, in a real browser: what the README's first command shows.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { eventually, Hub, Redis, root } from '../sdk/js/stage.mjs';

// A browser that talks to nobody but us: no updates, no look-ups of its maker's hosts.
const flags = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--no-proxy-server',
];
let browser;
let hub;

const start = (port) => Hub.start({ args: ['--dev'], port });

before(async () => {
  hub = await start(0);
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: flags });
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  await hub?.stop();
}, { timeout: 60_000 });

/** The demo in a fresh page, live; `complaints` collects what its console says. */
async function open(viewport, at = hub) {
  const page = await browser.newPage({ viewport });
  const complaints = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  await page.goto(`${at.origin}/demo`);
  await live(page);
  return { page, complaints };
}

const live = (page) => eventually('the demo is live', () => page.evaluate(
  () => document.querySelector('#state').dataset.state === 'live'), 15_000);

const prices = (page) => page.evaluate(() => Object.fromEntries(
  [...document.querySelectorAll('.tile')].map((tile) => [tile.dataset.symbol, tile.querySelector('.price').textContent])));

const bitcoin = async (page) => (await prices(page)).BTC;

/** At least so many tiles show another price than they do now. */
async function move(page, n_tiles) {
  const first = await prices(page);
  await eventually(`${n_tiles} tiles change`, async () => {
    const now = await prices(page);
    return Object.keys(first).filter((symbol) => now[symbol] !== first[symbol]).length >= n_tiles;
  }, 5000);
}

test('hundreds of tiles move', { timeout: 60_000 }, async () => {
  const { page, complaints } = await open({ width: 1920, height: 1080 });
  const n_tiles = Object.keys(await prices(page)).length;
  assert.ok(n_tiles >= 200, `${n_tiles} tiles`);
  await move(page, 50);
  await eventually('the header counts', async () => await page.textContent('#deliveries') !== '0');
  fs.mkdirSync(path.join(root, 'target'), { recursive: true });
  await page.screenshot({ path: path.join(root, 'target/demo.png') });
  assert.deepEqual(complaints, []);
  await page.close();
});

test('a price set by hand shows', { timeout: 60_000 }, async () => {
  const { page, complaints } = await open({ width: 1280, height: 800 });
  await hub.publish('demo:crypto', { BTC: 123456.78 });
  await eventually('the price set by hand', async () => await bitcoin(page) === '123,456.78');
  assert.match(await page.textContent('#curl-command'), new RegExp(`${hub.origin}/api/publish$`));
  assert.deepEqual(complaints, []);
  await page.close();
});

test('a phone scrolls only downwards', { timeout: 60_000 }, async () => {
  const { page, complaints } = await open({ width: 390, height: 844 });
  await move(page, 50);
  const { content, window } = await page.evaluate(
    () => ({ content: document.documentElement.scrollWidth, window: innerWidth }));
  assert.ok(content <= window, `${content} px of content in ${window} px`);
  assert.deepEqual(complaints, []);
  await page.close();
});

test('with Redis, a redis-cli PUBLISH shows', { timeout: 60_000 }, async () => {
  const redis = await Redis.start();
  let onRedis;
  try {
    onRedis = await Hub.start({ args: ['--dev'], knobs: { HUB_REDIS_URL: redis.url, HUB_REDIS_PREFIX: 'acme:' } });
    const { page, complaints } = await open({ width: 1280, height: 800 }, onRedis);
    assert.equal(await page.textContent('#redis-command'), `redis-cli PUBLISH acme:demo:crypto '{"BTC":97000}'`);
    await redis.publish('acme:demo:crypto', { BTC: 97000 });
    await eventually('the price set by hand', async () => await bitcoin(page) === '97,000.00');
    assert.deepEqual(complaints, []);
    await page.close();
  } finally {
    await onRedis?.stop();
    await redis.stop();
  }
});

test('the demo survives a restart', { timeout: 60_000 }, async () => {
  const { page, complaints } = await open({ width: 1280, height: 800 });
  await move(page, 50);
  await hub.stop();
  await eventually('the demo notices', () => page.evaluate(
    () => document.querySelector('#state').dataset.state === 'reconnecting'));
  hub = await start(hub.port);
  await live(page);
  await move(page, 50);
  // While nobody listens, the browser itself reports each attempt; nothing else may be reported.
  const unexpected = complaints.filter((text) => !/^WebSocket connection to .* failed/.test(text));
  assert.deepEqual(unexpected, []);
  await page.close();
});
