"""Cells: the small native processes (runners/cell) in which whatever a connector starts runs."""
