"""Interactive figures over two or more parameters: one compute function, two views.

`Sweep.static()` is what the book embeds: every point precomputed, as small data that `figures.js`
draws. `Sweep.live()` is the same figure in Jupyter, where widgets drive `compute`. Both go through
`Sweep.at`, so they cannot differ. This package imports nothing else of ours.
"""

from inferlab.sweep.compact import compact
from inferlab.sweep.outcome import Impossible
from inferlab.sweep.sweep import Control, Sweep

__all__ = ["Control", "Impossible", "Sweep", "compact"]
