"""A peer in a process of its own, to be killed or stopped: echoes "echo", and falls deaf on anything else."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from potluck.identity import Identity
from potluck.net.tls import TlsTransport
from potluck.net.transport import Stream


async def main(directory: Path) -> None:
    transport = TlsTransport(
        Identity.load_or_create(directory / "key.pem"),
        certificate=(directory / "certificate.pem").read_bytes(),
        authority=(directory / "authority.pem").read_bytes(),
        host="127.0.0.1",
    )
    never = asyncio.Event()

    async def handler(stream: Stream) -> None:
        while await stream.receive(100) == b"echo":
            await stream.send(b"echo")
        await never.wait()

    print(*await transport.listen(handler), flush=True)
    await never.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
