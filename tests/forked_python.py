#!/usr/bin/env -S python3 -IS
"""``python -u ARGUMENTS`` as a fork, for a launcher that starts its own Pythons: what torchrun finds in PYTHON_EXEC.

It knows the process to fork from by FORK_SERVER, its socket's address, and needs none of the libraries. It ends as its
fork does, and ends it when it is told to end.
"""

import json
import os
import signal
import socket
import sys


def main() -> int:
    request = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect("\0" + os.environ["FORK_SERVER"])
        server.recv(100)
        socket.send_fds(server, [json.dumps(request).encode()], [theirs.fileno(), 1, 2])
        theirs.close()
        process = int(ours.recv(100))
        signal.signal(signal.SIGTERM, lambda *_: os.kill(process, signal.SIGTERM))
        code = int(ours.recv(100))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
