"""The contract with connectors: what they read, what they answer, and what that means."""
