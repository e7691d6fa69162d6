"""What travels: frozen messages, ledger records, invites, and the size-bounded codec for them."""
