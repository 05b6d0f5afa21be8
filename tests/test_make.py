"""`make` knows when the torch that it built for is no longer the one that is imported."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


class Tree:
    """A source tree that counts as built, by an interpreter that is asked for nothing but torch."""

    def __init__(self, folder):
        self.folder = folder
        self.python = self.interpreter(folder / "python")
        self.inner = self.interpreter(folder / ".venv/bin/python")
        for name in ["Makefile", "setup.py", "pyproject.toml"]:
            shutil.copy(ROOT / name, folder)
        (folder / "csrc").mkdir()
        self.torch(self.python, "2.13.0")
        self.torch(self.inner, "2.13.0")
        for stamp, python in [("torch", self.python), ("built", self.inner)]:
            shutil.copy(f"{python}.torch", folder / ".venv" / stamp)

    def interpreter(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#!/bin/sh\ncat "$0.torch"\n')
        path.chmod(0o755)
        return path

    def torch(self, python, version):
        Path(f"{python}.torch").write_text(f"{python} /somewhere/torch {version}\n")

    def make(self, *arguments):
        """What `make build` would do."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        environment.pop("PYTHON", None)
        done = subprocess.run(
            ["make", "--dry-run", "build", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_built_for_this_torch(tree):
    assert "Nothing to be done" in tree.make()
    assert "Nothing to be done" in tree.make(f"PYTHON={tree.python}")


def test_another_torch_in_the_environment(tree):
    tree.torch(tree.inner, "2.14.1")
    commands = tree.make()
    assert "--editable" in commands
    assert "venv --clear" not in commands


def test_another_torch_to_borrow(tree):
    tree.torch(tree.python, "2.14.1")
    assert f"{tree.python} -m venv --clear .venv" in tree.make()


def test_another_interpreter(tree):
    other = tree.interpreter(tree.folder / "other")
    tree.torch(other, "2.13.0")
    assert f"{other} -m venv --clear .venv" in tree.make(f"PYTHON={other}")
