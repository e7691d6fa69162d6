"""What a peer keeps on disk: parts and snapshots, each found by the digest of its bytes."""
