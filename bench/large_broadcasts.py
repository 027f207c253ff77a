#!/usr/bin/env python3
"""What subscribers that do not read cost the kernel when messages are large.

    bench/large_broadcasts.py CORECAST [SUBSCRIBERS [BYTES [MESSAGES]]]

Starts the server binary CORECAST, subscribes clients that never read, publishes by HTTP, and prints how much less memory
of the machine is free afterwards. Nothing else may take or free memory meanwhile. Needs two descriptors for each client.
"""

import socket
import subprocess
import sys
import time
import urllib.request

PORT = 18480
REQUEST = (
    b"GET /sub/feed HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def free_mib():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemFree:")) / 1024


def subscribe():
    for _ in range(50):
        try:
            client = socket.create_connection(("127.0.0.1", PORT))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    client.sendall(REQUEST)
    answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return client


def main():
    if not 2 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    subscribers, size, messages = [int(word) for word in sys.argv[2:]] + [2000, 100_000, 24][len(sys.argv) - 2 :]
    command = [sys.argv[1], "--listen", f"127.0.0.1:{PORT}", "--control", f"127.0.0.1:{PORT + 1}"]
    command += ["--cores", "1", "--slow-consumer", "drop", "--max-message-size", "16MiB", "--drain-window", "0ms"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        clients = [subscribe() for _ in range(subscribers)]
        before = free_mib()
        for _ in range(messages):
            url = f"http://127.0.0.1:{PORT + 1}/pub/feed"
            urllib.request.urlopen(urllib.request.Request(url, data=b"x" * size, method="POST")).read()
        time.sleep(1)
        used = before - free_mib()
        print(f"{subscribers:,} subscribers that do not read, {messages} messages of {size:,} B: {used:,.0f} MiB")
        assert len(clients) == subscribers
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
