"""A process of a run in which one ends early: `python -m tests.parallel.ends '{"who": ..., "how": ...}'`."""

import json
import os
import signal
import sys
import time

from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.parallel import ending_together, start_processes, wait_for_all


def main(coordinator: str, processes: int, process: int, who: int, how: str) -> None:
    start_processes(coordinator, processes, process)
    with ending_together((EOFError,)):
        wait_for_all("begin")
        print("begun", flush=True)
        if process == who:
            time.sleep(0.5)
            if how == "refused":
                raise UserError("--workdir: taken")
            if how == "fails":
                raise RuntimeError("a fault")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        wait_for_all("the others hang here")
        if how == "calm":
            raise EOFError
    print("the end", flush=True)


if __name__ == "__main__":
    try:
        main(**json.loads(sys.argv[1]))
    except UserError as error:
        cli.fail(str(error))
    except EOFError:
        sys.exit(75)
