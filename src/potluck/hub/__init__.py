"""The hub: the run's ledger and presence on NATS JetStream, its embedded server, and admission."""
