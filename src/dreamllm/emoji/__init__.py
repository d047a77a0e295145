"""The miniature: scenes of OpenMoji pictograms, their language, and the documents and benchmarks made of them."""
