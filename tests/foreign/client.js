// node's `ws` against a corecast server: node client.js SCENARIO ws://HOST:PORT http://HOST:PORT
// Prints what it saw as one JSON value. It has no deadlines of its own; the test that runs it has one.
'use strict';

const WebSocket = require('ws');

const [scenario, data, control] = process.argv.slice(2);

// A client whose events can be waited for, in order, also when they come before anyone waits.
class Client {
  constructor(path, protocols, options) {
    this.socket = new WebSocket(data + path, protocols, options);
    this.queues = { open: [], message: [], ping: [], pong: [], close: [], refused: [] };
    this.waiting = {};
    this.socket.on('upgrade', response => { this.response = response; });
    this.socket.on('open', () => this.put('open', true));
    this.socket.on('message', (bytes, binary) => this.put('message', binary ? bytes : bytes.toString('utf8')));
    this.socket.on('ping', bytes => this.put('ping', bytes.toString()));
    this.socket.on('pong', bytes => this.put('pong', bytes.toString()));
    this.socket.on('close', (code, reason) => this.put('close', [code, reason.toString()]));
    this.socket.on('unexpected-response', (_, response) => this.put('refused', response.statusCode));
    this.socket.on('error', error => { throw error; });
  }

  put(kind, value) {
    const waiting = this.waiting[kind];
    delete this.waiting[kind];
    if (waiting) waiting(value); else this.queues[kind].push(value);
  }

  next(kind) {
    if (this.queues[kind].length > 0) return Promise.resolve(this.queues[kind].shift());
    return new Promise(resolve => { this.waiting[kind] = resolve; });
  }

  static async open(path, protocols = [], options = {}) {
    const client = new Client(path, protocols, options);
    await client.next('open');
    return client;
  }

  async close(code, reason) {
    this.socket.close(code, reason);
    return this.next('close');
  }
}

// As many bytes of UTF-8 as asked for.
const text = bytes => 'ä'.repeat(bytes >> 1) + 'x'.repeat(bytes & 1);
const binary = bytes => Buffer.from(Array.from({ length: bytes }, (_, at) => at * 7 % 256));

async function echo(options) {
  const client = await Client.open('/echo', [], options);
  const echoed = [];
  for (const bytes of [0, 1, 125, 126, 65535]) {
    for (const message of [text(bytes), binary(bytes)]) {
      client.socket.send(message);
      const back = await client.next('message');
      const same = typeof message === 'string' ? back === message : Buffer.isBuffer(back) && back.equals(message);
      if (Buffer.byteLength(back) === bytes && same) echoed.push(`${typeof message} ${bytes}`);
    }
  }
  const extensions = client.response.headers['sec-websocket-extensions'] ?? null;
  const { bytesRead, bytesWritten } = client.response.socket;
  return { extensions, echoed, bytesRead, bytesWritten, close: await client.close(1000) };
}

async function publish(topic, body, type = 'text/plain') {
  const answer = await fetch(`${control}/pub/${topic}`, { method: 'POST', body, headers: { 'Content-Type': type } });
  return [answer.status, (await answer.json()).subscribers];
}

const scenarios = {
  compressed: () => echo({}),
  plain: () => echo({ perMessageDeflate: false }),

  // Wishes for a window each way.
  async windows() {
    const wish = { serverMaxWindowBits: 10, clientMaxWindowBits: 12, threshold: 0 };
    const result = await echo({ perMessageDeflate: wish });
    return { extensions: result.extensions, echoed: result.echoed };
  },

  async subprotocol() {
    const client = await Client.open('/echo', ['unknown', 'second', 'first']);
    const refused = new Client('/echo', ['unknown']);
    return { chosen: client.socket.protocol, close: await client.close(), refused: await refused.next('refused') };
  },

  async refusals() {
    const statuses = {};
    for (const path of ['/nowhere', '/pubsub/a', '/sub/', '/sub/%ff']) {
      statuses[path] = await new Client(path).next('refused');
    }
    statuses.origin = await new Client('/echo', [], { origin: 'http://elsewhere.example' }).next('refused');
    return statuses;
  },

  async closes() {
    const own = await Client.open('/echo');
    const subscriber = await Client.open('/sub/a');
    subscriber.socket.send('data');
    const large = await Client.open('/echo');
    large.socket.send(text(100_000));
    return {
      byClient: await own.close(4321, 'done'),
      withoutCode: await (await Client.open('/echo')).close(),
      dataOnSub: await subscriber.next('close'),
      tooLarge: await large.next('close'),
    };
  },

  async pings() {
    const client = await Client.open('/echo');
    client.socket.ping('are you there');
    const pong = await client.next('pong');
    // The server asks too, and is content with two answers in a row.
    await client.next('ping');
    await client.next('ping');
    client.socket.send('still here');
    return { pong, echo: await client.next('message'), close: await client.close(1001, 'leaving') };
  },

  async fragments() {
    const echoed = [];
    for (const perMessageDeflate of [false, { threshold: 0 }]) {
      const client = await Client.open('/echo', [], { perMessageDeflate });
      const ends = { fin: false, compress: true };
      client.socket.send('Grü', ends);
      client.socket.ping('between');
      client.socket.send('', ends);
      client.socket.send('ße', { ...ends, fin: true });
      echoed.push(await client.next('pong'), await client.next('message'));
      for (let at = 0; at < 60; at += 1) client.socket.send(text(1000), { ...ends, fin: at === 59 });
      echoed.push((await client.next('message')) === text(60_000));
      await client.close();
    }
    return echoed;
  },

  async fanout() {
    const clients = [
      await Client.open('/sub/news'),
      await Client.open('/sub/other,news', [], { perMessageDeflate: false }),
      await Client.open('/pubsub/news'),
    ];
    const published = [
      await publish('news', 'from HTTP'),
      await publish('news', binary(3), 'application/octet-stream'),
      await publish('nobody', 'unheard'),
    ];
    clients[2].socket.send('from a client');
    // The last publish waits until this has arrived: only then is their order certain.
    const received = [[], [], []];
    for (let message = 0; message < 3; message += 1) {
      for (const at of [0, 1, 2]) received[at].push(await clients[at].next('message'));
    }
    published.push(await publish('news', text(20_000)));
    for (const at of [0, 1, 2]) received[at].push((await clients[at].next('message')) === text(20_000));
    const bytesRead = clients.map(client => client.response.socket.bytesRead);
    for (const client of clients) await client.close();
    return { published, received, compressed: bytesRead.map(bytes => bytes < 5000) };
  },
};

scenarios[scenario]().then(result => console.log(JSON.stringify(result)));
