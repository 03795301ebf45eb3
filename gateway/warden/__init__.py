"""The warden: the small process that is the parent of every connector process.

The gateway never forks. It asks a warden over a socket (`client.py`); the warden (`__main__.py`, standard
library only, started with `python -I -S`) starts the process, watches its memory, reaps it, sweeps what it left
behind, and kills everything when the gateway's end of the socket closes for whatever reason.
"""
