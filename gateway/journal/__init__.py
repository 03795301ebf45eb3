"""The latest runs, in a file: what was run, for whom, and what came of it."""
