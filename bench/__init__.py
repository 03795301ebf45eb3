"""Measures the gateway beside its peers. `python -m bench --help`; docs/performance.md says how to read the figures."""
