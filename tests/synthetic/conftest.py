"""Tiny streets, built once for all tests of this folder."""

import pytest

from faithfusion_studio.synthetic import StreetConfig, build_street

SMALL = {"length": 6.0, "sight": 30.0, "ambient_rays": 4}


@pytest.fixture(scope="session")
def street():
    """A short urban street where nothing moves."""
    return build_street(StreetConfig(seed=3, curvature=-0.004, **SMALL))


@pytest.fixture(scope="session")
def busy_street():
    """A short country road with three moving vehicles."""
    return build_street(StreetConfig(seed=4, family="country", num_moving=3, **SMALL))
