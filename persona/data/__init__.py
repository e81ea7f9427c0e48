"""Raw photos to aligned shards to batches: raw, align, triplets, shards, pack, stream."""
