"""PyPI's `websockets` against a corecast server: client.py SCENARIO ws://HOST:PORT http://HOST:PORT

Prints what it saw as one JSON value. It has no deadlines of its own; the test that runs it has one.
"""

import hashlib
import json
import sys
import urllib.request

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

scenario, data, control = sys.argv[1:]


def open_client(path, **options):
    return connect(data + path, ping_interval=None, open_timeout=None, close_timeout=60, **options)


def deflate(**parameters):
    """Options of a client that offers permessage-deflate with exactly these parameters."""
    return {"compression": None, "extensions": [ClientPerMessageDeflateFactory(**parameters)]}


def negotiated(client):
    """The server's answer to the offer, its parameters sorted; None if it takes none."""
    answer = client.response.headers.get("Sec-WebSocket-Extensions")
    return answer and sorted(answer.split("; "))


def watch_compression(client):
    """Notes for each data frame that comes whether it is compressed, and its length."""
    seen = []
    extension = client.protocol.extensions[0]
    decode = extension.decode

    def watched(frame, **options):
        if frame.opcode in (1, 2):
            seen.append([frame.rsv1, len(frame.data)])
        return decode(frame, **options)

    extension.decode = watched
    return seen


def text(size):
    """As many bytes of UTF-8 as asked for."""
    return "ä" * (size // 2) + "x" * (size % 2)


def binary(size):
    return bytes(at * 7 % 256 for at in range(size))


def echo(client):
    echoed = []
    for size in [0, 1, 125, 126, 65535]:
        for message in [text(size), binary(size)]:
            client.send(message)
            if client.recv() == message:
                echoed.append(f"{type(message).__name__} {size}")
    return echoed


def publish(topic, body, content_type="text/plain"):
    headers = {"Content-Type": content_type}
    request = urllib.request.Request(f"{control}/pub/{topic}", body, headers, method="POST")
    with urllib.request.urlopen(request) as answer:
        return [answer.status, json.load(answer)["subscribers"]]


def closed(client):
    """Waits for the end; code and reason of the server's close frame."""
    try:
        unexpected = client.recv()
    except ConnectionClosed as end:
        return [end.rcvd.code, end.rcvd.reason]
    return unexpected


def refused(path, **options):
    try:
        open_client(path, **options).close()
    except InvalidStatus as error:
        return error.response.status_code
    return 101


def compressed():
    with open_client("/echo") as client:
        frames = watch_compression(client)
        return {"extensions": negotiated(client), "echoed": echo(client), "compressed": [rsv1 for rsv1, _ in frames]}


def plain():
    with open_client("/echo", compression=None) as client:
        return {"extensions": negotiated(client), "echoed": echo(client)}


def windows():
    """Every window size each way. `websockets` inflates with exactly the window that was agreed on, and fails on a
    distance that lies beyond it. The message repeats itself every 5000 bytes, which only 8 KiB and more can see."""
    page = "".join(hashlib.sha256(bytes([at])).hexdigest() for at in range(80))[:5000]
    message = page * 12
    seen = []
    for bits in range(9, 16):
        wish = {"server_max_window_bits": bits, "client_max_window_bits": bits}
        with open_client("/echo", **deflate(**wish)) as client:
            frames = watch_compression(client)
            client.send(message)
            same = client.recv() == message
            seen.append([negotiated(client), same, frames[0][0], frames[0][1] < 10_000])
    return seen


def offers():
    """What the server makes of the other parameters."""
    wishes = {
        "nothing": {},
        "client bits without a value": {"client_max_window_bits": True},
        "a window that zlib does not have": {"server_max_window_bits": 8},
        "no takeover by the server": {"server_no_context_takeover": True},
        "no takeover by the client": {"client_no_context_takeover": True},
        "everything": {
            "server_no_context_takeover": True,
            "client_no_context_takeover": True,
            "server_max_window_bits": 11,
            "client_max_window_bits": 13,
        },
    }
    seen = {}
    for name, wish in wishes.items():
        with open_client("/echo", **deflate(**wish)) as client:
            seen[name] = [negotiated(client), len(echo(client))]
    return seen


def subprotocol():
    with open_client("/echo", subprotocols=["unknown", "second", "first"]) as client:
        return {"chosen": client.subprotocol, "refused": refused("/echo", subprotocols=["unknown"])}


def refusals():
    statuses = {path: refused(path) for path in ["/nowhere", "/pubsub/a", "/sub/", "/sub/%ff"]}
    statuses["origin"] = refused("/echo", origin="http://elsewhere.example")
    return statuses


def closes():
    own = open_client("/echo")
    own.close(4321, "done")
    subscriber = open_client("/sub/a")
    subscriber.send("data")
    large = open_client("/echo")
    large.send(text(100_000))
    return {
        "byClient": closed(own),
        "dataOnSub": closed(subscriber),
        "tooLarge": closed(large),
    }


def pings():
    with open_client("/echo") as client:
        answered = client.ping("are you there")
        answered.wait()
        client.pong("unasked")
        client.send("still here")
        return client.recv()


def fragments():
    echoed = []
    for compression in [None, "deflate"]:
        with open_client("/echo", compression=compression) as client:
            client.send(["Grü", "", "ße"])
            echoed.append(client.recv())
            client.send(binary(1000) for _ in range(60))
            echoed.append(client.recv() == binary(1000) * 60)
    return echoed


def fanout():
    subscriber = open_client("/sub/news", **deflate(server_max_window_bits=9))
    uncompressed = open_client("/sub/other,news", compression=None)
    publisher = open_client("/pubsub/news")
    clients = [subscriber, uncompressed, publisher]
    frames = [watch_compression(subscriber), watch_compression(publisher)]
    received = [[], [], []]

    def expect_one():
        for client, messages in zip(clients, received):
            message = client.recv()
            messages.append(list(message) if isinstance(message, bytes) else message)

    published = [publish("news", b"from HTTP"), publish("news", binary(3), "application/octet-stream")]
    published.append(publish("nobody", b"unheard"))
    expect_one()
    expect_one()
    publisher.send("from a client")
    expect_one()
    publisher.send(text(20_000))
    expect_one()
    for messages in received:
        messages[-1] = messages[-1] == text(20_000)
    for client in clients:
        client.close()
    return {"published": published, "received": received, "compressed": [[rsv1 for rsv1, _ in seen] for seen in frames]}


print(json.dumps(globals()[scenario]()))
