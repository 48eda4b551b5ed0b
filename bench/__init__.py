"""Measurements, as ratios to a hello app on the same core, in one run. Nothing here is asserted in the tests."""
