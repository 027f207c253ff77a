// The browser client of nginx's nchan module against a corecast server, on node's `ws`:
// node nchan.js SCENARIO ws://HOST:PORT http://HOST:PORT
// Prints what it saw as one JSON value. It has no deadlines of its own; the test that runs it has one.
'use strict';

global.WebSocket = require('ws');
global.window = global;
global.location = { protocol: 'http:', host: 'localhost', pathname: '/' };
global.addEventListener = () => {}; // a page's end, which does not come here
const NchanSubscriber = require('nchan');

const [scenario, data, control] = process.argv.slice(2);

const publish = text => fetch(`${control}/pub/news`, { method: 'POST', body: text }).then(answer => answer.json());

// Messages and connects of a subscriber, to be waited for in turn.
function subscribe(options = {}) {
  const subscriber = new NchanSubscriber(`${data}/sub/news`, { subscriber: 'websocket', reconnectTimeout: 200, ...options });
  const queues = { message: [], connect: [] };
  const waiting = {};
  const put = (kind, value) => {
    queues[kind].push(value);
    if (waiting[kind]) waiting[kind]();
  };
  subscriber.on('message', (text, meta) => put('message', [text, meta.id, meta['content-type']]));
  subscriber.on('connect', () => put('connect', true));
  subscriber.on('transportNativeCreated', socket => { subscriber.socket = socket; });
  const next = async kind => {
    while (queues[kind].length === 0) await new Promise(resolve => { waiting[kind] = resolve; });
    return queues[kind].shift();
  };
  subscriber.start();
  return { subscriber, next };
}

const scenarios = {
  // The network breaks, messages are published, the client comes back by itself.
  async resume() {
    const { subscriber, next } = subscribe();
    await next('connect');
    const { epoch } = await publish('one');
    const messages = [await next('message')];
    subscriber.socket.terminate();
    for (const text of ['two', 'three']) await publish(text);
    await next('connect');
    await publish('four');
    for (let n = 0; n < 3; n++) messages.push(await next('message'));
    return { epoch, messages };
  },

  // The client comes back with an id of another server.
  async lost() {
    const { epoch } = await publish('one');
    const { next } = subscribe({ id: '1700000000:0' });
    await next('connect');
    await publish('two');
    return { epoch, messages: [await next('message'), await next('message')] };
  },
};

scenarios[scenario]().then(seen => {
  process.stdout.write(JSON.stringify(seen), () => process.exit(0));
});
