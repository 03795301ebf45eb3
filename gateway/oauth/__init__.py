"""Signing in: what happens between a browser, an OAuth provider and the gateway, without HTTP's server."""
