"""Foundation models of the miniature, in the folder layouts of the real ones; and a scene classifier."""
