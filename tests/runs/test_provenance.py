"""What a result file says of the machine."""

import pytest

from zaya_jax.runs import provenance


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: AMD EPYC 7R13 Processor\ncpu family\t: 25\nmodel\t\t: 1\n", "AMD EPYC 7R13 Processor"),
        # As virtual machines hide it: fast and slow generations share this name.
        ("cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC (family 23, model 1)"),
        ("model name\t: Some Processor\n", "Some Processor"),
    ],
)
def test_a_processor_is_told_from_others(tmp_path, text, name):
    (tmp_path / "cpuinfo").write_text(text + text)  # one paragraph a core
    assert provenance.cpu_name(tmp_path / "cpuinfo") == name


def test_a_machine_that_does_not_say_has_a_name_nevertheless(tmp_path):
    assert provenance.cpu_name(tmp_path / "nothing")
