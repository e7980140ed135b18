"""The gRPC control endpoint (extra `grpc`); imported by `ron.nodes.control`, and only when it is wanted."""
