"""The console: pages for people. ADR 17 says how it is made."""
