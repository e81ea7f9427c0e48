"""The data pipeline, from raw photos to aligned shards to batches of tensors."""
