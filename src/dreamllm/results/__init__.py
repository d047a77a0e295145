"""Tables, figures and the paper's claims, from metrics."""
