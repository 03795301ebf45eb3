"""Tries the contract on one connector, with its own examples."""
