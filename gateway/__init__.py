"""The connector gateway: runs each request of a workflow engine in a process of its own."""
