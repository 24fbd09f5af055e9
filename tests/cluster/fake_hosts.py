"""`ray up`, `exec`, `submit`, a training job and `ray down` over real ssh, on hosts that are namespaces.

    python -m tests.cluster.fake_hosts CLUSTER.YAML SCRATCH DATASET

starts itself anew in namespaces of its own (pid, network, mount, hostname) and makes two hosts in them, each with its
own network, processes, home, /tmp/ray and /dev/shm, and an sshd.  The network has no way out.  When the first process
of the outer namespace ends, the kernel ends every other process in it and takes the interfaces and mounts along, so
nothing can be left whatever went wrong.  Each step prints one JSON line: what, seconds, and what it found.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

HEAD, WORKER, LAPTOP = "10.77.0.2", "10.77.0.3", "10.77.0.1"
TOKEN = "a-token-of-the-test-0123456789abcdef"
REPOSITORY = Path(__file__).parents[2]
NEEDED = ("unshare", "ip", "sshd", "ssh", "ssh-keygen", "rsync", "mount", "bash")


def missing() -> str | None:
    """Why this machine cannot do it; None where it can."""
    if os.geteuid() != 0:
        return "namespaces with a network need root"
    absent = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    tried = subprocess.run(
        [*OUTER, "sh", "-c", "ip link add b0 type bridge && ip link add v0 type veth peer name v1"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


OUTER = ("unshare", "--pid", "--net", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")


def _path() -> str:
    return f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(cluster: Path, scratch: Path, dataset: Path, timeout: float) -> list[dict[str, Any]]:
    """Everything, from outside; the records of the steps.  Raises CalledProcessError where a step failed."""
    command = [
        *OUTER,
        sys.executable,
        "-m",
        __spec__.name if __spec__ else "tests.cluster.fake_hosts",
        "inside",
    ]
    with subprocess.Popen(
        [*command, str(cluster), str(scratch), str(dataset)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": _path(), "HOME": "/root", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
    ) as process:
        before = set(Path("/tmp").glob("ray_ssh_*"))
        try:
            out, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()  # unshare's --kill-child ends the rest
            for control in set(Path("/tmp").glob("ray_ssh_*")) - before:
                shutil.rmtree(control)
    records = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output=out)
    return records


class Inside:
    """The steps, as the first process of the outer namespace."""

    def __init__(self, cluster: Path, scratch: Path, dataset: Path):
        self.cluster, self.scratch, self.dataset = cluster, scratch, dataset
        self.hosts: dict[str, subprocess.Popen[bytes]] = {}
        self.file = scratch / "cluster.yaml"

    def step(
        self, what: str, command: list[str] | str, *, inputs: str | None = None, fails: bool = False
    ) -> str:
        started = time.monotonic()
        shell = isinstance(command, str)
        done = subprocess.run(
            command,
            shell=shell,
            stdin=None if inputs else subprocess.DEVNULL,
            input=inputs,
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "RAY_UP_enable_autoscaler_v2": "0",
                "RAY_AUTH_MODE": "token",
                "TMPDIR": str(self.scratch),
            },
        )
        output = done.stdout + done.stderr
        with (self.scratch / "log.txt").open("a") as log:
            log.write(f"\n===== {what}: {command}\n{output}")
        record = {"step": what, "seconds": round(time.monotonic() - started, 1), "code": done.returncode}
        print(json.dumps(record), flush=True)
        if (done.returncode != 0) != fails:
            print(output[-6000:], flush=True)
            sys.exit(1)
        return output

    def say(self, what: str, **found: Any) -> None:
        print(json.dumps({"step": what, **found}), flush=True)

    def run(self) -> None:
        shell = subprocess.check_call
        shell(["mount", "--make-rprivate", "/"])
        shell(
            "ip link set lo up; ip link add br0 type bridge; ip addr add 10.77.0.1/24 dev br0; ip link set br0 up",
            shell=True,
        )
        shell(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.scratch / "key")])
        shell(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.scratch / "host_key")])
        self._home("laptop")
        os.environ["HOME"] = str(self.scratch / "home-laptop")
        started = time.monotonic()
        for number, (name, address) in enumerate((("head", HEAD), ("worker", WORKER))):
            self._host(number, name, address)
        self.say("hosts", seconds=round(time.monotonic() - started, 1))
        self._write_cluster()
        try:
            self._use()
        finally:
            for host in self.hosts.values():
                host.send_signal(signal.SIGKILL)

    def _home(self, name: str) -> None:
        """This mount namespace's own home of root, /tmp/ray, /dev/shm and /run.

        The real home stays where it is, for the Python that runs this may lie in it.
        """
        home = self.scratch / f"home-{name}"
        (home / ".ssh").mkdir(parents=True)
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(TOKEN)
        (home / ".ssh" / "authorized_keys").write_text((self.scratch / "key.pub").read_text())
        line = f"export PATH={_path()} OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0\n"
        (home / ".bashrc").write_text(line)
        (home / ".bash_profile").write_text(line)
        Path("/tmp/ray").mkdir(exist_ok=True)
        users = self.scratch / f"passwd-{name}"
        lines = (line.split(":") for line in Path("/etc/passwd").read_text().splitlines())
        moved = ([*of[:5], str(home), *of[6:]] if of[0] == "root" else of for of in lines)
        users.write_text("".join(":".join(of) + "\n" for of in moved))
        for mount in (
            ["mount", "--bind", str(users), "/etc/passwd"],
            ["mount", "-t", "tmpfs", "tmpfs", "/tmp/ray"],
            ["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"],
            ["mount", "-t", "tmpfs", "tmpfs", "/run"],
        ):
            subprocess.check_call(mount)

    def _host(self, number: int, name: str, address: str) -> None:
        host = subprocess.Popen(
            [*OUTER, sys.executable, "-m", "tests.cluster.fake_hosts", "host", str(self.scratch), name],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
        )
        self.hosts[name] = host
        child = self._first_child(host.pid)
        for command in (
            f"ip link add v{number} type veth peer name eth0 netns {child}",
            f"ip link set v{number} master br0 up",
            f"nsenter -t {child} -n ip link set lo up",
            f"nsenter -t {child} -n ip addr add {address}/24 dev eth0",
            f"nsenter -t {child} -n ip link set eth0 up",
            # Ray asks which of its addresses would reach the world; nothing forwards what goes there.
            f"nsenter -t {child} -n ip route add default via {LAPTOP}",
        ):
            subprocess.check_call(command, shell=True)
        assert host.stdin is not None
        host.stdin.write(b"go\n")
        host.stdin.flush()
        self._until(
            f"ssh to {name}",
            lambda: (
                subprocess.run(
                    [
                        "ssh",
                        "-i",
                        str(self.scratch / "key"),
                        "-o",
                        "StrictHostKeyChecking=no",
                        "-o",
                        "BatchMode=yes",
                        "-o",
                        "ConnectTimeout=2",
                        f"root@{address}",
                        "true",
                    ],
                    capture_output=True,
                    check=False,
                ).returncode
                == 0
            ),
        )

    @staticmethod
    def _first_child(pid: int) -> int:
        path = Path(f"/proc/{pid}/task/{pid}/children")
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up:
            if children := path.read_text().split():
                return int(children[0])
            time.sleep(0.02)
        raise TimeoutError("unshare did not start its child")

    def _until(self, what: str, holds: Any, seconds: float = 120) -> float:
        started = time.monotonic()
        while not holds():
            if time.monotonic() - started > seconds:
                self.say("gave up", waiting_for=what)
                sys.exit(1)
            time.sleep(0.5)
        return round(time.monotonic() - started, 1)

    def _write_cluster(self) -> None:
        """The file of the docs with the addresses, user and key of these hosts, and with no installation: the hosts
        share this machine's disk, and with it the environment, and have no network to install from."""
        cluster = yaml.safe_load(self.cluster.read_text())
        cluster["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
        cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.scratch / "key")}
        del cluster["file_mounts"]["~/raytrain"]
        cluster["setup_commands"] = cluster["setup_commands"][:2]
        for name in ("head_start_ray_commands", "worker_start_ray_commands"):
            cluster[name] = [
                line.replace("--object-store-memory=1000000000", "--object-store-memory=150000000")
                for line in cluster[name]
            ]
        self.file.write_text(yaml.safe_dump(cluster))

    def _use(self) -> None:
        file, started = str(self.file), time.monotonic()
        self.step("ray up", ["ray", "up", file, "--yes", "--no-config-cache"])
        alive = "from ray.util.state import list_nodes as l; exit(sum(n.state == 'ALIVE' for n in l()) < 2)"
        both = f'for i in {{1..60}}; do python -c "{alive}" && exit 0; sleep 1; done; exit 1'
        self.step("both nodes alive", ["ray", "exec", file, both])
        self.say("since ray up", seconds=round(time.monotonic() - started, 1))
        self.step("ray exec", ["ray", "exec", file, "ray status"])
        script = self.scratch / "where.py"
        script.write_text(
            "import ray, socket\n"
            "ray.init(address='auto', log_to_driver=False)\n"
            "print('task on', ray.get(ray.remote(num_cpus=1)(lambda: socket.gethostname()).remote()))\n"
        )
        found = self.step("ray submit", ["ray", "submit", file, str(script)])
        self.say("task ran on the worker", yes="task on worker" in found)
        run = self.scratch / "run"
        train = (
            f"raytrain train {self.dataset} --out {run} --workers 2 --epochs 3 --set model.hidden=[16] "
            "--set model.embedding=8 --set train.precision=float32 --set train.cpus_per_worker=1 "
            "--set data.batch_size=40"
        )
        job = f"ray job submit --address http://127.0.0.1:8265 -- {train}"
        self.step("job: raytrain train", ["ray", "exec", file, job])
        config = json.loads((run / "config.json").read_text())
        self.say(
            "run",
            workers=config["train"]["workers"],
            validations=len((run / "history.jsonl").read_text().splitlines()),
        )
        codes = {}
        for name, header in (
            ("without token", ""),
            ("wrong token", "-H 'Authorization: Bearer no'"),
            ("with token", f"-H 'Authorization: Bearer {TOKEN}'"),
        ):
            curl = f"curl -s -o /dev/null -w code=%{{http_code}} {header} http://127.0.0.1:8265/api/jobs/"
            codes[name] = int(self.step(f"jobs {name}", ["ray", "exec", file, curl]).split("code=")[1][:3])
        self.say("jobs API", **codes)
        outside = subprocess.run(
            ["curl", "-s", "-m", "3", f"http://{HEAD}:8265/"], capture_output=True, check=False
        )
        self.say("dashboard from outside", curl=outside.returncode)  # 7: refused
        self.step("ray down", ["ray", "down", file, "--yes"])
        left = {}
        for name in self.hosts:
            address = {"head": HEAD, "worker": WORKER}[name]
            listed = subprocess.run(
                [
                    "ssh",
                    "-i",
                    str(self.scratch / "key"),
                    "-o",
                    "StrictHostKeyChecking=no",
                    f"root@{address}",
                    "ps -eo args",
                ],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            left[name] = sum(
                word in line for line in listed.splitlines() for word in ("raylet/raylet", "gcs_server")
            )
        self.say("ray processes left", **left)


def host(scratch: Path, name: str) -> None:
    """A host: its own home and hostname, an sshd in the foreground."""
    sys.stdin.readline()
    subprocess.check_call(["hostname", name])
    inside = Inside(scratch, scratch, scratch)
    inside._home(name)
    Path("/run/sshd").mkdir()
    settings = {
        "HostKey": scratch / "host_key",
        "AuthorizedKeysFile": scratch / "key.pub",
        "PermitRootLogin": "yes",
        "PasswordAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "UseDNS": "no",
        "MaxStartups": "100",
        "MaxSessions": "100",
        "PidFile": "none",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    sshd = str(shutil.which("sshd", path=_path()))
    os.execv(sshd, [sshd, "-D", "-f", "/dev/null", *options])


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "inside":
        Inside(*map(Path, arguments)).run()
    elif verb == "host":
        host(Path(arguments[0]), arguments[1])
    else:
        for line in run(*(Path(argument).resolve() for argument in (verb, *arguments)), timeout=600):
            print(json.dumps(line))
