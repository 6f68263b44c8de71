"""Confines a command as a container or a unit would, where neither is at hand.

``image_script`` is a root file system of its own: the system's libraries, this Python and what an image would hold, all
read-only, and nothing else; of /proc it sees what the units' ProcSubset and ProtectProc leave. ``filter_script`` is
Python code that installs a unit's system call filter and becomes the command.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from pathlib import Path

from tests.deployment.files import ran

USER = 10001
"""The image's."""

_HOST = ("usr", "bin", "sbin", "lib", "lib64")
_ETC = ("ld.so.cache", "hosts", "nsswitch.conf", "localtime")


def why_not() -> str | None:
    """Return why no image can be imitated here, or None."""
    if os.geteuid() != 0:
        return "needs root, for a mount namespace"
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        return "needs unshare and setpriv (util-linux)"
    tried = ran("unshare", "--mount", "--propagation=private", "true")
    return None if tried.returncode == 0 else "this machine forbids mount namespaces"


def image_script(
    root: Path, command: Sequence[str], *, env: Mapping[str, str], folder: str, mounts: Mapping[str, tuple[Path, str]]
) -> str:
    """Return a shell script for `unshare --mount --pid --fork`, whose process 1 the command becomes.

    Args:
        root: an empty folder to build the root on.
        command: absolute or found in PATH of ``env``.
        env: its whole environment.
        folder: working folder, in the container.
        mounts: path in the container -> path here, "ro" or "rw".
    """
    lines = ["set -eu", f"M={root}", "mount -t tmpfs -o mode=0755 image $M"]
    for name in _HOST:
        if (Path("/") / name).is_symlink():
            lines.append(f"ln -s {os.readlink(Path('/') / name)} $M/{name}")
        elif (Path("/") / name).is_dir():
            lines += [f"mkdir $M/{name}", f"mount --bind /{name} $M/{name}", f"mount -o remount,ro,bind $M/{name}"]
    lines += ["mkdir -p $M/etc $M/proc $M/dev $M/tmp"]
    lines += [f"cp -L /etc/{name} $M/etc/" for name in _ETC if (Path("/etc") / name).exists()]
    lines += [
        "mount -t proc -o hidepid=invisible,subset=pid proc $M/proc",
        "mount -t tmpfs -o mode=1777,size=256m tmp $M/tmp",
    ]
    for device in ("null", "zero", "urandom", "random"):
        lines += [f"touch $M/dev/{device}", f"mount --bind /dev/{device} $M/dev/{device}"]
    base = Path(sys.base_prefix)
    python = {} if base == Path("/usr") else {str(base): (base, "ro")}
    for inside, (here, mode) in {**python, **mounts}.items():
        make = f"mkdir -p $M{inside}" if here.is_dir() else f"mkdir -p $M{Path(inside).parent}; touch $M{inside}"
        lines += [make, f"mount --bind {here} $M{inside}"]
        if mode == "ro":
            lines.append(f"mount -o remount,ro,bind $M{inside}")
    words = [
        *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
        *("--inh-caps=-all", "--bounding-set=-all", "env", "-i", f"--chdir={folder}"),
        *(f"{key}={value}" for key, value in env.items()),
    ]
    mark = '"BREAKWATER_TEST_MARK=${BREAKWATER_TEST_MARK-}"'
    lines += ["mount -o remount,ro $M", f"exec chroot $M {shlex.join(words)} {mark} {shlex.join(command)}"]
    return "\n".join(lines)


def filter_script(unit_keys: Mapping[str, list[str]]) -> str | None:
    """Return code for `python -c CODE COMMAND...` that applies a unit's SystemCallFilter; None without tools."""
    if not (shutil.which("systemd-analyze") and find_library("seccomp")):
        return None
    wanted, unwanted = (line.split() for line in unit_keys["SystemCallFilter"])
    assert unwanted[0].startswith("~")
    denied = _calls([unwanted[0][1:], *unwanted[1:]])
    return f"""
import ctypes, errno, os, sys
seccomp = ctypes.CDLL({find_library("seccomp")!r})
seccomp.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(seccomp.seccomp_init(0x00050000 | errno.{unit_keys["SystemCallErrorNumber"][0]}))
for name in {sorted(_calls(wanted) - denied)!r}:
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert seccomp.seccomp_rule_add(context, 0x7FFF0000, number, 0) == 0, name
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert seccomp.seccomp_load(context) == 0
try:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # of @resources
except PermissionError:
    os.execv(sys.argv[1], sys.argv[1:])
sys.exit("the filter lets through what it should not")
"""


def _calls(names: Sequence[str]) -> set[str]:
    """Return the system calls behind systemd's names of sets."""
    found: set[str] = set()
    for name in names:
        if name.startswith("@"):
            ended = ran("systemd-analyze", "syscall-filter", name)
            assert ended.returncode == 0, ended.stderr
            lines = [line.strip() for line in ended.stdout.splitlines()[1:]]
            found |= _calls([line for line in lines if line and not line.startswith("#")])
        else:
            found.add(name)
    return found
