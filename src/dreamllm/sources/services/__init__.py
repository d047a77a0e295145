"""Clients of services over HTTP: downloads that resume, and chat completions."""
