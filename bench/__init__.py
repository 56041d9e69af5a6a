"""Benchmarks: what is promised of Vade's speed, measured. `make bench` runs them."""
