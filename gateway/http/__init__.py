"""HTTP: the application, its routes, and what they answer."""
