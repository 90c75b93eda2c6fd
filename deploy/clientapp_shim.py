"""Stands in for the command ``flwr-clientapp``: hands its work to the warm server (`warm`).

Imports nothing but the standard library and runs without site-packages, so that it starts in
milliseconds. Where no warm server answers, the real command is run.
"""

import array
import json
import os
import socket
import sys


def main() -> None:
    """Pass arguments, environment, working directory and output on; end as the work ends."""
    address, command = os.environ["AIRFLOWER_WARM_SOCKET"], os.environ["AIRFLOWER_CLIENTAPP"]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address)
    except OSError:
        os.execv(command, [command, *sys.argv[1:]])
    task = {"argv": [command, *sys.argv[1:]], "environment": dict(os.environ), "folder": os.getcwd()}
    text = json.dumps(task).encode()
    outputs = array.array("i", [1, 2])
    connection.sendmsg(
        [len(text).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, outputs.tobytes())]
    )
    connection.sendall(text)
    answer = connection.recv(1)
    sys.exit(answer[0] if answer else 1)


if __name__ == "__main__":
    main()
