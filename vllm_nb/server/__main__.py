"""An engine process: `python -m vllm_nb.server CONNECTION_FILE`, started by vllm_nb.client.process.

Binds a port, writes where into the connection file, answers /health, and only then imports torch and loads the model.
"""

import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from vllm_nb.connection import Connection, ConnectionFileError, load, save
from vllm_nb.server.exit import end_process

logger = logging.getLogger("vllm_nb.server")


def main(path: Path) -> int:
    """Serve as the connection file says. Returns the exit status: 1 when the engine has failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after its drain
    try:
        connection = load(path)
        listener = _announce(path, connection)
        return _serve(path, connection, listener)
    except ConnectionFileError as error:
        logger.error("%s", error)
        return 1
    except SystemExit:
        return 0
    except Exception:
        logger.exception("the engine process has failed")
        return 1
    finally:
        _retract(path)


def _announce(path: Path, connection: Connection) -> socket.socket:
    """Bind a free port and say so in the file. Nobody is refused from here on: connections wait to be accepted."""
    import psutil

    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    # Connections inherit it; without, every answer's second write waits 40 ms for the client's delayed ACK. (asyncio
    # sets it only on sockets made with an explicit protocol.)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.port = listener.getsockname()[1]
    connection.pid = os.getpid()
    connection.create_time = psutil.Process().create_time()
    load(path)  # gone by now when the start was given up: then nobody wants this engine
    save(path, connection)
    return listener


def _serve(path: Path, connection: Connection, listener: socket.socket) -> int:
    from vllm_nb.config import EngineConfig
    from vllm_nb.server.app import run
    from vllm_nb.server.host import EngineHost, load_engine
    from vllm_nb.server.security import Policy

    def keep_file() -> None:
        """A wiped runtime folder must not leave an engine that nobody finds."""
        if not path.exists():
            with suppress(OSError):  # the folder may be gone as well
                save(path, connection)

    config = EngineConfig.from_dict(connection.config)
    host = EngineHost(
        lambda: load_engine(connection.model, config),
        names=(connection.model, connection.name),
        idle_timeout=connection.idle_timeout,
    )
    if connection.owner_pid is not None:
        host.owner = connection.owner_pid, connection.owner_create_time or 0.0
    identity = {"id": connection.id, "name": connection.name}
    run(host, listener, Policy(token=connection.token), identity=identity, on_tick=keep_file)
    if host.failure is None:
        return 0
    logger.error("%s", host.failure)
    return 1


def _retract(path: Path) -> None:
    """Delete the file, if it is still about this process."""
    try:
        if load(path).pid in (None, os.getpid()):
            path.unlink()
    except (ConnectionFileError, FileNotFoundError):
        return


if __name__ == "__main__":
    end_process(main(Path(sys.argv[1])))
