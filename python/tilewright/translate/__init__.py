"""From a Python function to the text of a device function.

A function is *run on symbols*: its syntax tree is walked once with a name for each position, and what it computes is written
down as the Rust subset that ``#[score_mod]`` and ``#[mask_mod]`` take. Functions it calls are walked in place; what it
closes over becomes captures.

``source`` finds a function's tree, ``values`` are what the walk works on, ``arithmetic`` has Python's operators and
``membership`` its ``in``, ``captures`` collects captured values and ``arrays`` reads them. ``calls`` lists the functions and
methods that may be called: ``signatures`` are their parameters, ``operations`` and ``formulas`` what they compute. ``walk``
is the walk itself, with its ``expressions`` and ``statements``; ``cost`` bounds what Python computes meanwhile.
"""

from .captures import Capture
from .values import TranslationError
from .walk import Translation, translate

__all__ = ["Capture", "Translation", "TranslationError", "translate"]
