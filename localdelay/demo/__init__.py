"""A peak of traffic on a real broker that throttles, published plainly and through `Fallback`."""
