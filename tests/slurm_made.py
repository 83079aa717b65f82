"""A real SLURM of one machine, from Debian's packages, which are unpacked and not installed."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import debian
from debian import LIBRARIES

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
PluginDir={root}/{libraries}/slurm-wlm
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def unpack(folder: Path) -> Path:
    """See `debian.unpack`."""
    return debian.unpack(folder, "slurmctld", "slurmd", "slurm-client")


@contextmanager
def cluster(root: Path, folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `sbatch`, `srun` and `scontrol` speak to a cluster that is up."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = [debian.free_port() for _ in range(2)]
    told = {"host": socket.gethostname(), "cpus": os.cpu_count(), "ports": ports}
    config.write_text(CONFIG.format(folder=folder, root=root, libraries=LIBRARIES, **told))
    libraries = f"{root}/{LIBRARIES}:{root}/{LIBRARIES}/slurm-wlm"
    own = {"LD_LIBRARY_PATH": libraries, "SLURM_CONF": str(config)}
    environment = os.environ | own | {"PATH": f"{root}/usr/bin:{os.environ['PATH']}"}
    sbin = root / "usr" / "sbin"
    munge = {"key-file": key, "socket": folder / "munge.sock", "pid-file": folder / "munged.pid"}
    munge |= {"log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in munge.items())],
        ["slurmctld-wlm", "-D", "-f", config],
        ["slurmd-wlm", "-D", "-f", config, "-d", sbin / "slurmstepd-wlm"],
    ]
    daemons = []
    try:
        for name, *arguments in commands:
            with (folder / f"{name}.out").open("w") as out:
                daemons.append(
                    subprocess.Popen(
                        [sbin / name, *arguments], env=environment, stdout=out, stderr=out
                    )
                )
            time.sleep(1)
        for _ in range(60):
            said = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True)
            if said.stdout.strip() in (b"idle", b"mixed", b"allocated"):
                break
            time.sleep(1)
        else:
            raise RuntimeError(f"SLURM is not up after a minute; its logs are in {folder}")
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
