"""What happened, and who listens: the log, the metrics, the latest outcomes."""
