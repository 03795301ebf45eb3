"""Processes: one run, the ways to obtain one, and how many there are."""
