"""`python relay.py [--echo] [--ping-interval SECONDS] PORT`: a relay on websockets, which sets TCP_NODELAY by itself.

Without --ping-interval it sends no pings.
"""

import argparse
import asyncio

from websockets.asyncio.server import broadcast, serve

connections = set()


async def relay(connection):
    connections.add(connection)
    try:
        async for message in connection:
            broadcast(connections, message)
    finally:
        connections.remove(connection)


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--ping-interval", type=float)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    server = serve(
        echo if arguments.echo else relay,
        "127.0.0.1",
        arguments.port,
        compression=None,
        ping_interval=arguments.ping_interval,
        backlog=4096,
    )
    async with server as running:
        await running.serve_forever()


asyncio.run(main())
