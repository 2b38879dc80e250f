"""A SLURM cluster on this machine: munge, a controller, and nodes by name with more CPUs than the machine has.

All of it runs in namespaces of its own: the names of the nodes are in a hosts file that nobody else sees, and when the
first process of the namespaces ends, all that was started in them ends, jobs included. That needs root.
"""

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare", "setpriv")
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PATIENCE = 1200  # seconds; a test that waits longer hangs
RUNNING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "PREEMPTED"}  # not at its end

# A requeued job waits for `cred_expire` seconds, by default 120; less than 5 is not taken. Jobs of `urgent` preempt
# those of `usual`, which then have a minute.
CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillOnBadExit=1
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
{nodes}
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""

FIRST = """
mount --bind hosts /etc/hosts
munged --foreground --force --key-file=munge/key --socket=$PWD/munge/socket --pid-file=$PWD/munge/pid \
    --log-file=$PWD/munge/log --seed-file=$PWD/munge/seed &
slurmctld -D &
for name; do slurmd -D -N $name & done
wait
"""


def missing():
    """Return why no cluster can be started here, "" if one can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=SEARCHED) is None]
    if lacking:
        return f"no {', '.join(lacking)} here: apt-get install slurm-wlm munge"
    return "only root can give a cluster its own names of hosts: sudo make clusters" if os.geteuid() else ""


class Cluster:
    """Nodes node1, node2, ... of 8 CPUs each, whose files are in a folder; jobs begin there, in `environment`."""

    def __init__(self, folder: Path, nodes: int, **environment):
        names, host = [f"node{i + 1}" for i in range(nodes)], socket.gethostname()
        controller, *ports = free_ports(1 + nodes)
        for name in ("munge", "state", *names):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o755)
        (folder / "munge/key").touch(0o600)
        (folder / "munge/key").write_bytes(os.urandom(1024))
        (folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(names)}\n")
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8"
            for name, port in zip(names, ports, strict=True)
        ]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(host=host, controller=controller, folder=folder, nodes="\n".join(lines))
        )
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": SEARCHED, **environment}
        # It ends with this process too, also where that is killed.
        first = "setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc sh -ec".split()
        with (folder / "daemons.txt").open("w") as log:
            self._first = subprocess.Popen(
                [*first, FIRST, "sh", *names],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.until(lambda: self.run("sinfo", "-h", "-p", "usual", "-o", "%D %t") == f"{nodes} idle\n")

    def stop(self):
        """End all that runs in it."""
        self._first.kill()
        self._first.wait()

    def until(self, true):
        """Wait without taking the cores from what is waited for."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert self._first.poll() is None, (self.folder / "daemons.txt").read_text()
            assert time.monotonic() < deadline, f"nothing happened for twenty minutes: {self.run('squeue', '--long')}"
            time.sleep(0.3)

    def run(self, *words):
        """Run one of SLURM's commands and return what it printed."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
        return done.stdout

    def submit(self, *words):
        """Submit a script, with options before and arguments after it; return the number of the job."""
        return self.run("sbatch", "--parsable", *words).strip()

    def facts(self, job):
        """Return what `scontrol show job` says of a job that is in the queue, or was until a few minutes ago."""
        words = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def has_ended(self, job):
        """Return whether a job is done, failed or cancelled, and will not start again."""
        return self.facts(job)["JobState"] not in RUNNING

    def end_of(self, job):
        """Wait for the end of a job, and return its state and exit code, such as ("FAILED", "75:0")."""
        self.until(lambda: self.has_ended(job))
        facts = self.facts(job)
        return facts["JobState"], facts["ExitCode"]

    def printed(self, job):
        """Return what a job has printed, all starts of it."""
        return (self.folder / f"slurm-{job}.out").read_text()


def free_ports(count):
    """Find ports at which nobody listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
