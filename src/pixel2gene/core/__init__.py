"""The engine: tensors in, tensors out; knows nothing of SpatialData."""
