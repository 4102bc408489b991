"""The local scheduler: speaks the gRPC service of the Durable Task Scheduler (DTS), and keeps its state on disk."""
