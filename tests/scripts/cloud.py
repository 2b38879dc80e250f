"""A stand-in for gcloud: every worker of a pod is a folder of this machine, in which commands run as its HOME.

Called as `python cloud.py CLOUD ARGUMENTS OF gcloud`. The folder CLOUD holds `argv.jsonl`, all that gcloud was given;
`tools`, which come first in the PATH of workers; and for each pod `NAME.json` and its workers `NAME/0`, `NAME/1`, ...
A request in the queue is granted when it was looked at. No flag is known but those that scripts/pod needs; they were
compared with the help of Google Cloud SDK 528.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

HOSTS = 4
FLAGS = {
    ("tpu-vm", "create"): {"zone", "project", "accelerator-type", "version", "spot"},
    ("tpu-vm", "describe"): {"zone", "project", "format"},
    ("tpu-vm", "delete"): {"zone", "project", "quiet"},
    ("tpu-vm", "ssh"): {"zone", "project", "worker", "command"},
    ("tpu-vm", "scp"): {"zone", "project", "worker"},
    ("queued-resources", "create"): {"zone", "project", "node-id", "accelerator-type", "runtime-version", "spot"},
    ("queued-resources", "describe"): {"zone", "project", "format"},
    ("queued-resources", "delete"): {"zone", "project", "quiet", "force"},
}


class Pod:
    """What the cloud knows of one pod."""

    def __init__(self, cloud, name):
        self.cloud, self.file, self.folder = cloud, cloud / f"{name}.json", cloud / name
        self.facts = json.loads(self.file.read_text()) if self.file.exists() else {}

    def note(self, **facts):
        self.facts |= facts
        self.file.write_text(json.dumps(self.facts))

    def homes(self):
        return [self.folder / str(i) for i in range(HOSTS)]

    def build(self):
        for home in self.homes():
            home.mkdir(parents=True)
        with socket.socket() as free:  # of the ports that the processes can be told by Open MPI's variables
            port = next(p for p in range(61440, 65536) if free.connect_ex(("127.0.0.1", p)))
        self.note(state="READY", port=port)

    def kill(self, worker):
        """End all that runs on a worker, at once."""
        for file in self.homes()[worker].glob(".maejax/*/pid"):
            subprocess.run(["pkill", "-KILL", "-s", file.read_text().strip()], check=False)

    def vanish(self):
        for worker in range(HOSTS):
            self.kill(worker)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, worker):
        """Give what a worker knows: nothing of the caller's, but how JAX's processes find each other."""
        ours = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "TEST_"))}
        return ours | {
            "HOME": str(self.homes()[worker]), "PATH": f"{self.cloud / 'tools'}:/usr/local/bin:/usr/bin:/bin",
            "WORKER": str(worker), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "COLUMNS": "300",
            "OMPI_MCA_orte_hnp_uri": f"{(self.facts['port'] - 61440) * 2**12}.0;tcp://127.0.0.1:1",
            "OMPI_COMM_WORLD_SIZE": str(HOSTS), "OMPI_COMM_WORLD_RANK": str(worker),
            "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        }  # fmt: skip


def preempt(cloud, name):
    """Take a pod away, as the cloud does: its machines are gone, with all that was on them."""
    pod = Pod(cloud, name)
    pod.vanish()
    pod.note(state="PREEMPTED", request="SUSPENDED" if "request" in pod.facts else None)


def fail(text):
    sys.exit(f"ERROR: (gcloud) {text}")


def main(cloud, *argv):
    with open(cloud / "argv.jsonl", "a") as file:
        file.write(json.dumps(argv) + "\n")
    compute, tpus, kind, verb, *rest = argv
    assert (compute, tpus) == ("compute", "tpus")
    flags = dict(re.fullmatch(r"--([a-z-]+)=?(.*)", word, re.DOTALL).groups() for word in rest if word.startswith("--"))
    words = [word for word in rest if not word.startswith("--")]
    if unknown := flags.keys() - FLAGS[kind, verb]:
        fail(f"unrecognized arguments: {unknown}")
    if verb == "scp":
        source, target = words
        name, target = target.split(":")
    else:
        (name,) = words
    pod = Pod(cloud, name)
    facts = pod.facts
    if verb == "create":
        if facts:
            fail("ALREADY_EXISTS")
        pod.note(type=flags["accelerator-type"], spot="spot" in flags)
        if kind == "tpu-vm":
            pod.build()
        else:
            pod.note(request="WAITING_FOR_RESOURCES")
    elif verb == "describe":
        known = {"value(state)": "state", "value(state.state)": "request", "value(acceleratorType)": "type"}
        found = facts.get(known[flags["format"]])
        if found == "WAITING_FOR_RESOURCES":
            pod.build()
            pod.note(request="ACTIVE")
        if not found:
            fail(f"NOT_FOUND: Resource {name!r} was not found")
        print(found)
    elif verb == "delete":
        if not facts:
            fail(f"NOT_FOUND: Resource {name!r} was not found")
        pod.vanish()
        pod.file.unlink()
    elif facts.get("state") != "READY":
        fail(f"the TPU is {facts.get('state')}")
    elif verb == "scp":
        pod.note(modes=facts.get("modes", {}) | {Path(source).name: oct(Path(source).stat().st_mode & 0o777)})
        for home in pod.homes():
            shutil.copy(source, home / target)  # with its mode, as scp
    else:
        chosen = range(HOSTS) if flags["worker"] == "all" else [int(flags["worker"])]
        running = [
            subprocess.Popen(["bash", "-c", flags["command"]], cwd=pod.homes()[i], env=pod.environment(i))
            for i in chosen
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            fail(f"exit codes {codes}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(Path(sys.argv[1]), *sys.argv[2:])
