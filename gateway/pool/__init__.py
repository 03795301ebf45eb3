"""How a process is obtained. One file a way, one Protocol."""
