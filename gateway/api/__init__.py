"""HTTP: what callers and operators see. Nothing below this imports aiohttp's server."""
