"""What can be trusted: every number followed down to the bytes it came from, checks of that, and comparisons."""
