"""What docs/atrous.md quotes of commands is what they print."""

import json
import re
import shlex

import pytest
from helpers import ROOT

from keras_aspp.cli.main import main

TEXT = (ROOT / "docs/atrous.md").read_text("utf-8")
BLOCKS = re.findall(
    r"^```\n\$ keras-aspp (.*?)\n(.+?)\n```$", TEXT, re.MULTILINE | re.DOTALL
)


def test_commands_with_quoted_lines_are_found():
    commands = [command.split()[0] for command, _ in BLOCKS]
    assert commands == ["explain", "inspect"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "quoted"), BLOCKS, ids=[name.split()[0] for name, _ in BLOCKS]
)
def test_quoted_lines_are_printed(
    command, quoted, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    command = command.replace("--output out", f"--output {tmp_path}")
    assert main(shlex.split(command)) == 0
    printed = _rounded(capsys.readouterr().out).splitlines()
    lines = [line for line in quoted.splitlines() if line != "..."]
    assert lines
    assert not [line for line in lines if _rounded(line) not in printed]


def _rounded(text):
    """Leaves out the size of rounding errors, which the machine decides."""
    return re.sub(r"\d\.\de[-+]\d+", "E", text)


@pytest.mark.slow
def test_the_table_of_output_strides(capsys):
    """By the command of the page, once for each row."""
    (command,) = re.findall(r"`keras-aspp (inspect\s[^`]*stride) 8`", TEXT)
    table = TEXT.partition("| output stride |")[2].partition("\n\n")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()[2:]
    ]
    assert [row[0] for row in rows] == ["32", "16", "8"]
    for row in rows:
        assert main([*command.split(), row[0], "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        last = found["stages"][-1]
        (part,) = (x for x in found["parts"] if x["name"] == "mobilenet_v2")
        assert row[1:] == [
            "{}x{}".format(*last["shape"]),
            "{}x{} px".format(*last["receptive_field"]),
            f"{part['madds'] / 1e9:.2f} billion",
            f"{part['activation_bytes'] / 1e6:,.0f} MB",
            f"{part['parameters']:,}",
        ]
