"""Open Inference Protocol v2 over gRPC, which the extra `grpc` installs."""
