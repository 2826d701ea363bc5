"""What runs inside the sandbox before the program does; `sandbox.py` starts it. Standard library only.

    python -I -S -B -c JAIL LIMITS_JSON TOKEN < program

It stands in fresh mount, network, IPC and process namespaces, and in a user namespace unless it is root's. It makes the
whole file system read-only but for the program's own folder, a small tmpfs; sets limits; gives up every right it has;
and becomes the program.
"""

import ctypes
import json
import os
import resource
import sys

MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
MOUNT_SETATTR, AT_RECURSIVE, AT_FDCWD, ATTR_RDONLY = 442, 0x8000, -100, 0x1
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
LIBC = ctypes.CDLL(None, use_errno=True)

# The token is the proof that the program ran to its end: a program that exits early has not shown it. It is on the
# command line for a moment only, and what the program prints cannot guess it.
RUNNER = """
import sys
program, token = sys.argv[1:]
del sys.argv[1:]
exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
sys.__stdout__.write("\\n" + token)
sys.__stdout__.flush()
"""


def call(function: str, *args: object) -> None:
    if getattr(LIBC, function)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    text = [None if x is None else x.encode() for x in (source, target, kind)]
    call("mount", *text, ctypes.c_ulong(flags), None if options is None else options.encode())


def close_in(root: str, folder: str, megabytes: int, prefix: str, python: str) -> None:
    """Makes `root` a read-only view of / whose `folder` is an empty tmpfs, and enters it.

    Python's installation is shown at `python`: it may lie where only its owner can go.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("/", root, None, MS_BIND | MS_REC)
    mount(prefix, root + python, None, MS_BIND | MS_REC)
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    mount("tmpfs", root + folder, "tmpfs", MS_NOSUID | MS_NODEV, f"size={megabytes}m,nr_inodes=256,mode=1777")
    mount("tmpfs", root + "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "size=0,nr_inodes=1")  # nobody's environment
    os.chroot(root)
    os.chdir(folder)


def give_up_rights(user: int | None) -> None:
    """No capability survives the exec. Root becomes somebody whose processes the kernel counts."""
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


def main() -> None:
    limits, token = json.loads(sys.argv[1]), sys.argv[2]
    program = sys.stdin.buffer.read().decode()
    close_in(*(limits[name] for name in ("root", "folder", "megabytes", "prefix", "python")))
    for name, bound in limits["rlimits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))
    give_up_rights(limits["user"])
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    executable = limits["python"] + limits["executable"]
    arguments = [executable, "-I", "-S", "-B", "-c", RUNNER, program, token]
    os.execve(executable, arguments, {"LD_LIBRARY_PATH": limits["python"] + "/lib"})


main()
