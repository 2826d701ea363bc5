"""A user's mistakes in flags, config files and overrides, each one line; and the listing of a config."""

import pytest
from absl import flags
from ml_collections import ConfigDict

from configs.common import axis, zipped
from tests import commands
from tests.experiments import tiny
from zaya_jax.command_line import sampling_flags
from zaya_jax.errors import UserError
from zaya_jax.runs.configuration import config_files, listing, reader, settings
from zaya_jax.training.optimizer import OptimizerConfig

TINY = "tests/experiments/tiny.py"
STARTS = "from tests.experiments import tiny\ndef get_config(arg=None):\n    c = tiny.get_config()\n    "


def mistake(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1_100
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.hiden_size=3", ".model.hiden_size: unknown, did you mean hidden_size or"),
        ("modle.hidden_size=3", ".modle: unknown, did you mean model?"),
        ("model.nothere=3", ".model.nothere: unknown, may be one of attention, "),
        ("keys=3", ".keys: unknown, may be one of control, "),
        ("data.row_length=abc", ".data.row_length: got 'abc', may be an integer"),
        ("convert.objective.alpha=x", ".convert.objective.alpha: got 'x', may be a number"),
        ("evaluate.cost=maybe", ".evaluate.cost: got 'maybe', may be true or false"),
        ("mesh=3", ".mesh: got '3', may be a dict such as"),
        ("phases=a b,(c", ".phases: got 'a b,(c', may be a tuple such as"),
        ("phases[0]=3", ".phases[0]: an item of a tuple, may be given with all others: --config.phases="),
        ("phases[9]=3", ".phases: got item 9, may be a number below 3 in brackets"),
        ("phases.x=3", ".phases: got item x, may be a number below 3 in brackets"),
        ("data.mixture[0].wieght=3", ".data.mixture[0].wieght: unknown, did you mean weight?"),
        ("data.mixture[1].text[0]=3", ".data.mixture[1].text: 'stdlib', so it has no field 0"),
        ("seed.x=3", ".seed: 0, so it has no field x"),
        ("convert.mesh.fsdp=2", ".convert.mesh: None, so it has no field fsdp; may be given whole: --config.con"),
        ("=3", ".: no field's name, may be such as --config.data.row_length"),
        ("a+b=3", ".a+b: no field's name"),
        (f"{'(' * 5000}=3", f".{'(' * 200}...: no field's name"),
        (f"seed={'7' * 5000}", f".seed: got '{'7' * 199}..., may be an integer"),
        (f"{'x' * 5000}=7", f".{'x' * 200}...: unknown, may be one of control"),
    ],
)
def test_overrides(override, line):
    assert mistake(config_files.read_config, TINY, [f"--config.{override}"]).startswith(f"--config{line}")


def test_good_overrides_change_what_they_name():
    given = ("model.hidden_size=16", "data.mixture[0].weight=0.5", "evaluate.tasks=addition", "convert.start=pretrain")
    config = config_files.read_config(TINY, [*(f"--config.{each}" for each in given), "--noconfig.evaluate.cost"])
    assert config.model.hidden_size == 16 and config.data.mixture[0].weight == 0.5 and config.is_locked
    assert config.evaluate.tasks == ("addition",) and not config.evaluate.cost and config.convert.start == "pretrain"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import x_y\n", ":1: ModuleNotFoundError: No module named 'x_y'"),
        ("\ndef get_config():\n    return 1 / 0\n", ":3: ZeroDivisionError: division by zero"),
        ("def get_config(\n", ":1: SyntaxError: '(' was never closed"),
        (STARTS + "c.modle.x = 3\n", """:4: AttributeError: 'modle' Did you mean "model" instead of "modle"?"""),
        (STARTS + "return {}['a\\nb']\n", ":4: KeyError: a b"),
        (STARTS + "raise RuntimeError\n", ":4: RuntimeError"),
        ("x = 1\n", ": has no get_config, may define get_config(arg=None)"),
        ("get_config = 1\n", ": has no get_config, may define get_config(arg=None)"),
        ("def get_config(): pass\n", ": get_config returned None, may return a ConfigDict"),
        ("def get_config(arg): pass\n", ": its get_config needs an :argument"),
        ("(" * 300, ":1: SyntaxError: too many nested parentheses"),
    ],
)
def test_config_files_that_fail_say_where(tmp_path, text, line):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert mistake(config_files.load, str(path)) == f"--config: {path}{line}"
    assert [each.name for each in tmp_path.iterdir()] == ["mine.py"]  # no __pycache__


def test_an_earlier_config_files_names_are_gone(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    config_files.load(TINY)
    assert "has no get_config" in mistake(config_files.load, str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("configs/quickstrat.py", "--config: configs/quickstrat.py: no such file, did you mean configs/quickstart.py?"),
        ("quickstart", "--config: quickstart: no such file, did you mean configs/quickstart.py?"),
        ("/nowhere/x.py", "--config: /nowhere/x.py: no such file"),
        (
            "results/quickstart/config.json",
            "--config: got 'results/quickstart/config.json', may be a Python file such as configs/quickstart.py (a "
            "run's config.json records what it ran with)",
        ),
        ("", "--config: got '', may be a config file such as configs/quickstart.py"),
        ("configs/sweeps/study.py:fast", "--config: configs/sweeps/study.py: its get_config takes no :argument"),
        ("configs/quickstart.py:blocksize=3", "config argument 'blocksize': unknown, did you mean block_size?"),
        ("configs/quickstart.py:block_size=x", "config argument block_size: got 'x', may be an integer"),
    ],
)
def test_config_files_that_are_not_there(spec, line):
    assert mistake(config_files.load, spec) == line


def generate_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_integer("samples", 1, "", lower_bound=1, flag_values=values)
    sampling_flags.define(values)
    return values


@pytest.mark.parametrize(
    ("arg", "line"),
    [
        ("--samples=x", "--samples: got 'x', may be a positive integer"),
        ("--samples=0", "--samples: got '0', may be a positive integer"),
        (f"--samples={'x' * 5000}", f"--samples: got '{'x' * 199}..., may be a positive integer"),
        ("--mode=single_pas", "--mode: got 'single_pas', did you mean single_pass?"),
        ("--mode=x", "--mode: got 'x', may be one of auto, autoregressive"),
        ("--temperature=hot", "--temperature: got 'hot', may be a number"),
        ("--sample=3", "Unknown command line flag 'sample'. Did you mean: samples ?"),
        (f"--{'y' * 5000}", f"--{'y' * 198}...: unknown flag"),
        ("--top-q=1", "Unknown command line flag 'top_q'."),
    ],
)
def test_flags(arg, line):
    assert mistake(config_files.parse, ["generate", arg], generate_flags()).startswith(line)


def test_a_samplers_mistake_names_the_flag_and_the_nearest_target():
    values = generate_flags()
    config_files.parse(["generate", "--target=mix_stael"], values)
    line = sampling_flags.in_flags(mistake(sampling_flags.read, values))
    assert line == "--target: got 'mix_stael', did you mean mix_stale?"


def test_an_override_stands_after_its_config():
    values = flags.FlagValues()
    config_files._define("", values, config_files._ARGUMENTS)
    for args in (["--config.seed=3"], ["--config.seed=3", f"--config={TINY}"]):
        line = "--config.seed: may stand after --config=FILE, whose field it changes"
        assert mistake(config_files.parse, ["run", *args], values) == line


def deleted(field: str):
    def change(config: ConfigDict) -> None:
        section, _, name = field.rpartition(".")
        del (config[section] if section else config)[name]

    return change


def replaced(section: str):
    return lambda config: config.__setitem__(section, 3)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        *((deleted(name), f"{name}: missing") for name in (
            "phases", "seed", "model", "data", "evaluate", "data.row_length", "data.mixture", "pretrain.steps",
            "pretrain.batch_size", "pretrain.objective", "pretrain.optimizer", "evaluate.beta", "evaluate.tasks",
            "evaluate.prompts", "evaluate.anchor_budget", "evaluate.cost",
        )),
        *((replaced(name), f"{name}: got 3, may be a section") for name in ("data", "model", "evaluate", "mesh")),
        (lambda c: c.update(phases=3), "phases: got 3, may be a tuple"),
        (lambda c: c.update(tokenizer=3), "tokenizer: got 3, may be a text"),
        (lambda c: c.update(evalaute=ConfigDict()), "evalaute: unknown, did you mean evaluate?"),
        (lambda c: c.data.update(mixture=("",)), "data.mixture: got ('',), may be a tuple of at least one"),
        (lambda c: c.data.update(mixture=3), "data.mixture: got 3, may be a tuple of at least one"),
        (lambda c: c.data.update(thinking=3), "data.thinking: got 3, may be"),
        (lambda c: c.data.update(chat_template=3), "data.chat_template: got 3, may be a text"),
        (lambda c: c.data.update(packing=[]), "data.packing: got [], may be one of"),
        (lambda c: c.data.mixture[0].update(task="adition"), "data.mixture[0]: task: got 'adition', did you mean add"),
        (lambda c: c.data.mixture[0].update(task=[1]), "data.mixture[0].task: got [1], may be a text"),
        (lambda c: c.data.mixture[0].__setitem__("options", 3), "data.mixture[0].options: got 3, may be a dict"),
        (lambda c: c.data.mixture[0].options.update(digit=3), "data.mixture[0]: task addition: option digit: unknown"),
        (lambda c: c.data.mixture[0].update(as_chat=3), "data.mixture[0].as_chat: got 3, may be True or False"),
        (lambda c: c.evaluate.update(sampler=("lossless",)), "evaluate.sampler: unknown, did you mean samplers"),
        (lambda c: c.evaluate.update(samplers=("losless",)), "evaluate.samplers: got 'losless', did you mean lossless"),
        (lambda c: c.evaluate.update(samplers="lossless"), "evaluate.samplers: got 'lossless', may be a tuple, each a"),
        (lambda c: c.evaluate.update(tasks=("adition",)), "evaluate.tasks: got 'adition', did you mean addition?"),
        (lambda c: c.evaluate.update(temperatures=()), "evaluate.temperatures: got (), may be a tuple of at least 1"),
        (lambda c: c.evaluate.update(temperatures=("hot",)), "evaluate.temperatures: got ('hot',), may be a tuple"),
        (lambda c: c.evaluate.update(cost="yes"), "evaluate.cost: got 'yes', may be True or False"),
        (lambda c: c.evaluate.update(phase=[]), "evaluate.phase: got [], may be a text, or None"),
        (lambda c: c.pretrain.update(batchsize=3), "pretrain.batchsize: unknown, did you mean batch_size?"),
        (lambda c: c.pretrain.__setitem__("objective", 3), "pretrain.objective: got 3, may be a section"),
        (lambda c: c.pretrain.update(start=[3]), "pretrain.start: got [3], may be a text, or None"),
        (lambda c: c.pretrain.optimizer.update(learning_rte=3), "pretrain.optimizer.learning_rte: unknown, did"),
        (lambda c: c.mesh.update(fsdp=0), "mesh.fsdp: got 0, may be an integer of at least 1"),
        (lambda c: c.mesh.rules.update(embed=3), "mesh.rules.embed: got 3, may be a tuple"),
        (lambda c: c.mesh.__setitem__("rules", 3), "mesh.rules: got 3, may be a section"),
    ],
)  # fmt: skip
def test_configs_of_another_shape(change, line):
    config = tiny.get_config()
    mixture = tuple(ConfigDict(item.to_dict(), type_safe=False) for item in config.data.mixture)
    config = ConfigDict(config.to_dict(), type_safe=False)
    config.data.mixture = mixture
    change(config)
    with pytest.raises((UserError, OSError)) as error:
        settings.read(config)
    assert str(error.value).startswith(line)


def test_a_field_is_named_once():
    line = mistake(reader.read, OptimizerConfig, {"b1": 3.0}, "convert.optimizer")
    assert line.startswith("convert.optimizer.b1: got 3.0, may be ")


def test_axes_of_different_lengths_are_named():
    assert (
        mistake(zipped, axis("seed", 1, 2), axis("name", "a"))
        == "zipped: got axes of [1, 2] values, may be of as many each"
    )


def test_a_listing_has_every_field_and_can_be_compared():
    config = config_files.read_config(TINY, [])
    lines = listing.lines_of(config)
    assert lines == sorted(lines, key=lambda line: line.partition(" = ")[0].split("."))
    assert {
        "convert.start = None  # str", "data.mixture[0].options.digits = 3", "tokenizer = 'bytes'",
        "convert.optimizer.b1 = 0.9", "mesh.rules = {}", "model.mask_token_id = None  # int",
    } <= set(lines)  # fmt: skip
    with config.unlocked():
        del config.convert.optimizer["b1"]
    assert f"convert.optimizer.b1 = 0.9{listing.DEFAULT}" in listing.lines_of(config)
    other = config_files.read_config(TINY, ["--config.seed=7"])
    assert listing.differences(lines, listing.lines_of(other)) == ["seed = 7"]


def test_a_run_prints_its_config_and_writes_nothing(tmp_path):
    given = (f"--config={TINY}", "--config.seed=7", "--print_config", f"--workdir={tmp_path / 'w'}")
    done = commands.run("experiments.run", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == listing.lines_of(config_files.read_config(TINY, ["--config.seed=7"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_prints_its_base_and_what_each_job_changes(tmp_path):
    given = ("--config=configs/sweeps/block_size.py", "--print_config", f"--workdir={tmp_path / 'w'}")
    done = commands.run("experiments.sweep", *given)
    assert done.returncode == 0, done.stderr
    assert "# job block_size=4\nconvert.objective.block_size = 4\nevaluate.anchor_budget = 0\n" in done.stdout
    assert not list(tmp_path.iterdir())
