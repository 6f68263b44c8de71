"""What both ends must agree on: config, wire messages, packets, errors; and the gRPC link itself."""
