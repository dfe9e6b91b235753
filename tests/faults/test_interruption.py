"""Ctrl-C before a run has begun: one word and status 130, also while the command is imported."""

import signal
import subprocess
import sys

import pytest

from mint.cli import run_command
from tests.conftest import ROOT

INTERRUPTED_IMPORT = """
import pkgutil, runpy, sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.modules.pop({module!r}, None)
sys.argv = ["train.py", "--loss", "orpo"]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["typing", "mint.cli", "mint.training.summary", "mint.demo"])
def test_ctrl_c_while_the_command_is_imported(module):
    code = INTERRUPTED_IMPORT.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "interrupted\n")


def test_ctrl_c_while_a_sub_command_is_imported(capsys):
    def add(commands):
        def fill(parser):
            raise KeyboardInterrupt

        commands.add_parser("slow").fill = fill

    assert run_command("test", [add], ["slow"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
