"""The library's messages speak of arguments, and the command line of flags that it has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest
from command import call

import regnet_itk
from regnet_itk.cli.flags import FLAGS, name_flags
from regnet_itk.cli.main import cli

PACKAGE = Path(regnet_itk.__file__).parent
MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "cli" not in path.parts and path.name not in ("stand_ins.py", "finished_run.py", "shim.py")
]


def every_flag():
    context = click.Context(cli)
    commands = (cli.get_command(context, name) for name in cli.list_commands(context))
    return {flag for command in commands for parameter in command.params for flag in parameter.opts if flag[0] == "-"}


def messages(path):
    """Return the texts of a module that are part of an error, with a blank for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            parts = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
            yield " ".join(part for part in parts if isinstance(part, str))


def test_arguments_become_flags_that_exist():
    assert name_flags("give it with `like`, or `no_such` `vectors` ras") == (
        "give it with --like, or `no_such` --nifti-vectors ras"
    )
    assert set(FLAGS.values()) <= every_flag()


def test_the_library_names_no_flag_and_only_known_arguments():
    flags = {flag for flag in every_flag() if len(flag) > 2}
    found = {path: list(messages(path)) for path in MODULES}
    assert sum(map(len, found.values())) > 200
    wrong = [
        (path.name, text)
        for path, texts in found.items()
        for text in texts
        if any(re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text) for flag in flags)
    ]
    assert wrong == []
    named = {name for texts in found.values() for text in texts for name in re.findall(r"`(\w+)`", text)}
    assert len(named) > 5
    assert named <= set(FLAGS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "-f", "a", "-m", "b", "-fp", "c", "-out", "o"), "both images (-fp and -mp), or for none"),
        (("compare", "p.csv", "--methods", ",", "-out", "o"), "name at least one, such as --methods affine,regnet"),
    ],
)
def test_users_read_flags(words, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).touch()
    Path("p.csv").write_text("fixed,moving\na,b\n")
    assert call(*words) == 1
    assert message in capfd.readouterr().err
