// `node relay.js [--echo] [--ping-interval SECONDS] PORT`: a relay on ws, which answers pings and sets TCP_NODELAY by
// itself. What it pings with is the heartbeat of the documentation of ws.
"use strict";

const { WebSocket, WebSocketServer } = require("ws");

const echo = process.argv.includes("--echo");
const port = Number(process.argv.at(-1));
const interval = process.argv.indexOf("--ping-interval");
const server = new WebSocketServer({ host: "127.0.0.1", port, backlog: 4096, perMessageDeflate: false });

server.on("connection", (socket) => {
    // An error of one connection ends it, and nothing else.
    socket.on("error", () => socket.terminate());
    socket.isAlive = true;
    socket.on("pong", () => {
        socket.isAlive = true;
    });
    socket.on("message", (message, isBinary) => {
        if (echo) {
            socket.send(message, { binary: isBinary });
            return;
        }
        for (const client of server.clients) {
            if (client.readyState === WebSocket.OPEN) {
                client.send(message, { binary: isBinary });
            }
        }
    });
});

if (interval > 0) {
    setInterval(() => {
        for (const client of server.clients) {
            if (!client.isAlive) {
                client.terminate();
                continue;
            }
            client.isAlive = false;
            client.ping();
        }
    }, 1000 * Number(process.argv[interval + 1]));
}
