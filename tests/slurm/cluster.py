"""A real SLURM cluster of two nodes on this machine, for tests: started and stopped as root, without systemd.

    tests/slurm/install.sh                       # once
    python tests/slurm/cluster.py start FOLDER
    python tests/slurm/cluster.py stop FOLDER

munged, mariadbd, slurmdbd, slurmctld and two slurmd (nodes n1 and n2, both on this machine) keep everything in FOLDER,
except for a link /etc/slurm/slurm.conf, which exists while the cluster runs. Only processes started here are stopped.
The nodes report more CPUs, memory and GPUs than there are; nothing is bound or limited.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
CONF = Path("/etc/slurm/slurm.conf")
"""Where SLURM's commands look; jobs get no other path."""
ACCOUNT, PARTITION, URGENT = "lab", "batch", "urgent"
"""Jobs in the partition URGENT preempt those in PARTITION, which are requeued."""
NODES = ("n1", "n2")
WAIT_S = 60


def unavailable() -> str | None:
    """Why no cluster can be started here; None if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)}: not installed; tests/slurm/install.sh"
    if os.geteuid() != 0:
        return "only root can start the cluster"
    return None


PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1."""
    sockets = [socket.socket() for _ in range(count)]
    for server in sockets:
        server.bind(("", 0))
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class Cluster:
    """The cluster in `folder`, which is created; a context manager that starts and stops it."""

    def __init__(self, folder: Path):
        self.folder = Path(folder).absolute()
        self.record = self.folder / "processes.json"

    def __enter__(self) -> "Cluster":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle. Raises RuntimeError, with the logs, if one dies."""
        if reason := unavailable():
            raise RuntimeError(reason)
        self._clear_link()
        if self.folder.exists() and any(self.folder.iterdir()):
            raise RuntimeError(f"{self.folder}: not empty")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.record.write_text("{}")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        database, accounting, controller, *nodes = free_ports(3 + len(NODES))
        (self.folder / "munge").mkdir(mode=0o700, exist_ok=True)
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {name: self.folder / "munge" / name for name in ("log", "pid", "seed")}
        options = [f"--{name}-file={path}" for name, path in files.items()]
        # --force: skip the check of permissions of the folders above the socket; only root uses it
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._socket}", *options)
        self._wait_until(self._socket.exists, "munged")

        data = self.folder / "database"
        self._run("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db")
        server = self.folder / "database.socket"
        small = [
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        ]
        options = ["--no-defaults", "--user=root", f"--datadir={data}", f"--socket={server}", f"--port={database}"]
        self._daemon("mariadbd", *options, "--bind-address=127.0.0.1", f"--pid-file={data}/pid", *small)
        client = ["mariadb", "--no-defaults", f"--socket={server}"]
        self._wait_until(lambda: self._succeeds(*client, "-e", "select 1"), "mariadbd")
        self._run(
            *client, "-e", "create user slurm@'127.0.0.1' identified by 'local'; grant all on *.* to slurm@'127.0.0.1'"
        )

        self._write(accounting, database, controller, nodes)
        CONF.parent.mkdir(exist_ok=True)
        CONF.symlink_to(self.folder / "slurm.conf")
        self._daemon("slurmdbd", "-D")
        self._wait_until(lambda: self._succeeds("sacctmgr", "--noheader", "show", "cluster"), "slurmdbd")
        self._run("sacctmgr", "--immediate", "add", "cluster", "cliptex")
        self._run("sacctmgr", "--immediate", "add", "account", ACCOUNT, "Cluster=cliptex")
        self._run("sacctmgr", "--immediate", "add", "user", "root", f"Account={ACCOUNT}", "Cluster=cliptex")
        self._daemon("slurmctld", "-D", "-c")
        for number, node in enumerate(NODES):
            (self.folder / f"spool-{node}").mkdir(exist_ok=True)
            cpus = sorted(os.sched_getaffinity(0))
            own = str(cpus[number % len(cpus)])  # so that jobs on the two nodes do not compete for a CPU
            self._daemon(f"slurmd-{node}", "--cpu-list", own, "slurmd", "-D", "-N", node, program="taskset")
        self._wait_until(lambda: self.states() == dict.fromkeys(NODES, "idle"), f"slurmd-{NODES[-1]}")

    def _write(self, accounting: int, database: int, controller: int, nodes: list[int]) -> None:
        host, folder = socket.gethostname().split(".")[0], self.folder
        authentication = f"""AuthType=auth/munge
AuthInfo=socket={self._socket}"""
        (folder / "state").mkdir(exist_ok=True)
        conf = folder / "slurmdbd.conf"
        conf.write_text(f"""{authentication}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=local
StorageLoc=slurm
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
""")
        conf.chmod(0o600)
        own = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=256000 Gres=gpu:1"
            for node, port in zip(NODES, nodes, strict=True)
        )
        # cred_expire is also the delay before a requeued job may start: 120 s by default
        (folder / "slurm.conf").write_text(f"""ClusterName=cliptex
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
{authentication},cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory,CR_LLN
SlurmdParameters=config_overrides
MpiDefault=none
PropagateResourceLimits=NONE
ReturnToService=2
KillWait=10
MinJobAge=300
SchedulerParameters=batch_sched_delay=1,sched_min_interval=100000,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={self._socket}
AccountingStorageEnforce=associations
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
{own}
PartitionName={PARTITION} Nodes={",".join(NODES)} Default=YES MaxTime=2-0 PriorityTier=1
PartitionName={URGENT} Nodes={",".join(NODES)} MaxTime=2-0 PriorityTier=10
""")
        # slurmd requires cgroups even if no plugin uses them; in a container they may be read-only or missing
        hierarchies = folder / "cgroup"
        for name in ("systemd", "freezer", "cpuset", "cpuacct", "memory", "devices"):
            (hierarchies / name).mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={hierarchies}\n")
        # a device that exists on every machine replaces that of a GPU
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")

    @property
    def _socket(self) -> Path:
        return self.folder / "munge.socket"

    def states(self) -> dict[str, str]:
        """Node -> its state, by sinfo."""
        done = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %t", "-p", PARTITION], capture_output=True, text=True)
        return dict(line.split() for line in done.stdout.splitlines())

    def stop(self) -> None:
        """End all jobs and the daemons started by `start`, and remove the link; the folder with its logs is kept."""
        if not self.record.exists():
            return
        processes = json.loads(self.record.read_text())
        if CONF.is_symlink() and CONF.resolve().parent == self.folder:
            self.end_jobs()
        for name, (pid, started) in reversed(processes.items()):
            end(pid, started, name)
        self._clear_link()
        self.record.unlink()

    def end_jobs(self) -> None:
        """Cancel all jobs and wait until they have ended."""
        queue = ["squeue", "--noheader", "--states=running,pending,completing", "--format=%A"]
        for _ in range(20):
            try:
                jobs = subprocess.run(queue, capture_output=True, text=True, timeout=10).stdout.split()
                if not jobs:
                    return
                subprocess.run(["scancel", *jobs], capture_output=True, timeout=10)
            except subprocess.TimeoutExpired:  # slurmctld has ended
                return
            time.sleep(0.5)

    def _clear_link(self) -> None:
        """Remove the link of this cluster, or of one that does not run any more; raise RuntimeError for any other."""
        if not CONF.is_symlink() and not CONF.exists():
            return
        if not CONF.is_symlink():
            raise RuntimeError(f"{CONF}: this machine has its own SLURM")
        folder = CONF.readlink().parent
        record = folder / "processes.json"
        living = json.loads(record.read_text()) if folder != self.folder and record.exists() else {}
        if any(start_time(pid) == started for pid, started in living.values()):
            raise RuntimeError(f"{CONF}: a cluster is running in {folder}; python {__file__} stop {folder}")
        CONF.unlink()

    def _daemon(self, name: str, *arguments: str, program: str | None = None) -> None:
        with (self.folder / f"{name}.out").open("w") as log:
            process = subprocess.Popen(
                [shutil.which(program or name, path=PATH), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal must not reach the daemons
                cwd=self.folder,
                env={**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")},
            )
        record = json.loads(self.record.read_text())
        self.record.write_text(json.dumps(record | {name: [process.pid, start_time(process.pid)]}))

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def _succeeds(self, *command: str) -> bool:
        return subprocess.run(command, capture_output=True, cwd=self.folder).returncode == 0

    def _wait_until(self, condition: Callable[[], bool], daemon: str) -> None:
        pid, started = json.loads(self.record.read_text())[daemon]
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if start_time(pid) != started or state(pid) == "Z" or time.monotonic() > deadline:
                logs = [*sorted(self.folder.glob("*.log")), *sorted(self.folder.glob("*.out"))]
                output = "\n".join(f"{path}: {path.read_text(errors='replace')[-1500:]}" for path in logs)
                raise RuntimeError(f"{daemon} is not ready\n{output}")
            time.sleep(0.1)


def start_time(pid: int) -> str | None:
    """The kernel's start time of a process, which distinguishes it from a later one with the same id."""
    status = _status(pid)
    return status[19] if status else None


def state(pid: int) -> str | None:
    """The letter of a process' state; Z for a zombie."""
    status = _status(pid)
    return status[0] if status else None


def _status(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def end(pid: int, started: str, name: str) -> None:
    """Terminate a process; kill it if it does not end in time."""
    for number, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        if start_time(pid) != started:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while start_time(pid) == started and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # reap it if it is a child, which would stay a zombie
            time.sleep(0.05)
    if start_time(pid) == started:
        print(f"{name}, process {pid}: did not end", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    cluster = Cluster(arguments.folder)
    try:
        getattr(cluster, arguments.action)()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    if arguments.action == "start":
        print(
            f"account {ACCOUNT}, partitions {PARTITION} and {URGENT}, nodes {', '.join(NODES)}; in {arguments.folder}"
        )


if __name__ == "__main__":
    main()
