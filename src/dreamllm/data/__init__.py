"""Documents, their layout as tokens, packing into rows, shards on disk, and the mixture that a stage trains on."""
