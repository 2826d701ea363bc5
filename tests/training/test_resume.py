"""Contract 7: a killed run resumes to the same numbers; a checkpoint is whole or not there."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import commands
from tests.helpers import small_config
from zaya_jax import load_pretrained
from zaya_jax.architecture import Zaya
from zaya_jax.data.pipeline import make_train_iterator
from zaya_jax.interop.formats.native import CheckpointError, load_native, write_model_file
from zaya_jax.parallel import MeshConfig, make_placement
from zaya_jax.tasks import TaskSource, make_task
from zaya_jax.text.tokenizers import ByteTokenizer
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import MetricWriter, read_metrics
from zaya_jax.training.loop import Phase, train
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.signals import Interrupted
from zaya_jax.training.state import init_state, init_variables

pytestmark = pytest.mark.early

CONFIG = small_config(vocab_size=260)
PHASE = Phase("convert", Objective("tidar", 4, masking="random"), OptimizerConfig(), steps=7, log_every=1, save_every=2)


class Killed(Exception):
    pass


class Dying:
    """A data iterator that fails at its n-th batch."""

    def __init__(self, batches, after):
        self.batches, self.left = batches, after

    def __next__(self):
        if self.left == 0:
            raise Killed
        self.left -= 1
        return next(self.batches)

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)


def batches():
    mixture = [(TaskSource(make_task("addition"), "train", 0, 500), 1.0)]
    return make_train_iterator(mixture, ByteTokenizer(), 32, 4, seed=3)


class Signalled(Dying):
    """A data iterator at whose n-th batch this process gets signals."""

    def __init__(self, batches, after, *signals):
        super().__init__(batches, 10**9)
        self.after, self.signals = after, signals

    def __next__(self):
        self.after -= 1
        for number in self.signals if self.after == 0 else ():
            handler, patience = signal.getsignal(number), time.monotonic() + 60
            os.kill(os.getpid(), number)
            # another thread may have taken the signal; its handler, which puts others back, runs before the next one
            while signal.getsignal(number) is handler and time.monotonic() < patience:
                time.sleep(0.01)
        return super().__next__()


@functools.cache
def initial() -> dict:
    return init_variables(Zaya(CONFIG), 0)


def run(directory, after=10**9, placement=None, data=None):
    model = Zaya(CONFIG)
    write_model_file(directory / "steps", CONFIG)
    with Checkpoints(directory / "steps") as checkpoints:
        writer = MetricWriter(directory / "metrics.jsonl")
        data = data or Dying(batches(), after)
        return train(model, jax.tree.map(jnp.copy, initial()), PHASE, data, checkpoints, writer, placement=placement)


def numbers(directory):
    """Everything in metrics.jsonl but the times."""
    return [
        {k: v for k, v in line.items() if not k.endswith("_per_second")}
        for line in read_metrics(directory / "metrics.jsonl")
    ]


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)


@pytest.mark.parametrize("after", [1, 4, 5])
def test_a_killed_run_resumes_to_bit_identical_numbers(whole, tmp_path, after):
    with pytest.raises(Killed):
        run(tmp_path, after)
    state = run(tmp_path)
    assert equal(state, whole[1])
    assert numbers(tmp_path) == numbers(whole[0])
    assert [line["step"] for line in numbers(tmp_path)] == list(range(1, 8))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_at_the_next_step(whole, tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match=r"^convert: asked to stop; saved at step 3 of 7$"):
        run(tmp_path, data=Signalled(batches(), 3, number))
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    with Checkpoints(tmp_path / "steps") as checkpoints:
        assert checkpoints.latest == 3
    assert equal(run(tmp_path), whole[1])
    assert numbers(tmp_path) == numbers(whole[0])


def test_a_second_signal_does_not_wait(whole, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, data=Signalled(batches(), 3, signal.SIGTERM, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert equal(run(tmp_path), whole[1])


def test_a_signal_in_the_last_step_lets_the_phase_end(whole, tmp_path):
    assert equal(run(tmp_path, data=Signalled(batches(), 7, signal.SIGTERM)), whole[1])


TOGETHER = """
    import os, signal, sys, time
    import jax
    from zaya_jax.training.signals import stop_request

    process = int(sys.argv[2])
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, process)
    with stop_request() as stop:
        for step in range(1, 100):
            if process == 1 and step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.agreed(look=step % 4 == 0):
                print("STOPPED", step, flush=True)
                break
"""


def test_processes_stop_together():
    """One of two is asked, after step 5; both stop where they next ask each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", textwrap.dedent(TOGETHER), str(port)]
    both = [
        subprocess.Popen([*command, str(i)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=180)
        assert out.splitlines()[-1:] == ["STOPPED 8"], err[-3000:]  # above it stands what the transport says
        assert process.returncode == 0


# One process that has imported everything and not started JAX forks a child for each number n it is given; the child
# trains, and is killed as by kill -9 at its n-th action on a file or folder of the run.
KILLED = """
    import os, signal, sys, threading
    from pathlib import Path
    from tests.training import test_resume

    directory, moments = Path(sys.argv[1]), map(int, sys.argv[2:])
    directory.mkdir()
    ACTIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}

    def train(moment):
        left = [moment]

        def hook(event, args):
            if event in ACTIONS and args and str(args[0]).startswith(str(directory)):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        test_resume.run(directory)
        print("ACTIONS", moment - left[0], flush=True)

    assert threading.active_count() == 1
    for moment in (*moments, 10**9):
        if (child := os.fork()) == 0:
            train(moment)
            os._exit(0)
        print("STATUS", os.waitpid(child, 0)[1], sorted(p.name for p in (directory / "steps").glob("*")), flush=True)
"""


def killed_at(directory, moments: list[int]) -> list[str]:
    """The output of KILLED."""
    done = commands.run("tests.snippet", KILLED, str(directory), *map(str, moments), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def check_killed_runs(whole, directory, moments: list[int]) -> None:
    lines = killed_at(directory, moments)
    statuses = [int(line.split()[1]) for line in lines if line.startswith("STATUS")]
    killed = [status for status in statuses if status == signal.SIGKILL]
    assert len(killed) >= len(moments) // 2 and set(statuses) <= {0, signal.SIGKILL}, lines
    assert statuses[-1] == 0
    assert numbers(directory) == numbers(whole[0])
    config, variables = load_pretrained(directory / "steps")
    assert config == CONFIG
    assert equal(variables, whole[1].variables)


def test_kill_9_at_moments_of_saving_and_logging(whole, tmp_path):
    check_killed_runs(whole, tmp_path / "run", [15, 40])


@pytest.mark.slow
def test_kill_9_at_any_moment(whole, tmp_path):
    """26 kills, two to a run: more would find most runs already whole."""
    for number, moments in enumerate(np.random.default_rng(0).integers(2, 60, (13, 2)).tolist()):
        check_killed_runs(whole, tmp_path / f"run_{number}", moments)


def test_a_finished_phase_changes_nothing(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    assert equal(run(tmp_path / "copy", after=0), whole[1])
    assert numbers(tmp_path / "copy") == numbers(whole[0])


@pytest.mark.slow
def test_resume_on_fewer_devices(whole, tmp_path):
    """Two devices, killed, then one: the same numbers up to the order of sums."""
    with pytest.raises(Killed):
        run(tmp_path, 5, make_placement(MeshConfig(), CONFIG, 4, 32))
    state = run(tmp_path)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole[1].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-4)


def test_load_pretrained_reads_the_newest_step_without_the_optimizer(whole):
    config, variables = load_pretrained(whole[0] / "steps")
    assert config == CONFIG
    assert equal(variables, whole[1].variables)


def test_an_interrupted_save_leaves_the_previous_step(whole, tmp_path):
    """A save that died half-way is a folder without its final name; it is not a step, and it is swept away."""
    shutil.copytree(whole[0] / "steps", tmp_path / "steps")
    half = tmp_path / "steps" / "8.orbax-checkpoint-tmp-1"
    shutil.copytree(tmp_path / "steps" / "7", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    assert equal(load_native(tmp_path / "steps")[1], whole[1].variables)
    with Checkpoints(tmp_path / "steps") as checkpoints:
        assert checkpoints.latest == 7


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_files_are_named_in_one_line(whole, tmp_path, damage):
    shutil.copytree(whole[0] / "steps", tmp_path / "steps")
    files = [p for p in (tmp_path / "steps" / "7").rglob("*") if p.is_file() and p.stat().st_size > 500]
    assert files
    for path in files:
        path.unlink() if damage == "remove" else os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"^checkpoint .*steps/7") as error:
        load_native(tmp_path / "steps")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"custom_metadata": {"data": {"x": 1}}}', "other number"])
def test_a_step_whose_place_in_the_data_is_lost_is_one_line(whole, tmp_path, text):
    steps = tmp_path / "steps"
    shutil.copytree(whole[0] / "steps" / "6", steps / "6")
    if text == "other number":
        (steps / "6").rename(steps / "5")
    else:
        (steps / "6" / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(CheckpointError, match=rf"^checkpoint {steps}(/5: holds step 6|/6: its position|: cannot be)"):
        run(tmp_path)


def test_a_checkpoint_without_an_average_says_so(whole):
    with pytest.raises(CheckpointError, match=r"^checkpoint .*steps: holds no average of the parameters") as error:
        load_native(whole[0] / "steps", ema=True)
    assert "\n" not in str(error.value)


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds neither config\.json"):
        load_pretrained(tmp_path)
    write_model_file(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="no whole step"):
        load_pretrained(tmp_path)


FULL_DISK = """
    import resource, sys
    import jax.numpy as jnp
    from zaya_jax.interop.formats.native import CheckpointError
    from zaya_jax.training.checkpoints import Checkpoints

    big = {"x": jnp.arange(2_000_000, dtype=jnp.float32) * 1.1}
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, big, {"data": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the disk is full
        try:
            checkpoints.save(2, big, {"data": 2})
        except CheckpointError as error:
            print("REFUSED", error)
    with Checkpoints(sys.argv[1]) as checkpoints:
        loaded, extra = checkpoints.load(big)
        print("STILL", checkpoints.latest, extra, bool((loaded["x"] == big["x"]).all()))
"""


def test_a_full_disk_is_one_line_and_the_previous_step_stays(tmp_path):
    done = commands.run("tests.snippet", FULL_DISK, str(tmp_path / "steps"), timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"REFUSED checkpoint {tmp_path}/steps/2: cannot be written: "), done.stderr
    assert lines[1] == "STILL 1 {'data': 1} True"


def test_non_finite_losses_stop_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="convert step 3: ar_loss is nan"):
        MetricWriter(tmp_path / "m.jsonl").write("convert", 3, {"ar_loss": np.float32("nan")})


def test_the_state_is_a_pytree_of_arrays():
    state = init_state(init_variables(Zaya(CONFIG), 0), OptimizerConfig(), 5)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert state.rng.dtype == jnp.uint32
