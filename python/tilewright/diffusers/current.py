"""The attention that this thread is in: set by its processor, read where diffusers hands over q, k and v."""

from __future__ import annotations

import threading


class _Current(threading.local):
    # The layer (`layers.Layer`), and what it knows of the text in the sequence (`text.Joint`).
    layer = None
    joint = None


current = _Current()
