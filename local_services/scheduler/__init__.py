"""The local scheduler: implements the gRPC service of the Durable Task Scheduler (DTS), with its state on disk."""
