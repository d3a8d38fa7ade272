"""Arrays and devices that all kernels share."""
