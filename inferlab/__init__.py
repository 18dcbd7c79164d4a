"""The package behind *Inference Engineering*, an executable course on LLM serving.

A chapter needs three names from here: `say` computes a number that the prose uses, `show` puts a
figure on the page, `predict` records what the reader expects before a result appears. Everything
else is imported from its own subpackage, so that `import inferlab` loads the standard library only.
"""

from inferlab.notebook import predict, say, show

__all__ = ["predict", "say", "show"]
__version__ = "0.1.0"
