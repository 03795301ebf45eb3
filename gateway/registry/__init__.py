"""The registry: which connectors there are, what they can do, and what is wrong with the others."""
