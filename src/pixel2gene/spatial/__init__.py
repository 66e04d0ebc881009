"""The bridge between SpatialData and arrays: the only place that knows transformations and element names."""
