"""The package behind *Inference Engineering*, an executable course on LLM serving.

A chapter needs five names from here: `say` computes a number that the prose uses, `show` puts a
figure on the page and `show_table` a table, `predict` records what the reader expects before a
result appears, and `install` lets the engine run what the reader has written. Everything else is
imported from its own subpackage, so that `import inferlab` loads the standard library only.
"""

from inferlab.installation import install, restore
from inferlab.notebook import predict, say, show, show_table

__all__ = ["install", "predict", "restore", "say", "show", "show_table"]
__version__ = "0.1.0"
