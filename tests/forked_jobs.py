"""Stand-ins for the commands `cliptex` and `snakemake`, each a fork of one process that has imported what is slow.

Small runs of many jobs, and plans, spend most of their time on imports. Folder, environment (but what Python reads when
it starts), output and exit code are as of the command itself.
"""

import array
import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

ENTRY_POINTS = {"cliptex": "cliptex.cli", "snakemake": "snakemake.cli"}
"""Command -> module of its `main`."""
PRELOADED = {
    "cliptex": [
        "cliptex.evaluation.probe",
        "cliptex.evaluation.probes.heads.maps",
        "cliptex.evaluation.probes.heads.detection",
        "cliptex.evaluation.zeroshot",
        "cliptex.report.page",
        "cliptex.experts.training",
        "cliptex.training.run",
        "cliptex.data.miniature",
    ],
    # nothing of cliptex: a plan imports the workflow's own
    "snakemake": ["snakemake.cli", "snakemake.workflow", "numpy", "pyarrow.parquet", "pydantic", "braceexpand"],
}
CLIENT = """#!{python} -IS
import _signal, array, json, os, socket, sys
ignored = _signal.getsignal(_signal.SIGINT) == _signal.SIG_IGN
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    files = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    server.sendmsg([b"."], [files])
    server.sendall(json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ), os.getpgrp(), ignored]).encode())
    server.shutdown(socket.SHUT_WR)
    code = server.recv(8)
sys.exit(int(code) if code else "killed")
"""


@cache
def forked(command: str) -> Path:
    """A program for `command`, whose forks end with this process."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    address, program = Path(folder.name) / "socket", Path(folder.name) / "bin" / command
    program.parent.mkdir()
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen(64)
        serve = [sys.executable, __file__, str(server.fileno()), command]
        process = subprocess.Popen(serve, pass_fds=[server.fileno()], stdin=subprocess.DEVNULL)
    atexit.register(folder.cleanup)
    atexit.register(process.kill)
    return program


def _serve(server: socket.socket, command: str) -> None:
    for module in PRELOADED[command]:
        importlib.import_module(module)
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no job waits to be reaped
    server.settimeout(5)
    while os.getppid() == parent:
        try:
            client, _ = server.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            try:
                server.close()
                _run(client, command)
            finally:  # where the client was killed
                os._exit(1)
        client.close()


def _run(client: socket.socket, command: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.settimeout(None)
    files = array.array("i")
    _, ancillary, *_ = client.recvmsg(1, socket.CMSG_SPACE(3 * files.itemsize))
    files.frombytes(ancillary[0][2])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sent = b"".join(iter(lambda: client.recv(1 << 16), b""))
    folder, arguments, environment, group, interrupts_ignored = json.loads(sent)
    with suppress(PermissionError):  # of another session
        os.setpgid(0, group)  # a signal to the group of who started the program reaches its fork
    # a shell's background jobs ignore it, of which this server may be one
    signal.signal(signal.SIGINT, signal.SIG_IGN if interrupts_ignored else signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [command, *arguments]
    code = 1
    try:
        importlib.import_module(ENTRY_POINTS[command]).main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
