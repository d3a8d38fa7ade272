"""What blocks do to the residual stream: norms, cosines, directions, geometry, effects on two tokens."""
