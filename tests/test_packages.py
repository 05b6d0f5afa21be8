"""tests/packages.py, for those packages that are installed."""

from __future__ import annotations

import packages
import pytest


@pytest.mark.parametrize("package", packages.PACKAGES)
def test_same_results_and_gradients(package):
    pytest.importorskip(package)
    theirs = packages.in_fresh_process(package, "nn.LSTM")
    assert theirs["fused"] == 0
    for way in packages.ways(package):
        fused, difference = packages.compare(package, way, theirs)
        assert fused > 0
        assert difference <= 1e-5
