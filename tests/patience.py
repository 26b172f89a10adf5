"""How long tests wait for what must come."""

from __future__ import annotations

PATIENCE_S = 500.0
"""Longer than a model server takes to start on two cores that seven others want; only what hangs takes more."""
