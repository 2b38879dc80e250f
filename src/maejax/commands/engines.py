"""The files of the engines that people have: SLURM, Kubernetes (JobSet), xpk, SkyPilot, Docker."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from maejax.commands.command import FAILED, STOPPED, WRONG_INPUT, Command
from maejax.errors import InputError

GRACE_SECONDS = 300  # between SIGTERM and SIGKILL, to save
PORT = 8476  # of process 0, where JAX's discovery does not know the engine

# GKE's labels, by gcloud's names of the versions.
GKE = {"v4": "tpu-v4-podslice", "v5litepod": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}


@dataclass(frozen=True)
class Job(Command):
    """A command, the hosts that shall run it, and what they need of an engine."""

    command: tuple[str, ...] = field(default=(), metadata={"positional": "COMMAND ..."})
    """train, features or pack, with its flags."""
    name: str = ""
    """Name of the job. Empty: maejax-COMMAND."""
    hosts: int = 0
    """Hosts of a training; several are joined by --distributed. A TPU slice has hosts of its own."""
    parts: int = 0
    """Parts of `features` or `pack`, each on one host, for slurm and jobset."""
    gpus: str = ""
    """GPUs of each host, such as 8. A kind, such as H100:8, is needed by skypilot, possible with slurm."""
    tpu: str = ""
    """TPU slice by gcloud's name, such as v5litepod-16, for jobset, xpk and skypilot."""
    cpus: int = 0
    """CPUs of each host. 0: what the engine gives."""
    memory: int = 0
    """Memory of each host in GiB. 0: what the engine gives."""
    hours: float = 0.0
    """Time limit, for slurm; a training is saved before it. 0: that of the partition."""
    env: tuple[str, ...] = ()
    """Names of variables, secrets among them. Their values stay where the file is submitted, or in --secret."""
    secret: str = "maejax"
    """Kubernetes secret that holds the variables of --env, for jobset."""
    image: str = ""
    """Container image with maejax, such as one of the Dockerfile; for all but slurm."""
    mount: tuple[str, ...] = ()
    """SOURCE:FOLDER, a folder (docker), volume claim (jobset) or bucket (skypilot) and where the command sees it."""
    service_account: str = "maejax"
    """Kubernetes service account that may read pods and jobs, for jobset."""
    cluster: str = ""
    """GKE cluster, for xpk."""
    spot: bool = False
    """Take hosts that may be preempted, for xpk and skypilot."""
    restarts: int = 10
    """How often jobset and xpk start again what failed. For xpk, being stopped after saving counts too."""

    @property
    def gpu_count(self) -> int:
        """Number of a host's GPUs."""
        return int(self.gpus.rpartition(":")[2] or 0)

    @property
    def mounts(self) -> list[tuple[str, str]]:
        """Sources and folders of --mount."""
        return [(text.rpartition(":")[0], text.rpartition(":")[2]) for text in self.mount]

    def words(self, *more: str) -> list[str]:
        """Return the command with more flags; without any, JAX's own discovery joins several hosts of a training."""
        return [*self.command, *more, *["--distributed"] * (self.hosts > 1 and not more)]


class Slice(NamedTuple):
    """A slice of a TPU pod: gcloud's version, its number of chips, and those along each axis, such as 4x4."""

    version: str
    chips: int
    shape: str


def find_slice(name: str) -> Slice:
    """Return a slice by gcloud's name; raises InputError if GKE has none of it."""
    from maejax.plan.target import read_name

    version = name.partition("-")[0]
    try:
        shape = read_name(name, "--tpu")[1].partition(":")[2]
    except ValueError as error:
        raise InputError(str(error)) from None
    if version not in GKE:
        raise InputError(f"--tpu {name}: give one of {', '.join(GKE)}")
    return Slice(version, prod(map(int, shape.split("x"))), shape)


def slurm(job: Job) -> str:
    """Return a script for sbatch; all hosts see the same files."""
    tasks = max(job.gpu_count, 1) if job.hosts > 1 else 1  # JAX gives each of several processes one GPU of its host
    cpus = f"--cpus-per-task={max(job.cpus // tasks, 1)}" if job.cpus else ""
    hours, minutes = divmod(max(round(job.hours * 60), 1), 60)  # SLURM takes 0 for no limit
    options = [
        f"--job-name={job.name}",
        f"--array=0-{job.parts - 1}" if job.parts else "",
        f"--nodes={job.hosts}",
        f"--ntasks-per-node={tasks}",
        cpus,
        f"--gpus-per-node={job.gpus}" if job.gpus else "",
        f"--mem={job.memory}G" if job.memory else "",
        f"--time={hours}:{minutes:02d}:00" if job.hours else "",
        f"--export={','.join(dict.fromkeys(('HOME', 'PATH', 'USER', *job.env)))}",
        f"--output={job.name}-{'%A-%a' if job.parts else '%j'}.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{GRACE_SECONDS}",
    ]
    maejax = [sys.executable, "-m", "maejax"]
    gather = shlex.quote(shlex.join([*maejax, *job.words("--gather")]))
    words = job.words("--part", "slurm") if job.parts else job.words()
    # The last job of an array has the array's number, which would start all of them again.
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.parts else "$SLURM_JOB_ID"
    return _lines(
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options if option),
        "# Submit all parts, and then what gathers them; FILE is this script:" if job.parts else "",
        f"# sbatch --dependency=afterok:$(sbatch --parsable FILE) --wrap={gather}" if job.parts else "",
        *(f': "${{{name}:?is not set where sbatch was called}}"' for name in job.env),
        _in_shell(["srun", "--kill-on-bad-exit=0", *filter(None, [cpus]), *maejax, *words]),
        "code=$?",
        f"# {STOPPED}: stopped after saving, before the time limit or by preemption. The same command goes on.",
        f'[ $code -eq {STOPPED} ] && scontrol requeue "{number}"',
        "exit $code",
    )


def jobset(job: Job) -> str:
    """Return a JobSet: its pods train together, or each computes parts of an Indexed Job, which a last one gathers."""
    metadata: dict[str, Any] = {"name": job.name}
    spec: dict[str, Any] = {}
    if job.parts:
        again = {"backoffLimitPerIndex": job.restarts}
        # An Indexed Job tells its pods their number, but not how many there are.
        count = {"name": "JOB_COMPLETIONS", "value": str(job.parts)}
        gather = _replicated(job, "gather", job.words("--gather"), 1, {"backoffLimit": job.restarts})
        parts = _replicated(job, "parts", job.words("--part", "kubernetes"), job.parts, again, count)
        spec["replicatedJobs"] = [parts, gather | {"dependsOn": [{"name": "parts", "status": "Complete"}]}]
    else:
        if job.tpu:
            metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        wrong = {"name": "wrongInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        spec["failurePolicy"] = {"maxRestarts": job.restarts, "rules": [wrong]}
        # A pod that fails takes all with it: the others cannot train without it.
        spec["replicatedJobs"] = [_replicated(job, "train", job.words(), job.hosts, {"backoffLimit": 0})]
    whole = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}
    return _lines(
        "# For `kubectl apply -f`, where JobSet 0.8 or later is installed.",
        f"# Exit code {WRONG_INPUT}, wrong input, ends it; {STOPPED}, stopped after saving, starts again, uncounted.",
        _in_yaml(whole),
    )


def _replicated(
    job: Job, name: str, words: list[str], pods: int, again: dict[str, int], *variables: dict[str, Any]
) -> dict[str, Any]:
    """Return a job of a JobSet; `again` says how often a pod that failed is started again."""
    limits, selector = {"nvidia.com/gpu": job.gpu_count or ""}, {}
    if job.tpu:
        version, chips, shape = find_slice(job.tpu)
        limits = {"google.com/tpu": min(chips, 4)}
        selector = {"cloud.google.com/gke-tpu-accelerator": GKE[version], "cloud.google.com/gke-tpu-topology": shape}
    requests = {"cpu": job.cpus or "", "memory": f"{job.memory}Gi" if job.memory else ""}
    secrets = ({"name": key, "valueFrom": {"secretKeyRef": {"name": job.secret, "key": key}}} for key in job.env)
    places = {f"mount-{i}": mount for i, mount in enumerate(job.mounts)}
    container: dict[str, Any] = {
        "name": "maejax",
        "image": job.image,
        "command": [word.replace("$(", "$$(") for word in ["maejax", *words]],  # Kubernetes replaces $(NAME)
        "env": [*variables, *secrets],
        "resources": {"requests": requests, "limits": limits},
        "volumeMounts": [{"name": key, "mountPath": folder} for key, (_, folder) in places.items()],
    }
    volumes = [{"name": key, "persistentVolumeClaim": {"claimName": claim}} for key, (claim, _) in places.items()]
    if job.gpus:  # NCCL wants more shared memory than the 64 MB of a container
        container["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "serviceAccountName": job.service_account,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": volumes,
    }
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [WRONG_INPUT]}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [STOPPED]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    spec: dict[str, Any] = {"completionMode": "Indexed", "completions": pods, "parallelism": pods, **again}
    spec |= {"podFailurePolicy": {"rules": rules}, "template": {"spec": pod}}
    return {"name": name, "template": {"spec": spec}}


def xpk(job: Job) -> str:
    """Return a command line of xpk, which makes a JobSet on a TPU slice of GKE."""
    again = f"--restart-on-exit-codes {FAILED},{STOPPED} --max-restarts {job.restarts}"
    options = [
        f"--cluster {shlex.quote(job.cluster)} --workload {job.name}",
        f"--tpu-type {job.tpu} --docker-image {shlex.quote(job.image)}",
        "--spot" if job.spot else "",
        # Names alone, in place of a file: xpk takes the values from its own environment.
        f"--env-file <(printf '%s\\n' {' '.join(job.env)})" if job.env else "",
        f"{again} --termination-grace-period-seconds {GRACE_SECONDS}",
        f"--command {shlex.quote(shlex.join(['exec', 'maejax', *job.words()]))}",  # exec: signals reach maejax itself
    ]
    return _lines(" \\\n    ".join(filter(None, ["xpk workload create", *options])))


def skypilot(job: Job) -> str:
    """Return a task for `sky jobs launch`, which finds other hosts after preemption."""
    resources: dict[str, Any] = {"image_id": f"docker:{job.image}"}
    if job.tpu:
        resources |= {"infra": "gcp", "accelerators": f"tpu-{job.tpu}"}
    resources |= {"accelerators": job.gpus} if job.gpus else {}
    resources |= {key: f"{n}+" for key, n in (("cpus", job.cpus), ("memory", job.memory)) if n}
    again = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [STOPPED]}
    resources |= {"use_spot": job.spot, "job_recovery": again}
    if job.hosts > 1 and not job.tpu:  # JAX does not know SkyPilot
        first = f'"$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"'
        run = f"{_in_shell(['maejax', *job.command])} \\\n    --coordinator {first}"
        run += ' \\\n    --num-processes "$SKYPILOT_NUM_NODES" --process-id "$SKYPILOT_NODE_RANK"'
    else:
        run = _in_shell(["maejax", *job.words()])
    task = {
        "name": job.name,
        "num_nodes": 1 if job.tpu else job.hosts,  # SkyPilot counts a slice as one
        "resources": resources,
        "secrets": dict.fromkeys(job.env),
        "file_mounts": {folder: {"source": source, "mode": "MOUNT"} for source, folder in job.mounts},
        "run": run + "\n",
    }
    secrets = "".join(f" --secret {name}" for name in job.env)
    return _lines(f"# For `sky jobs launch{secrets} FILE`.", _in_yaml(task))


def docker(job: Job) -> str:
    """Return a script that runs a container, and runs it again where it was stopped after saving."""
    options = [
        f"--name {job.name} --init --stop-timeout {GRACE_SECONDS}",
        f"--gpus {job.gpus} --shm-size 1g" if job.gpus else "",
        f"--cpus {job.cpus}" if job.cpus else "",
        f"--memory {job.memory}g" if job.memory else "",
        " ".join(f"--env {name}" for name in job.env),
        " ".join(f"--volume {shlex.quote(f'{source}:{folder}')}" for source, folder in job.mounts),
        f"{shlex.quote(job.image)} {_in_shell(['maejax', *job.words()])}",
    ]
    return _lines(
        "#!/bin/sh",
        "# Ctrl-C or SIGTERM to this script ends it.",
        "trap 'ended=1' INT TERM",
        "while :; do",
        " \\\n    ".join(filter(None, ["docker run --rm", *options])),
        "code=$?",
        f"# {STOPPED}: stopped after saving. The same command goes on.",
        f'[ $code -eq {STOPPED} ] && [ -z "$ended" ] || exit $code',
        "done",
    )


def _lines(*lines: str) -> str:
    """Join lines, leaving out the empty ones."""
    return "\n".join(line.rstrip("\n") for line in lines if line) + "\n"


def _in_shell(words: Sequence[str]) -> str:
    """Return a command with each flag on a line of its own."""
    return "".join((" \\\n    " if word.startswith("--") else " ") + shlex.quote(word) for word in words)[1:]


def _in_yaml(value: dict[str, Any]) -> str:
    """Return a dictionary as YAML, without what is empty in it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what some readers of YAML take for a number: 1e-3 is one for Kubernetes, though not for PyYAML."""

    def text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        style = "|" if "\n" in text else None if re.fullmatch(r"[A-Za-z/][\w./-]*", text) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)

    Dumper.add_representer(str, text_node)
    return yaml.dump(_filled(value), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=110)


def _filled(value: Any) -> Any:
    """Leave out what is empty in a dictionary, at any depth."""
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := _filled(item)) not in ({}, [], "")}
    return [_filled(item) for item in value] if isinstance(value, list) else value
