"""The bundle of the sample chapter, without a notebook: for tests of what runs inside a bundle."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

from inferlab.publish import read_page
from inferlab.publish.bundle import write_bundle
from tests.site_fixture import CHAPTER, make_repository

# What a student has to write for the sample's exercises, with as little as passes.
QUEUE = """
from inferlab.engine.block_pool import Block

class FreeBlockQueue:
    def remove(self, block):
        if block.previous_free is None:
            raise ValueError("not in the queue")
        block.previous_free.next_free = block.next_free
        block.next_free.previous_free = block.previous_free
        block.previous_free = block.next_free = None
        self.num_free_blocks -= 1

    def popleft(self):
        block = self._head.next_free
        self.remove(block)
        return block
"""
HASH = """
def hash_block_tokens(parent, token_ids, salt=""):
    return bytes(token_ids)
"""


def make_sample_bundle(folder: Path, recorded: dict[str, list[dict[str, Any]]]) -> Path:
    """Write the bundle below `folder`; `recorded` is what its notebook's cells gave."""
    repository = make_repository(folder / "repository")
    bundle = folder / "week04"
    bundle.mkdir()
    nbformat.write(nbformat.v4.new_notebook(), bundle / "week04-sample.ipynb")
    write_bundle(repository, read_page(repository, CHAPTER), recorded, bundle)
    return bundle


def run_in(bundle: Path, code: str, **environment: str) -> str:
    """What `code` prints in a fresh interpreter in the bundle, or the last line of its error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bundle,
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if not done.returncode else done.stderr.strip().splitlines()[-1]
